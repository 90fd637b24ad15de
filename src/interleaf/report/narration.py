"""A finding replayed, with everything that a story of it needs.

The replay is a live `Execution`: the same model code runs again, step for step, and says what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from interleaf.explore.outcome import DEADLOCK, LIVELOCK, STARVATION
from interleaf.kvm.kvm_host import KvmMmuPage
from interleaf.runtime import Execution, Object, Schedule, Step, Value, Violation, World
from interleaf.runtime.carrier import CHOICE, Note, Op, function_of
from interleaf.runtime.cells import Cell
from interleaf.runtime.memory import ALIVE
from interleaf.runtime.operations import Task
from interleaf.runtime.races import RaceDetector

from .roots import Root, roots

Calls: TypeAlias = tuple[tuple[str, int, str], ...]
"""File, line and function of the active functions of a task, innermost first."""


TURNS = 100
"""Turns that each task gets after the schedule of a livelock, to show that none of them ends."""


@dataclass(frozen=True, slots=True)
class Change:
    """A cell has another value now."""

    cell: Cell
    before: Value
    after: Value


@dataclass(frozen=True, slots=True)
class Told:
    """One operation that happened."""

    step: int
    """Position of its step in the schedule; -1 in the set-up."""
    task: str
    operation: str
    site: tuple[str, int, str]
    """File, line and function of the model code that asked for it."""
    function: str
    """The kernel's function that this is in: the innermost whose name does not begin with an underscore."""
    text: str
    notes: tuple[Note, ...]
    """What the model said before it."""
    changes: tuple[Change, ...]
    chosen: bool
    """The environment has chosen here, and not the first of its possibilities."""
    subject: Object | None
    """The object that the operation is mainly about (a lock, a refcount, a list entry)."""
    violations: tuple[Violation, ...]
    roots: tuple[Root, ...]
    """The roots after it."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Who did something to an object, and where."""

    task: str
    calls: Calls


@dataclass(slots=True)
class Life:
    """Where an object was allocated and freed."""

    allocated: Stack
    freed: Stack | None = None


@dataclass(slots=True)
class Narration:
    """What the replay of a schedule showed."""

    told: list[Told] = field(default_factory=list)
    lives: dict[str, Life] = field(default_factory=dict)
    """By name of the object, in the order of allocation."""
    levels: dict[str, int] = field(default_factory=dict)
    """Level of each shadow page that there ever was, by name."""
    violation: Violation | None = None
    """The violation that was looked for, if the replay shows it."""
    used: Stack | None = None
    """Who violated the property, and where."""
    waiting: tuple[str, ...] = ()
    """What each unfinished task would do next, at the end."""
    repeats: int | None = None
    """Position of the first of the last steps, if these can be repeated for ever."""


def narrate(setup: Callable[[], object], schedule: Schedule, signature: tuple[str, str]) -> Narration:
    """Replay `schedule` and tell it; `signature` is the (property, message) of the violation that it should show.

    Raises ModelError, with step, task and source line, if the model does not follow the schedule.
    """
    narration = Narration()
    run = _Replay(World(), setup, narration, signature)
    try:
        for step in run.replay(schedule):
            run.passed(step)
        run.conclude()
    finally:
        run.close()
    return narration


