"""Is there a data race between two steps that can both be taken in one state?

If two conflicting accesses are unordered in some execution, there is a reachable state in which both tasks are
about to make them, since an access that follows no lock discipline is a scheduling point (see `machine.py`).
The search knows the footprints of all steps that can be taken in each state; where two conflict on a plain
access, the two steps are run one after the other, in both orders, under the happens-before detector.
"""

from __future__ import annotations

from interleaf.runtime.cells import Cell
from interleaf.runtime.execution import Move, Schedule
from interleaf.runtime.findings import Violation
from interleaf.runtime.races import RaceDetector

from .livelock import alternatives
from .machine import Choices, Machine, Snapshot


def race_between(
    machine: Machine, snapshot: Snapshot, one: tuple[int, Choices], other: int, cell: Cell
) -> tuple[Violation, Schedule] | None:
    """A race on `cell` between the step `one` = (task, choices) and any step of `other` from `snapshot`.

    Returns the violation with the two steps that show it. The machine is left in some later state.
    """
    task, choices = one
    pending: list[Choices] = [()]
    while pending:
        theirs = pending.pop()
        machine.restore(snapshot)
        if machine.step(other, theirs):
            pending.extend(alternatives(theirs, machine.branches))
        for first, second in (((task, choices), (other, theirs)), ((other, theirs), (task, choices))):
            found = _run(machine, snapshot, first, second, cell)
            if found is not None:
                return found
    return None


def _run(
    machine: Machine, snapshot: Snapshot, first: tuple[int, Choices], second: tuple[int, Choices], cell: Cell
) -> tuple[Violation, Schedule] | None:
    detector = RaceDetector(lambda: machine.site, cell)
    memory = machine.memory
    steps: list[Move] = []
    machine.restore(snapshot)
    memory.observer = detector
    try:
        for task, choices in (first, second):
            if machine.nodes[task] is None or not machine.step(task, choices):
                break
            steps.extend(Move(machine.task(task).name, *basic) for basic in machine.basic)
    finally:
        memory.observer = None
    return (detector.races[0], tuple(steps)) if detector.races else None
