"""One execution of a concurrent model: tasks, shared fields, operations, choices and replay.

The parts, in reading order:

* `values`      what may cross from one function to another: canonical values;
* `cells`       the atoms of shared state, and the `World` that names them;
* `memory`      the values of all cells in one execution, with journal, hash and footprint;
* `carrier`     the greenlets that run model code, and the call frames by which a task's state is known;
* `objects`     classes with declared shared fields, written like kernel structs;
* `operations`  what a task can do in one indivisible action, and how a model declares more of it;
* `execution`   one run, step by step, from a schedule;
* `live`        a run that is followed and not searched, as long as it likes;
* `rewind`      the same, for who wants to go back, and to know which operations depend on each other;
* `races`       happens-before detection of data races in one run;
* `findings`    a violated property.

Nothing here knows of kernels, and nothing here searches.
"""

from .carrier import checkpoint, is_running, quiet, routine
from .cells import World
from .execution import Execution, Move, Schedule, Step, StepLimit
from .findings import ModelError, Violation
from .live import Live, LiveWorld
from .memory import BLOCK, Memory
from .objects import Array, Const, Embedded, Marked, Object, Plain, container_of, free, new
from .operations import (
    Task,
    again,
    check,
    choose,
    current_task,
    exercise,
    fail,
    join,
    narrating,
    object_of,
    operation,
    read_marked,
    read_plain,
    say,
    spawn,
    the,
    trace,
    warn,
    write_marked,
    write_plain,
)
from .rewind import Rewind, RewindMemory, RewindWorld
from .values import Value, canonical

__all__ = [
    "BLOCK",
    "Array",
    "Const",
    "Embedded",
    "Execution",
    "Live",
    "LiveWorld",
    "Marked",
    "Memory",
    "ModelError",
    "Move",
    "Object",
    "Plain",
    "Rewind",
    "RewindMemory",
    "RewindWorld",
    "Schedule",
    "Step",
    "StepLimit",
    "Task",
    "Value",
    "Violation",
    "World",
    "again",
    "canonical",
    "check",
    "checkpoint",
    "choose",
    "container_of",
    "current_task",
    "exercise",
    "fail",
    "free",
    "is_running",
    "join",
    "narrating",
    "new",
    "object_of",
    "operation",
    "quiet",
    "read_marked",
    "read_plain",
    "routine",
    "say",
    "spawn",
    "the",
    "trace",
    "warn",
    "write_marked",
    "write_plain",
]