class _Replay(Execution):
    """An execution that tells `narration`; it is its own observer."""

    def __init__(
        self, world: World, setup: Callable[[], object], narration: Narration, signature: tuple[str, str]
    ) -> None:
        self._narration = narration
        self._signature = signature
        self._races = RaceDetector(self._site)
        self._step: Step | None = None
        self._position = -1
        self._mark = 0
        self._violations = 0
        self._states: list[object] = []
        """The states after each step of the schedule."""
        self._ran: list[Task] = []
        super().__init__(world, setup, observer=self, narrate=True)

    def access(self, task: int, cell: Cell, write: bool, plain: bool) -> None:
        """A shared field is used."""
        self._races.access(task, cell, write, plain)

    def order(self, task: int, token: Value, acquire: bool, release: bool) -> None:
        """An edge of happens-before."""
        self._races.order(task, token, acquire, release)

    def life(self, task: int, owner: Object, state: int) -> None:
        """An object is allocated or freed."""
        stack = Stack(self.world.tasks[task].name, self.carriers[task].calls)
        if state == ALIVE:
            self._narration.lives[owner.name] = Life(stack)
            if isinstance(owner, KvmMmuPage):
                self._narration.levels[owner.name] = self.memory.peek(KvmMmuPage.role.cell(owner)).level
        else:
            self._narration.lives[owner.name].freed = stack

    def passed(self, step: Step) -> None:
        """A step of the schedule has been made."""
        frames = tuple((task, carrier.state) for task, carrier in self.carriers.items())
        self._states.append((self.memory.zobrist, frames))
        self._ran.append(step.task)

    def conclude(self) -> None:
        """The schedule is at its end. What is each task about to do, and what does the whole show?"""
        self._narration.waiting = tuple(
            f"{task} waits in {self.pending[task.index].name} ({self.pending[task.index].site[2]})"
            for task in self.unfinished
        )
        for race in self._races.races:
            if race.signature == self._signature and self._narration.violation is None:
                self._narration.violation = race
        rule = self._signature[0]
        stuck = {DEADLOCK: self._blocked, LIVELOCK: self._spins}.get(rule)
        if (rule in (LIVELOCK, STARVATION) and self._turns()) or (stuck is not None and stuck()):
            self._narration.violation = Violation(*self._signature)

    def _blocked(self) -> bool:
        """Can no task run, although some have not ended?"""
        return bool(self.unfinished) and not any(self.step(task) for task in self.unfinished)

    def _turns(self) -> bool:
        """Do the last steps lead back to where they began, with all in them who can run at the end?"""
        if not self._states or self._states[-1] not in self._states[:-1]:
            return False
        first = self._states.index(self._states[-1]) + 1
        self.narrate = False
        if any(self.step(task) for task in self.unfinished if task not in self._ran[first:]):
            return False
        self._narration.repeats = first
        return True

    def _spins(self) -> bool:
        """Does no task end, although they all get their turn? (What else could be scheduled, the search has seen.)"""
        running = self.unfinished
        self.narrate = False
        steps = [self.step(task) for _ in range(TURNS) for task in self.unfinished]
        return any(steps) and self.unfinished == running

    def _site(self) -> tuple[str, int, str]:
        op = self.pending.get(self.memory.task)
        return op.site if op is not None else ("", 0, "")

    def _record(self, step: Step, op: Op, result: Value, failed: bool = False) -> None:
        super()._record(step, op, result, failed)
        if not self.narrate:
            return
        if step is not self._step:
            self._step = step
            self._violations = 0
            self._position += step.task is not self.setup
        violations = tuple(step.violations[self._violations :])
        self._violations = len(step.violations)
        changes = self._changes()
        self._note_levels(changes)
        event = step.events[-1]
        self._narration.told.append(
            Told(
                self._position,
                event.task,
                event.operation,
                event.site,
                self._function(step.task.index, event.site[2]),
                event.text,
                event.notes,
                changes,
                op.kind == CHOICE and bool(result),
                op.focus.owner if op.focus is not None else None,
                violations,
                roots(self.memory),
            )
        )
        for violation in violations:
            if violation.signature == self._signature and self._narration.violation is None:
                self._narration.violation = violation
                self._narration.used = Stack(step.task.name, self.carriers[step.task.index].calls)

    def _function(self, task: int, innermost: str) -> str:
        return function_of(name for _, _, name in self.carriers[task].calls) or innermost

    def _changes(self) -> tuple[Change, ...]:
        """The cells that the operation has changed."""
        memory = self.memory
        before: dict[int, Value] = {}
        for index, old in memory.journal[self._mark :]:
            if index >= 0:
                before.setdefault(index, old)
        self._mark = len(memory.journal)
        changes = (Change(self.world.cells[index], old, memory.values[index]) for index, old in before.items())
        return tuple(change for change in changes if change.before != change.after)

    def _note_levels(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            owner = change.cell.owner
            if not isinstance(owner, KvmMmuPage) or change.cell is not KvmMmuPage.role.cell(owner):
                continue
            if owner.life is not None and self.memory.peek(owner.life) == ALIVE:
                self._narration.levels[owner.name] = change.after.level
