"""Brute force for fair loops: the graph of all states with no reduction, and each set of tasks that may go round.

A fair run in which exactly the tasks of a set move for ever stays where no other task can run. So it is there if such
states, and the steps of the set between them, have a strongly connected part with a step of each task of the set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from interleaf.explore.brute import Unreduced
from interleaf.explore.livelock import alternatives
from interleaf.explore.machine import Choices
from interleaf.runtime.cells import World

STATES = 6_000


class Graph(NamedTuple):
    enabled: dict[int, frozenset[int]]
    steps: dict[int, list[tuple[int, int]]]
    """By state: (task, state to which its step leads, or -1 if that ends the execution)."""


def graph(setup: Callable[[], object]) -> Graph | None:
    """All states and steps; None if there are too many."""
    machine = Unreduced(World(), setup)
    found = Graph({}, {})
    try:
        todo: list[tuple[int, Choices]] = [(task, ()) for task in machine.unfinished]
        stack = [(machine.key(), machine.snapshot(), todo)]
        found.steps[machine.key()] = []
        able: dict[int, set[int]] = {}
        while stack:
            key, snapshot, todo = stack[-1]
            if not todo:
                found.enabled[key] = frozenset(able.get(key, ()))
                stack.pop()
                continue
            task, choices = todo.pop()
            machine.restore(snapshot)
            if not machine.step(task, choices):
                continue
            able.setdefault(key, set()).add(task)
            todo.extend((task, other) for other in alternatives(choices, machine.branches))
            target = -1 if machine.dead else machine.key()
            found.steps[key].append((task, target))
            if target not in found.steps and target >= 0:
                if len(found.steps) >= STATES:
                    return None
                found.steps[target] = []
                stack.append((target, machine.snapshot(), [(other, ()) for other in machine.unfinished]))
    finally:
        machine.close()
    return found


def goes_round(known: Graph) -> bool:
    """Is there a fair run without an end?"""
    tasks = sorted({task for steps in known.steps.values() for task, _ in steps})
    return any(
        _with_all_of(known, frozenset(moving))
        for size in range(1, len(tasks) + 1)
        for moving in itertools.combinations(tasks, size)
    )


def _with_all_of(known: Graph, moving: frozenset[int]) -> bool:
    left = {key for key, enabled in known.enabled.items() if enabled and enabled <= moving}
    if len(moving) == 1:
        return bool(_closed(known, left))
    forth = {key: [(task, end) for task, end in known.steps[key] if end in left] for key in left}
    back: dict[int, list[int]] = {key: [] for key in left}
    for key, steps in forth.items():
        for _, end in steps:
            back[end].append(key)
    while left:
        first = left.pop()
        part = _reached(first, lambda key: [end for _, end in forth[key]]) & _reached(first, back.__getitem__)
        if moving <= {task for key in part for task, end in forth[key] if end in part}:
            return True
        left -= part
    return False


def _closed(known: Graph, states: set[int]) -> set[int]:
    """The largest part of `states` that no step leaves."""
    left = set(states)
    while leaving := {key for key in left if any(end not in left for _, end in known.steps[key])}:
        left -= leaving
    return left


def _reached(first: int, following: Callable[[int], list[int]]) -> set[int]:
    seen = {first}
    todo = [first]
    while todo:
        for other in following(todo.pop()):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen
