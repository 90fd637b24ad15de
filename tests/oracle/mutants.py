"""Engines that are wrong on purpose, each in one way.

If the comparison with brute force did not notice them, it would not notice a defect of that kind either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

from interleaf.explore import footprint as modes
from interleaf.explore.bounded import BoundedSearch
from interleaf.explore.branches import Frame
from interleaf.explore.footprint import DEPENDS, INSIDE_READ, INSIDE_WRITE, SPAN_READ, SPAN_WRITE, Footprint
from interleaf.explore.frame import Footprint as StateFootprint
from interleaf.explore.machine import Basic
from interleaf.explore.path import Path
from interleaf.explore.states import StateSearch
from interleaf.explore.steps import StepSearch
from interleaf.explore.waits import Wait, Waits
from interleaf.runtime.carrier import Carrier, Op
from interleaf.runtime.cells import Cell
from interleaf.runtime.memory import Memory
from interleaf.runtime.values import Value

from .compare import Search, by_states, by_steps
from .programs import Program
from .telling import ALONE, LOST_UPDATE


class NeverWakesSteps(StepSearch):
    """Whoever sleeps goes on sleeping, whatever happens."""

    def _asleep(self, frame: Frame, task: int, footprint: Footprint) -> dict[int, Footprint]:
        return {other: theirs for other, theirs in frame.sleep.items() if other != task}


class NeverWakesStates(StateSearch):
    """Whoever sleeps goes on sleeping, whatever happens."""

    def _arrive(self, sleep: dict[int, StateFootprint], *how: Any) -> None:
        if self.stack:
            above, last = self.stack[-1], self.machine.memory.task
            sleep = {task: theirs for task, theirs in (above.sleep | above.done).items() if task != last}
        super()._arrive(sleep, *how)


class PrunesVisited(StateSearch):
    """A state that was seen is not explored again, whoever slept there then."""

    def _arrive(self, sleep: dict[int, StateFootprint], *how: Any) -> None:
        key = self.machine.key()
        if key in self.visited:
            self.visited[key] = 0
        super()._arrive(sleep, *how)


class ForgetsBudget(BoundedSearch):
    """A state that was seen is not explored again, whatever could still be spent there then."""

    def _push(self, last: int, budget: int, arrived: tuple[str, list[Basic]]) -> None:
        key = (self.machine.key(), last)
        if key in self.visited:
            self.visited[key] = budget
        super()._push(last, budget, arrived)


class ForgetsLast(BoundedSearch):
    """Which task ran last is not part of what is known of a state."""

    def _push(self, last: int, budget: int, arrived: tuple[str, list[Basic]]) -> None:
        key = self.machine.key()
        budgets = [known for (other, _), known in self.visited.items() if other == key]
        if budgets:
            self.visited[key, last] = max(budgets)
        super()._push(last, budget, arrived)


class NobodyWaits(Waits):
    """What waits at the end is of no interest."""

    def of_waiting(self, op: Op) -> list[Wait]:
        return []


class IgnoresWaiting(StepSearch):
    """Tasks that wait at the end take no part in the analysis."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waits = NobodyWaits()


class AnyTime(Path):
    """A step could have come before any other, even where its task would have had to wait."""

    def _without_waiting(self, task: int, cell: Cell, exclusive: bool, position: int, after: int) -> int | None:
        return after


