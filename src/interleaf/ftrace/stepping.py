"""The driver that can go back, and take the operations of the model in other orders: it is for traces whose threads act
on each other, where the order has to be looked for (`orders`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from interleaf.hw.platform import Platform
from interleaf.kvm.design import Design
from interleaf.linux.rwlock import asks_to_yield
from interleaf.runtime import Rewind, RewindMemory, RewindWorld, Task
from interleaf.runtime.carrier import Op
from interleaf.runtime.cells import Cell
from interleaf.runtime.operations import Choose
from interleaf.runtime.rewind import Access

from .drive import Driver, Thread

PATIENCE = 1_000_000
"""Operations between two reactions after which the model is taken to be stuck."""

TURN = 2_000
"""Operations without a reaction after which others go on, too, because a thread may look again and again at what they
have to change. In the traces of real kernels it takes 1,028 at most."""

LOOK, FEW = 64, 8
"""A task that depends on no more than so few cells in so many operations does not get on."""

HELP = 5_000
"""Operations of others while a thread waits, after which it is taken to wait for what they do not do."""


@dataclass(slots=True)
class Taken:
    """An operation that was performed, and what it depends on."""

    at: int
    """How many operations were performed before it for the same event, not counting those of others."""
    round: int
    """How many detours were made before it for the same event."""
    task: Task
    length: int
    """Operations that the task had performed after it."""
    reads: set[object]
    writes: set[object]
    waits: bool = False
    """It could not be performed, and would have been."""


@dataclass(frozen=True, slots=True)
class Detour:
    """Before the operation of that number, another task performs its own until it has performed so many."""

    at: int
    task: Task
    length: int
    bold: bool = False
    """As in `SteppedDriver.ahead`."""


class SteppedDriver(Driver):
    """One machine with one process, in a live run of the model that can go back."""

    def __init__(self, design: Design, platform: Platform) -> None:
        self.taken: list[Taken] | None = None
        """The operations that are performed, while somebody wants to know."""
        self.bold = False
        """Operations for which tasks wait are told, too."""
        self.detours: deque[Detour] = deque()
        self.rounds = 0
        """Detours that have been made since they were set."""
        self.operations = 0
        """Operations that were performed since somebody set this, and are not undone."""
        self.performed = 0
        """Operations that were performed in all."""
        self.clock = 0
        """Operations since the detours were set, not counting those of others."""
        self.past = RewindWorld()
        super().__init__(design, platform, self.past)

    def _start(self, setup: Callable[[], None]) -> list[Task]:
        self.live = Rewind(self.past, setup)
        assert isinstance(self.live.memory, RewindMemory)
        self.memory: RewindMemory = self.live.memory
        self.memory.decide = self._decide
        return self.live.unfinished

    def note(self, undo: Callable[..., object], *arguments: Any) -> None:
        self.past.note(undo, *arguments)

    def _rests(self, thread: Thread) -> None:
        self.live.rest(thread.task)

    def _reacted(self) -> None:
        self.live.stop()

    def _listen(self, task: Task, record: object) -> None:
        if not self.past.repeating:
            super()._listen(task, record)

    def go_round(self, detours: Iterable[Detour]) -> None:
        """Make these detours from here on, and forget others."""
        self.detours = deque(detours)
        self.clock = self.rounds = 0

    def advance(self, thread: Thread) -> bool:
        left, turn, helped = PATIENCE, TURN, 0
        while not thread.reactions:
            if left <= 0 or helped > HELP or self.idle(thread):
                return False
            self._go_round()
            ran = self._run(thread.task, min(turn, self.detours[0].at - self.clock) if self.detours else turn, True)
            left, turn = left - ran, turn - ran
            if ran:
                helped = 0
                if not turn and not thread.reactions and not self.idle(thread):
                    turn = TURN
                    if not self._help(thread.task) and self._spins(thread.task):
                        return False
                continue
            if self.bold and not helped:
                self._waits(thread.task)
            if self._asks_host() or not self._others(thread.task):
                return False
            helped += 1
        return True

    def wander(self) -> bool:
        if self.strays:
            return False
        return any(self._run(task, PATIENCE) for task in self.live.unfinished if task.index not in self._mine)

    def ahead(self, task: Task, length: int | None = None, bold: bool = False) -> None:
        """Let a task act before its turn: until it has performed `length` operations, or TURN, reacts, or has to wait.
        `bold`: it may begin something, and (with `length`) whoever has what it waits for goes on until it gives that
        up."""
        thread = self._mine.get(task.index) if self.live.has(task) else None
        if thread is not None and not thread.reactions:
            self.foresee(thread, bold)
        turn, helped = TURN, 0
        while self.live.has(task) and not (thread is not None and (thread.reactions or self.idle(thread))):
            left = turn if length is None else min(turn, length - self.live.done(task))
            if left <= 0:
                return
            ran = self._run(task, left)
            turn -= ran
            if ran:
                helped = 0
                continue
            if bold and not helped:
                self._waits(task)
            if not bold or length is None or helped > HELP or not self._others(task, True):
                return
            helped += 1

    def looked(self, thread: Thread, *cells: Cell) -> None:
        self._go_round()
        if self.taken is not None:
            done = self.live.done(thread.task)
            self.taken.append(Taken(self.clock, self.rounds, thread.task, done, set(cells), set()))

    def site(self, thread: Thread) -> str:
        return next((function for _file, _line, function in self.live.calls(thread.task)), "")

    def _asks_host(self) -> bool:
        """Does the task that has just not run look at the host's mappings, of which the trace has to tell?"""
        return any(cell.owner is self.mm for cell in self.memory.waits_for)

    def _others(self, waiting: Task, who_has: bool = False) -> bool:
        """An operation of somebody else: of who has what is waited for, and (not with `who_has`) of a task that the
        model has started by itself, or of another thread; of none further than to its next reaction."""
        wanted = set(self.memory.waits_for)
        held = self.memory.held

        def has(task: Task) -> bool:
            return any(cell in wanted for cell, _exclusive in held[task.index].locks)

        for task in sorted(self.live.unfinished, key=lambda task: (not has(task), task.index in self._mine)):
            thread = self._mine.get(task.index)
            if task is waiting or (who_has and not has(task)):
                continue
            if thread is not None:
                if thread.reactions or self.idle(thread):
                    continue
                self.foresee(thread)
            self.memory.contended = has(task)
            ran = self._run(task, 1)
            self.memory.contended = False
            if ran:
                return True
        return False

    def _help(self, waiting: Task) -> int:
        """Let others go on; how many operations they did."""
        helped = 0
        while helped < HELP and self._others(waiting):
            helped += 1
        return helped

    def _spins(self, task: Task) -> bool:
        """Does the task look again and again at what others would have to change? It goes on doing so meanwhile."""
        taken, self.taken = self.taken, []
        ran = self._run(task, LOOK, True)
        seen = {what for step in self.taken for what in (*step.reads, *step.writes)}
        if taken is not None:
            taken += self.taken
        self.taken = taken
        return ran == LOOK and len(seen) <= FEW

    def _decide(self, choice: Op) -> int:
        """A task that holds what another one waits for yields where it can; other choices are 0."""
        return int(self.memory.contended and isinstance(choice, Choose) and asks_to_yield(choice))

    def _go_round(self) -> None:
        while self.detours and self.detours[0].at <= self.clock:
            detour = self.detours.popleft()
            self.ahead(detour.task, detour.length, detour.bold)
            self.rounds += 1

    def _run(self, task: Task, operations: int, turn: bool = False) -> int:
        live, memory = self.live, self.memory
        memory.accesses = accesses = None if self.taken is None else list[Access]()
        before = live.done(task)
        ran = live.run(task, operations)
        memory.accesses = None
        for number, parts in groupby(accesses or (), lambda access: access.operation):
            self._took(self.clock + (number - 1) * turn, task, before + number, parts)
        self.operations += ran
        self.performed += ran
        self.clock += ran * turn
        for violation in live.violations:
            self.past.note(self.violations.pop)
            self.violations.append(f"{violation.rule}: {violation.message}")
        live.violations.clear()
        return ran

    def _waits(self, task: Task) -> None:
        """A task cannot go on: whoever uses what it waits for is in its way."""
        if self.taken is not None and self.live.has(task):
            wanted: set[object] = {*self.memory.waits_for}
            length = self.live.done(task) + 1
            self.taken.append(Taken(self.clock, self.rounds, task, length, set(), wanted, True))

    def _took(self, at: int, task: Task, length: int, accesses: Iterable[Access]) -> None:
        assert self.taken is not None
        taken = Taken(at, self.rounds, task, length, set(), set())
        for access in accesses:
            (taken.writes if access.write else taken.reads).add(access.what)
        self.taken.append(taken)
