"""What a task can do in one indivisible action, and how a model declares more of it.

    @operation
    def spin_lock(memory: Memory, lock: spinlock_t) -> None: ...

makes `spin_lock(lock)` an operation: called in a task, the body runs on the hub with the memory, reads and
writes with `memory.load` and `memory.store`, and may `return BLOCK` to wait until it can happen.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast

from .carrier import CHOICE, JOIN, Note, Op, function_key, perform, running, running_function
from .cells import SETUP, Cell
from .findings import ModelError, Violation, ViolationRaised
from .memory import BLOCK, Memory
from .objects import Array, Const, Field, Marked, O, Object, Read, Write, by_serial, intern_object, show, singleton
from .values import Value, canonical

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Task(Object):
    """A thread of the model. `join()` waits for its end."""

    label = Const(str, "")
    done = Marked(False)
    index: int

    @property
    def bit(self) -> int:
        return 1 << self.index


class Custom(Op):
    """An operation declared by a model with `@operation`."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Value, ...],
        focus: Cell | None,
        marked: bool,
        releases: bool,
        words: Callable[..., str] | None,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.focus = focus
        self.marked = marked
        self.releases = releases
        self.words = words

    def run(self, memory: Memory) -> Value:
        return self.function(memory, *self.arguments)

    def text(self, result: Value) -> str:
        if self.words is not None:
            return self.words(*self.arguments, result)
        outcome = "" if result is None else f" = {show(result)}"
        return f"{self._call()}{outcome}"

    def attempted(self) -> str:
        # words that do not look at the result are as good without one
        if self.words is not None and list(inspect.signature(self.words).parameters)[-1].startswith("_"):
            return self.words(*self.arguments, None)
        return self._call()

    def _call(self) -> str:
        return f"{self.function.__name__}({', '.join(show(argument) for argument in self.arguments)})"

    @property
    def name(self) -> str:
        return self.function.__name__


def operation(
    *,
    marked: bool = True,
    focus: Callable[..., Cell] | None = None,
    releases: bool = False,
    words: Callable[..., str] | None = None,
) -> Callable[[Callable[Concatenate[Memory, P], Any]], Callable[P, Any]]:
    """Declare an operation.

    `marked`    it is a scheduling point (the default).
    `focus`     from the arguments, the cell whose lock discipline can make it invisible to others; without
                one it is a scheduling point always.
    `releases`  it only ever enables other tasks, as an unlock does.
    `words`     from the arguments and the result, the operation in words for a story.
    """

    def declare(function: Callable[Concatenate[Memory, P], Any]) -> Callable[P, Any]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            if kwargs:
                raise ModelError(f"{function.__name__} is an operation: pass its arguments by position.")
            carrier = running()
            if carrier.direct is not None:
                return carrier.direct.call(function, args)
            for argument in args:
                canonical(argument, f"argument of {function.__name__}")
            cell = focus(*args, **kwargs) if focus is not None else None
            return carrier.perform(Custom(function, args, cell, marked, releases, words))

        return call

    return declare


class Choose(Op):
    """The environment decides: every outcome 0 … n-1 is possible."""

    kind = CHOICE
    local = True
    progress: ClassVar[bool] = False
    """Another outcome than 0 is progress: see `again`."""

    def __init__(self, outcomes: int, what: str) -> None:
        self.outcomes = outcomes
        self.what = what

    def run(self, memory: Memory) -> Value:
        """The first outcome, where whoever drives the execution does not choose."""
        return 0

    def text(self, result: Value) -> str:
        return f"{self.what}: {result} of {self.outcomes}"


class Again(Choose):
    """The environment wants another round, or not."""

    progress = True

    def __init__(self, what: str) -> None:
        super().__init__(2, what)

    def text(self, result: Value) -> str:
        return self.what if result else f"{self.what}: no more"


class Report(Op):
    """Report a violation found by model code."""

    local = True

    def __init__(self, violation: Violation) -> None:
        self.violation = violation

    def run(self, memory: Memory) -> None:
        memory.violate(self.violation)

    def text(self, result: Value) -> str:
        return f"{self.violation.rule}: {self.violation.message}"


class Spawn(Op):
    """Start a task."""

    local = True

    def __init__(self, function: Callable[..., Any], arguments: tuple[Value, ...], label: str | None) -> None:
        self.function = function
        self.arguments = arguments
        self.label = label

    def run(self, memory: Memory) -> Task:
        world = memory.world
        label = self.label
        if label is None:
            counter = _spawned.element(world.tasks[memory.task], self.function.__name__)
            count = memory.peek(counter)
            memory.set(counter, count + 1)
            label = f"{world.tasks[memory.task].name}>{self.function.__name__}{count or ''}"
        task = intern_task(world, label)
        memory.spawned.append((task, self.function, self.arguments))
        memory.order(task, release=True)
        return task

    def text(self, result: Value) -> str:
        return f"starts {result}"


class Join(Op):
    """Wait for the end of all these tasks."""

    kind = JOIN
    marked = True

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        self.tasks = tasks
        self.cells = tuple(Task.done.cell(task) for task in tasks)

    def run(self, memory: Memory) -> Value:
        for cell in self.cells:
            if not memory.load_cell(cell):
                return BLOCK
        for task in self.tasks:
            memory.order(task, acquire=True)
        return None

    def text(self, result: Value) -> str:
        return f"{', '.join(map(str, self.tasks))} {'have' if len(self.tasks) > 1 else 'has'} ended"


