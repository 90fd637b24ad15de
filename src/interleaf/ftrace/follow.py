"""The driver that runs each thread of the model at once until its next reaction, and cannot go back: all that most
traces need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interleaf.hw.platform import Platform
from interleaf.kvm.design import Design
from interleaf.runtime import Live, LiveWorld, Task
from interleaf.runtime.cells import Cell

from .drive import Driver, Thread

PATIENCE = 1_000_000
"""Operations between two reactions after which the model is taken to be stuck."""


class LiveDriver(Driver):
    """One machine with one process, in a live run of the model."""

    def __init__(self, design: Design, platform: Platform) -> None:
        super().__init__(design, platform, LiveWorld())

    def _start(self, setup: Callable[[], None]) -> list[Task]:
        assert isinstance(self.world, LiveWorld)
        self.live = Live(self.world, setup)
        self.memory = self.live.memory
        return self.live.unfinished

    def note(self, undo: Callable[..., object], *arguments: Any) -> None:
        """Nobody goes back."""

    def looked(self, thread: Thread, *cells: Cell) -> None:
        """Nobody looks for another order."""

    def _rests(self, thread: Thread) -> None:
        """Nobody begins it again."""

    def give_back(self, thread: Thread) -> None:
        self._free.insert(0, thread)  # the last one first, so that what is kept of each is kept of few

    def advance(self, thread: Thread) -> bool:
        left = PATIENCE
        while not thread.reactions:
            if left <= 0 or self.idle(thread):
                return False
            ran = self._run(thread.task, left)
            if not ran and not thread.reactions:
                ran = self._others(thread.task)
                if not ran:
                    return False
            left -= ran
        return True

    def wander(self) -> bool:
        if self.strays:
            return False
        return any(self._run(task, PATIENCE) for task in self.live.unfinished if task.index not in self._mine)

    def site(self, thread: Thread) -> str:
        return next((function for _file, _line, function in self.live.calls(thread.task)), "")

    def _others(self, waiting: Task) -> int:
        """An operation of somebody else: of a task that the model has started by itself, or of a thread that is busy,
        but of none further than to its next reaction."""
        for task in sorted(self.live.unfinished, key=lambda task: task.index in self._mine):
            thread = self._mine.get(task.index)
            if task is waiting or (thread is not None and (thread.reactions or self.idle(thread))):
                continue
            if thread is not None:
                self.foresee(thread)
            if self._run(task, 1):
                return 1
        return 0

    def _run(self, task: Task, operations: int) -> int:
        ran = self.live.run(task, operations)
        for violation in self.live.violations:
            self.violations.append(f"{violation.rule}: {violation.message}")
        self.live.violations.clear()
        return ran

    def _reacted(self) -> None:
        self.live.stop()
