"""Going back: the machine that a trace drives, as it was at an earlier moment.

The memory has its journal. What the driver keeps beside it is undone by what was noted when it changed; tasks that have
run since are begun again with the results that they had got until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from interleaf.runtime import Execution, Task
from interleaf.runtime.carrier import Carrier

Undo: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]
"""A function that undoes a change, and its arguments."""


@dataclass(slots=True)
class Mark:
    """A moment to go back to."""

    past: int
    journal: int
    zobrist: int


class Past:
    """What has happened to an execution, as far as somebody may want to go back."""

    def __init__(self, run: Execution) -> None:
        self._run = run
        self._undo: list[Undo] = []
        self._again: dict[Carrier, tuple[int, int]] = {}
        self.repeating = False
        """Tasks are being begun again: what they say has been heard."""
        for carrier in run.carriers.values():
            carrier.log = []

    def note(self, undo: Callable[..., object], *arguments: Any) -> None:
        """Something has changed beside the memory; `undo` makes it what it was."""
        self._undo.append((undo, arguments))

    def mark(self) -> Mark:
        return Mark(len(self._undo), len(self._run.memory.journal), self._run.memory.zobrist)

    def step(self, task: Task, choices: Iterable[int] = ()) -> bool:
        """A step of a task; False if its operation cannot happen now. `choices` as in `Execution.step`."""
        run = self._run
        carrier = run.carriers[task.index]
        assert carrier.log is not None
        known, before = len(run.carriers), len(carrier.log)
        if run.step(task, choices) is None:
            return False
        self._undo.append((self._untake, (task.index, carrier, before)))
        ended = task.index not in run.carriers
        if len(run.carriers) + ended != known:
            for index in list(run.carriers)[known - ended :]:
                run.carriers[index].log = []
                self._undo.append((self._unstart, (index,)))
        return True

    def length(self, task: Task) -> int:
        """Operations that the task has done since it rested; none if it has ended."""
        carrier = self._run.carriers.get(task.index)
        return len(carrier.log) if carrier is not None and carrier.log is not None else 0

    def rest(self, task: Task) -> None:
        """The task is where its function begins: what it has done is not needed to begin it again."""
        carrier = self._run.carriers[task.index]
        self._undo.append((self._unrest, (carrier, carrier.log)))
        carrier.log = []

    def back(self, mark: Mark) -> None:
        """Go back to an earlier moment."""
        run = self._run
        while len(self._undo) > mark.past:
            undo, arguments = self._undo.pop()
            undo(*arguments)
        run.memory.rollback(mark.journal, mark.zobrist)
        self.repeating = True
        for carrier, (index, length) in self._again.items():
            assert carrier.log is not None
            carrier.kill()
            results = carrier.log[:length]
            run.pending[index] = carrier.start(tuple(results))
            run.carriers[index] = carrier
            carrier.log = results
        self.repeating = False
        self._again.clear()

    def forget(self, oldest: Mark | None, later: Iterable[Mark] = ()) -> None:
        """Nobody goes back further than to `oldest`, which is one of `later` (or anywhere at all, if None)."""
        journal = self._run.memory.journal
        if oldest is None:
            self._undo.clear()
            journal.clear()
            return
        past, entries = oldest.past, oldest.journal
        del self._undo[:past], journal[:entries]
        for mark in later:
            mark.past -= past
            mark.journal -= entries

    # how to undo

    def _untake(self, index: int, carrier: Carrier, before: int) -> None:
        self._again[carrier] = index, before

    def _unstart(self, index: int) -> None:
        carrier = self._run.carriers.pop(index, None)
        self._run.pending.pop(index, None)
        for known in [each for each, (number, _length) in self._again.items() if number == index]:
            known.kill()
            del self._again[known]
        if carrier is not None:
            carrier.kill()

    def _unrest(self, carrier: Carrier, log: list[Any]) -> None:
        carrier.log = log
        if carrier in self._again:
            self._again[carrier] = self._again[carrier][0], len(log)
