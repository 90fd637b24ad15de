"""Fair loops: what a fair scheduler can do for ever, in a graph of states.

A run that goes on for ever is *fair* if each task that can run again and again does run again and again (strong
fairness). For a task that waits for a lock this says that the lock is handed over to it some day, as the kernel's
queued locks do; whatever else tasks wait for comes to stay, and there it says no more than that nobody who could go
on is forgotten (weak fairness). The environment need not be fair: an allocation may fail, or the lock be contended,
each time that it is asked. Only where no more than one task runs, nobody is there whom it could give way to, and
each outcome that is possible again and again comes.

A finite graph has a fair run without end where it has a set of states that are all reached from each other, in which
each task that can run in one of them takes a step, too (Emerson & Lei, Sci. Comput. Program. 8, 1987). If there is a
task that does not, it can be left out only where it cannot run: these states are looked at again by themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

N = TypeVar("N")


class Step(NamedTuple):
    """One step of a task from a state to another one."""

    task: int
    target: int
    """Key of the state to which it leads."""
    progress: bool
    """Does the task complete a round of what it does for as long as it is asked to?"""


@dataclass(slots=True)
class State:
    """A state, with all steps that can be taken there; those to states that cannot be in a loop too."""

    enabled: int = 0
    """The tasks that can run, as a bit set."""
    steps: list[Step] = field(default_factory=list)


def components(nodes: Iterable[N], following: Callable[[N], Iterable[N]]) -> Iterator[list[N]]:
    """Sets of nodes that are all reached from each other, those without an edge inside included (Tarjan 1972).

    `following` may name nodes that are not among `nodes`; they are searched too.
    """
    number: dict[N, int] = {}
    low: dict[N, int] = {}
    stack: list[N] = []
    on_stack: set[N] = set()
    for first in nodes:
        if first in number:
            continue
        work = [(first, iter(following(first)))]
        number[first] = low[first] = len(number)
        stack.append(first)
        on_stack.add(first)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in number:
                    number[other] = low[other] = len(number)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(following(other))))
                    break
                if other in on_stack:
                    low[node] = min(low[node], number[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == number[node]:
                    found = [stack.pop()]
                    while found[-1] != node:
                        found.append(stack.pop())
                    on_stack.difference_update(found)
                    yield found


def fair_loops(states: Mapping[int, State], among: Collection[int], stuck: int | None) -> Iterator[set[int]]:
    """The sets of states, of those `among`, in which a fair run can stay for ever, visiting all of them.

    `stuck` is a task that must not make progress there; None if it does not matter.
    """

    def inside(part: Set[int], key: int) -> Iterator[Step]:
        for step in states[key].steps:
            if step.target in part and not (step.progress and step.task == stuck):
                yield step

    work: list[set[int]] = [set(among)]
    while work:
        part = work.pop()
        for found in components(sorted(part), lambda key, part=part: [step.target for step in inside(part, key)]):  # type: ignore[misc]
            loop = set(found)
            moving = enabled = 0
            for key in loop:
                enabled |= states[key].enabled
                for step in inside(loop, key):
                    moving |= 1 << step.task
            if not moving:
                continue
            if forgotten := enabled & ~moving:
                rest = {key for key in loop if not states[key].enabled & forgotten}
            elif moving & (moving - 1):
                rest = loop
            else:
                rest = {key for key in loop if all(step.target in loop for step in states[key].steps)}
            if len(rest) == len(loop):
                yield loop
            elif rest:
                work.append(rest)


def tour(states: Mapping[int, State], loop: Set[int], first: int, stuck: int | None) -> list[tuple[int, int]]:
    """A way from `first` back to it inside the fair `loop`, in which each task that moves there takes a step.

    As (state, position of the step taken there).
    """
    left = 0
    for key in loop:
        for step in states[key].steps:
            if step.target in loop and not (step.progress and step.task == stuck):
                left |= 1 << step.task
    way: list[tuple[int, int]] = []
    here = first
    while left or here != first:
        wanted = left
        came: dict[int, tuple[int, int]] = {}
        queue = deque([here])
        seen = {here}
        end: tuple[int, int] | None = None
        while queue and end is None:
            key = queue.popleft()
            for position, step in enumerate(states[key].steps):
                if step.target not in loop or (step.progress and step.task == stuck):
                    continue
                if wanted >> step.task & 1 or (not wanted and step.target == first):
                    end = (key, position)
                    break
                if step.target not in seen:
                    seen.add(step.target)
                    came[step.target] = (key, position)
                    queue.append(step.target)
        assert end is not None, "all states of a loop are reached from each other"
        leg = [end]
        while leg[-1][0] != here:
            leg.append(came[leg[-1][0]])
        way += reversed(leg)
        for key, position in leg:
            left &= ~(1 << states[key].steps[position].task)
        here = states[end[0]].steps[end[1]].target
    return way