class NeverHasToWait(StepSearch):
    """Waiting for a lock is no reason why a step could not have come earlier."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path = AnyTime(self.world, self.path.eager)


@contextlib.contextmanager
def no_conflict(one: int, other: int) -> Iterator[None]:
    """Two lock modes do not depend on each other."""
    changed = {**DEPENDS}
    changed[one] &= ~other
    changed[other] &= ~one
    with mock.patch.object(modes, "DEPENDS", changed):
        yield


@contextlib.contextmanager
def blind_reads() -> Iterator[None]:
    """Reads of operations other than plain and marked accesses leave no footprint."""
    load = Memory.load_cell

    def blind(self: Memory, cell: Cell, plain: bool = False) -> Value:
        reads = self.reads
        value = load(self, cell, plain)
        self.reads = reads
        return value

    with mock.patch.object(Memory, "load_cell", blind):
        yield


@contextlib.contextmanager
def shared_protects() -> Iterator[None]:
    """A lock that is only shared counts as protection of what is written under it."""

    def learn(self: Memory, cell: Cell, write: bool) -> None:
        if cell.learn(self.task, write, self.held[self.task].any, self.beside):
            self.broken = cell

    with mock.patch.object(Memory, "learn", learn):
        yield


@contextlib.contextmanager
def alone_is_unseen() -> Iterator[None]:
    """Accesses made while nobody else could run are not learned of."""
    learn = Memory.learn

    def deaf(self: Memory, cell: Cell, write: bool) -> None:
        if self.beside:
            learn(self, cell, write)

    with mock.patch.object(Memory, "learn", deaf):
        yield


class ForeseesNoChildren(StateSearch):
    """What the tasks that a task will start are going to do is not foreseen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.machine.automata.starters = dict  # type: ignore[method-assign]


@contextlib.contextmanager
def forgetful_frames() -> Iterator[None]:
    """A call frame does not remember what its operations returned, only that they did."""
    fold = Carrier.fold

    with mock.patch.object(Carrier, "fold", lambda self, result: fold(self, None)):
        yield


@contextlib.contextmanager
def forgetful_returns() -> Iterator[None]:
    """A call frame does not remember what its calls returned."""
    leave = Carrier.leave

    with mock.patch.object(Carrier, "leave", lambda self, result: leave(self, None)):
        yield


@dataclass(frozen=True)
class Mutant:
    """A wrong engine, and the mixes of programs in which that shows."""

    name: str
    mixes: tuple[str, ...]
    search: Search
    wrong: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    telling: tuple[Program, ...] = ()
    """Programs that show it, where random ones seldom do."""


LOCKS = ("locks", "rwlocks", "drops")
DATA = ("marked", "references", "everything")

MUTANTS = [
    Mutant("steps: sleeping tasks never wake", DATA, partial(by_steps, search=NeverWakesSteps)),
    Mutant("states: sleeping tasks never wake", DATA, partial(by_states, search=NeverWakesStates)),
    Mutant("steps: waiting tasks are ignored", LOCKS, partial(by_steps, search=IgnoresWaiting)),
    Mutant("steps: waiting never matters", LOCKS, partial(by_steps, search=NeverHasToWait)),
    Mutant("steps: write spans ignore each other", LOCKS, by_steps, lambda: no_conflict(SPAN_WRITE, SPAN_WRITE)),
    Mutant("steps: write spans ignore read spans", LOCKS, by_steps, lambda: no_conflict(SPAN_WRITE, SPAN_READ)),
    Mutant("steps: write spans ignore writes", LOCKS, by_steps, lambda: no_conflict(SPAN_WRITE, INSIDE_WRITE)),
    Mutant("steps: write spans ignore reads", LOCKS, by_steps, lambda: no_conflict(SPAN_WRITE, INSIDE_READ)),
    Mutant("steps: read spans ignore writes", LOCKS, by_steps, lambda: no_conflict(SPAN_READ, INSIDE_WRITE)),
    Mutant("steps: operations read without a footprint", DATA, by_steps, blind_reads),
    Mutant("states: operations read without a footprint", DATA, by_states, blind_reads),
    Mutant("states: sharing a lock protects writes", ("rwlocks",), by_states, shared_protects, (LOST_UPDATE,)),
    Mutant("states: who is alone is not seen", ("marked",), by_states, alone_is_unseen, (ALONE,)),
    Mutant("states: nobody foresees children", ("lives",), partial(by_states, search=ForeseesNoChildren)),
    Mutant("states: frames forget results", DATA, by_states, forgetful_frames),
    Mutant("states: frames forget return values", ("calls", "marked"), by_states, forgetful_returns),
]
