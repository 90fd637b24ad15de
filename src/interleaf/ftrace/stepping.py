"""The driver that takes one step of the model at a time, and can go back: it is for traces whose threads act on each
other, where the order of their steps has to be looked for (`orders`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from interleaf.hw.platform import Platform
from interleaf.kvm.design import Design
from interleaf.linux.rwlock import asks_to_yield
from interleaf.runtime import Execution, Task, World
from interleaf.runtime.cells import Cell
from interleaf.runtime.operations import Choose

from .drive import Driver, Thread
from .rewind import Past

PATIENCE = 20_000
"""Steps between two reactions after which the model is taken to be stuck."""

HELP = 1_000
"""Steps of others while a thread waits, after which it is taken to wait for what they do not do."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was taken, and the cells that it depends on."""

    at: int
    """How many steps were taken before it for the same event, not counting those of others."""
    round: int
    """How many detours were made before it for the same event."""
    task: Task
    length: int
    """Operations that the task had done after it."""
    reads: int
    writes: int

    def conflicts(self, later: Taken) -> bool:
        """Does it matter which of the two comes first?"""
        return bool(self.writes & (later.reads | later.writes) or self.reads & later.writes)


@dataclass(frozen=True, slots=True)
class Detour:
    """Before the step of that number, another task takes its steps until it has done so many operations."""

    at: int
    task: Task
    length: int


class SteppedDriver(Driver):
    """One machine with one process, a step at a time."""

    def __init__(self, design: Design, platform: Platform) -> None:
        self.taken: list[Taken] | None = None
        """The steps that are taken, while somebody wants to know."""
        self.detours: deque[Detour] = deque()
        self.rounds = 0
        """Detours that have been made since they were set."""
        self.steps = 0
        """Steps that were taken in all."""
        self.clock = 0
        """Steps since the detours were set."""
        super().__init__(design, platform, World())

    def _start(self, setup: Callable[[], None]) -> list[Task]:
        self.run = Execution(self.world, setup, step_limit=1 << 62)
        self.memory = self.run.memory
        self.past = Past(self.run)
        return self.run.unfinished

    def note(self, undo: Callable[..., object], *arguments: Any) -> None:
        self.past.note(undo, *arguments)

    def _rests(self, thread: Thread) -> None:
        self.past.rest(thread.task)

    def _reacted(self) -> None:
        """Its step goes on: the next one is somebody else's decision."""

    def _listen(self, task: Task, record: object) -> None:
        if not self.past.repeating:
            super()._listen(task, record)

    def go_round(self, detours: Iterable[Detour]) -> None:
        """Make these detours from here on, and forget others."""
        self.detours = deque(detours)
        self.clock = self.rounds = 0

    def advance(self, thread: Thread) -> bool:
        steps = helped = 0
        while not thread.reactions:
            if self.idle(thread) or steps > PATIENCE or helped > HELP:
                return False
            if self._step(thread.task):
                helped = 0
            elif self._asks_host(thread.task) or not self._others(thread.task):
                return False
            else:
                helped += 1
            steps += 1
        return True

    def wander(self) -> bool:
        if self.strays:
            return False
        return any(self._step(self.world.tasks[index]) for index in list(self.run.pending) if index not in self._mine)

    def ahead(self, task: Task, length: int | None = None) -> None:
        """Let a task take steps before its turn: until it has done `length` operations, reacts, or has to wait."""
        thread = self._mine.get(task.index)
        if thread is not None:
            if thread.reactions or self.idle(thread):
                return
            self.foresee(thread)
        for _ in range(PATIENCE):
            if task.index not in self.run.pending or (length is not None and self.past.length(task) >= length):
                return
            if (thread is not None and (thread.reactions or self.idle(thread))) or not self._take(task):
                return

    def busy(self) -> list[Thread]:
        """Threads that have something to do."""
        return [thread for thread in self._mine.values() if not self.idle(thread)]

    def looked(self, thread: Thread, *cells: Cell) -> None:
        self._go_round()
        if self.taken is not None:
            reads = 0
            for cell in cells:
                reads |= cell.bit
            self.taken.append(Taken(self.clock, self.rounds, thread.task, self.past.length(thread.task), reads, 0))

    def site(self, thread: Thread) -> str:
        op = self.run.pending.get(thread.task.index)
        return op.site[2] if op is not None else ""

    def _asks_host(self, task: Task) -> bool:
        """Does the task look at the host's mappings, of which the trace has to tell?"""
        op = self.run.pending.get(task.index)
        return op is not None and op.focus is not None and op.focus.owner is self.mm

    def _others(self, waiting: Task) -> bool:
        """A step of somebody else: of a task that the model has started by itself, of a thread that has what is waited
        for, or of another one; of none further than to its next reaction."""
        op = self.run.pending[waiting.index]
        wanted = op.focus.bit if op.focus is not None else 0
        held = self.memory.held

        def order(index: int) -> tuple[bool, bool]:
            return index in self._mine, not held[index].any & wanted

        for index in sorted(self.run.pending, key=order):
            task = self.world.tasks[index]
            thread = self._mine.get(index)
            if task is waiting:
                continue
            if thread is not None:
                if thread.reactions or self.idle(thread):
                    continue
                self.foresee(thread)
            if self._take(task, self._yielding(task) if held[index].any & wanted else ()):
                return True
        return False

    def _yielding(self, task: Task) -> Iterator[int]:
        """The choices of a task that holds what another one waits for: it yields where it can."""
        while True:
            op = self.run.pending[task.index]
            yield int(isinstance(op, Choose) and asks_to_yield(op))

    def _step(self, task: Task) -> bool:
        """A step of a task whose turn it is."""
        self._go_round()
        if task.index not in self.run.pending:
            return False
        if not self._take(task):
            return False
        self.clock += 1
        return True

    def _go_round(self) -> None:
        while self.detours and self.detours[0].at <= self.clock:
            detour = self.detours.popleft()
            self.ahead(detour.task, detour.length)
            self.rounds += 1

    def _take(self, task: Task, choices: Iterable[int] = ()) -> bool:
        if not self.past.step(task, choices):
            return False
        self.steps += 1
        step = self.run.steps.pop()
        if self.taken is not None:
            reads = step.reads | self.memory.further
            self.taken.append(Taken(self.clock, self.rounds, task, self.past.length(task), reads, step.writes))
        for violation in step.violations:
            self.past.note(self.violations.pop)
            self.violations.append(f"{violation.rule}: {violation.message}")
        return not step.fatal
