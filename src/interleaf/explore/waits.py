"""What a step may have to wait for, found out on the way.

Nothing says of an operation whether it can wait. So the search over steps takes all to go ahead always; the first time
that one of a kind has to wait, it begins again with that knowledge (which is sound as the lock reduction is: the last
pass relies on nothing that did not hold all through it). Two kinds of waiting are told apart: for a lock that somebody
holds, and for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from interleaf.runtime.carrier import Op
from interleaf.runtime.cells import Cell
from interleaf.runtime.memory import Memory

from .footprint import Turn


class Wait(NamedTuple):
    """What a step's first operation may have to wait for."""

    cell: Cell | None
    """The lock, or None for anything else."""
    exclusive: bool


ANYTHING = Wait(None, True)


class NewWait(Exception):
    """An operation waits in a way that was not known; the search begins again."""


class Waits:
    """What kinds of operation are known to wait, and for what."""

    def __init__(self) -> None:
        self._for_lock: dict[Any, bool] = {}
        self._exclusive: dict[Any, bool] = {}
        """How operations that take a lock take it."""

    def known(self) -> tuple[object, ...]:
        """All that has been learned by now."""
        return dict(self._for_lock), dict(self._exclusive)

    def waits(self, op: Op, memory: Memory) -> None:
        """`op` has to wait. Raises NewWait if that was not known of its kind."""
        kind = kind_of(op)
        known = self._for_lock.get(kind)
        held = False
        if op.focus is not None:
            exclusive = self._exclusive.get(kind, True)
            bit = op.focus.bit
            held = any((theirs.any if exclusive else theirs.exclusive) & bit for theirs in memory.held)
        if known is None or (known and not held):
            self._for_lock[kind] = held
            raise NewWait

    def of_step(self, op: Op, turns: Sequence[Turn]) -> Wait | None:
        """What a step that began with `op`, and took and gave back locks in these turns, might have waited for.

        None if `op` never waits. Raises NewWait if it takes its lock in another way than its kind did before.
        """
        kind = kind_of(op)
        lock: Wait | None = None
        if turns and turns[0].taken and turns[0].cell is op.focus:
            lock = Wait(turns[0].cell, turns[0].exclusive)
            if self._exclusive.setdefault(kind, lock.exclusive) != lock.exclusive and self._for_lock.get(kind):
                self._for_lock[kind] = False
                raise NewWait
        known = self._for_lock.get(kind)
        if known is None:
            return None
        return lock if known and lock is not None else ANYTHING

    def of_waiting(self, op: Op) -> list[Wait]:
        """What the waiting `op` waits for; more than one where it is not known how it takes its lock."""
        kind = kind_of(op)
        if not self._for_lock[kind]:
            return [ANYTHING]
        exclusive = self._exclusive.get(kind)
        return [Wait(op.focus, way) for way in ((True, False) if exclusive is None else (exclusive,))]


def kind_of(op: Op) -> Any:
    """What operations of one kind have in common."""
    return getattr(op, "function", type(op))
