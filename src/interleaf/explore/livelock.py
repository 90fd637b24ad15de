"""Livelock that no schedule ends, for the search over steps. (The search over states finds more: see `loops.py`.)

A state is a livelock if some task can run there and, whatever is scheduled, no task ever ends: everything that
can still happen leads round in circles. The search asks where a step has led back to a state of its own path;
the question is answered by looking at every state that can be reached from there, without reductions.
"""

from __future__ import annotations

from interleaf.runtime.execution import StepLimit

from .machine import Choices, Machine, Snapshot

REACH = 5_000
"""States looked at, at most, to find out whether tasks that go round in a circle can ever leave it."""


def spinning(machine: Machine) -> str:
    """Who runs in circles from the machine's state for ever, in words; empty if some task can end.

    The machine is left in the state that it was in. Raises StepLimit if there are too many states to tell.
    """
    start = machine.snapshot()
    ran = _closed(machine, start)
    machine.restore(start)
    if not ran:
        return ""
    words = []
    for task in machine.unfinished:
        node = machine.nodes[task]
        assert node is not None
        doing = "retries for ever" if task in ran else f"waits in {node.op.name}"
        words.append(f"{node.task} {doing} ({node.op.site[2]})")
    return "; ".join(words)


def _closed(machine: Machine, start: Snapshot) -> set[int]:
    """The tasks that run in the states reachable from `start`: none if a task can end there, or all can come to
    wait."""
    seen = {machine.key()}
    ran: set[int] = set()
    stack: list[tuple[Snapshot, list[tuple[int, Choices]]]] = [(start, [(task, ()) for task in machine.unfinished])]
    awake = [False]
    while stack:
        snapshot, todo = stack[-1]
        if not todo:
            if not awake.pop():
                return set()
            stack.pop()
            continue
        task, choices = todo.pop()
        machine.restore(snapshot)
        if not machine.step(task, choices):
            continue
        awake[-1] = True
        if machine.dead or machine.nodes[task] is None:
            return set()
        ran.add(task)
        todo.extend((task, other) for other in alternatives(choices, machine.branches))
        key = machine.key()
        if key in seen:
            continue
        seen.add(key)
        if len(seen) > REACH:
            raise StepLimit(
                f"tasks go round in a circle of more than {REACH} states: whether they ever leave it is unknown"
            )
        awake.append(False)
        others = [(other, ()) for other in machine.unfinished if other != task]
        stack.append((machine.snapshot(), [*others, (task, ())]))
    return ran


def alternatives(choices: Choices, branches: list[int]) -> list[Choices]:
    """The other outcomes of the choices that a step met beyond those it was told."""
    taken = (*choices, *(0,) * (len(branches) - len(choices)))
    return [
        (*taken[:position], other)
        for position in range(len(choices), len(branches))
        for other in range(1, branches[position])
    ]