def end_task(memory: Memory, task: Task) -> None:
    """The running task, `task`, has come to its end. It must hold no lock any more."""
    held = memory.held[memory.task].locks
    if held:
        names = ", ".join(str(cell.owner) for cell, _exclusive in held)
        raise ViolationRaised(Violation("held-at-end", f"{task} ends and still holds {names}", True, task.name))
    memory.plainly = False
    memory.order(task, release=True)
    memory.store_cell(Task.done.cell(task), True)


def intern_task(world: Any, label: str) -> Task:
    """The task called `label`, with its index in this world."""
    task = intern_object(world, Task, label, None, "Task", {"label": label})
    if "index" not in task.__dict__:
        task.index = world.enter_task(task)
    return task


def spawn(function: Callable[..., Any], *arguments: Value, name: str | None = None) -> Task:
    """Start a task that calls `function(*arguments)`; returns its handle.

    Two tasks of one execution must not have the same name.
    """
    for argument in arguments:
        canonical(argument, f"argument of task {name or function.__name__}")
    function_key(function)
    return cast("Task", perform(Spawn(function, arguments, name)))


def join(*tasks: Task) -> None:
    """Wait until all of `tasks` have ended."""
    perform(Join(tasks))


def choose(outcomes: int, what: str = "choice") -> int:
    """A nondeterministic choice of the environment; a search covers all of 0 … outcomes-1."""
    return cast("int", perform(Choose(outcomes, what)))


def again(what: str) -> bool:
    """Does the environment ask the running task for another round of `what` it has just done? Both are explored.

    To go round this way is progress: a loop in which a task completes rounds is no livelock of that task, however long
    it is asked to. Others may starve meanwhile.
    """
    return bool(perform(Again(what)))


def current_task() -> Task:
    """The task that is running this code."""
    return cast("Task", running().task)


def the(cls: type[O]) -> O:
    """The one object of `cls`, for what is a global variable in the kernel. It is never freed."""
    return singleton(running().world, cls)


def object_of(cls: type[O], serial: int) -> O:
    """The object of `cls` whose `serial` this is: from a made-up address back to the object. No operation."""
    carrier = running()
    if carrier.direct is not None:
        return cast("O", carrier.direct.ask(by_serial, carrier.world, cls, serial))
    return by_serial(carrier.world, cls, serial)


def check(name: str, condition: bool, message: str, subject: Object | None = None) -> None:
    """Property `name` requires `condition` here; each call is one chance of the property to fail."""
    exercise(name)
    if not condition:
        perform(Report(Violation(name, message, True, subject.name if subject is not None else "")))


def fail(name: str, message: str, subject: Object | None = None) -> None:
    """Property `name` is violated here."""
    check(name, False, message, subject)


def warn(name: str, condition: bool, message: str) -> bool:
    """As the kernel's WARN_ON: record a violation of `name` if `condition`, go on, and return `condition`."""
    exercise(name)
    if condition:
        perform(Report(Violation(name, message, False)))
    return condition


def exercise(name: str) -> None:
    """Count a chance of property `name` to fail; without any, it is vacuous rather than holding.

    The set-up has none: it is the same in every execution, and over before any two tasks race.
    """
    carrier = running()
    if carrier.task.name == SETUP:
        return
    exercised = carrier.world.exercised
    exercised[name] = exercised.get(name, 0) + 1


def say(text: str) -> None:
    """A line of the story, in the words of the model. Costs nothing unless the run is being told."""
    notes = running().notes
    if notes is not None:
        notes.append(Note(text, running_function()))


def trace(record: object) -> None:
    """Tell whoever follows this execution (`World.listener`) what the running task has just done.

    Costs nothing unless somebody listens; not part of the state, and a search must not listen, since it does not run
    model code again where it knows what happens.
    """
    world = running().world
    if world.listener is not None:
        world.listener(running().task, record)


def narrating() -> bool:
    """Is somebody listening to `say`? To skip the making of an expensive text."""
    return running().notes is not None


def read_marked(obj: Object, field: Field[T]) -> T:
    """Read a field that is otherwise plain in a marked way (READ_ONCE)."""
    return cast("T", perform(Read(field.cell(obj), True)))


def write_marked(obj: Object, field: Field[T], value: T) -> None:
    """Write a field that is otherwise plain in a marked way (WRITE_ONCE)."""
    cell = field.cell(obj)
    perform(Write(cell, canonical(value, cell.label), True))


def read_plain(obj: Object, field: Field[T]) -> T:
    """Read a field that is otherwise marked in a plain way."""
    return cast("T", perform(Read(field.cell(obj), False)))


def write_plain(obj: Object, field: Field[T], value: T) -> None:
    """Write a field that is otherwise marked in a plain way."""
    cell = field.cell(obj)
    perform(Write(cell, canonical(value, cell.label), False))


_spawned: Array[int] = Array(0)
_spawned.__set_name__(Task, "spawned")
