"""Sleepable RCU (kernel/rcu/srcutree.c, v6.12): readers of one srcu_struct may sleep, and delay only its own waiters.

srcu_read_lock() returns an index that srcu_read_unlock() must be given back; nested readers each have one of their
own. Waiting for readers while being one is a self-deadlock. Lockdep orders srcu_structs with locks: whoever takes
a mutex in a reader must not be waited for under that mutex.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar, cast

from interleaf.runtime import BLOCK, Memory, Object, Violation, routine
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.cells import Cell
from interleaf.runtime.findings import ViolationRaised
from interleaf.runtime.objects import Field
from interleaf.runtime.values import Value

from .grace import Readers, begin, enter, leave, over
from .lockdep import RECURSIVE_READ, lock_acquire, lock_sync, may_sleep, place
from .rcu import Dereference

T = TypeVar("T")

NESTING = 8
"""A task is inside one srcu_struct at most this often at a time."""


class srcu_struct(Readers):
    """One domain of sleepable RCU. A reader is task index * NESTING + index."""


class _SrcuOp(Op):
    marked = True
    verb: ClassVar[str] = ""

    def __init__(self, s: srcu_struct) -> None:
        self.s = s
        self.cell = srcu_struct.readers.cell(s)

    def text(self, result: Value) -> str:
        return f"{self.verb} {self.s}"


class _ReadLock(_SrcuOp):
    name = "srcu_read_lock"
    verb = "enters a reader of"

    def __init__(self, s: srcu_struct) -> None:
        super().__init__(s)
        self.focus = self.cell

    def run(self, memory: Memory) -> int:
        mine = memory.peek(self.cell) >> memory.task * NESTING
        for index in range(NESTING):
            if not mine >> index & 1:
                lock_acquire(memory, self.cell, RECURSIVE_READ, self.site)
                enter(memory, self.cell, memory.task * NESTING + index)
                return index
        raise ViolationRaised(Violation("lockdep", f"readers of {self.s} nest more than {NESTING} deep", True))


class _ReadUnlock(_SrcuOp):
    name = "srcu_read_unlock"
    verb = "leaves the reader of"
    releases = True

    def __init__(self, s: srcu_struct, index: int) -> None:
        super().__init__(s)
        self.focus = self.cell
        self.index = index

    def run(self, memory: Memory) -> None:
        reader = memory.task * NESTING + self.index
        if not 0 <= self.index < NESTING or not memory.peek(self.cell) >> reader & 1:
            task = memory.world.tasks[memory.task]
            message = (
                f"{task} leaves {self.s} in {place(self.site)} with index {self.index}, which it did not get there"
            )
            raise ViolationRaised(Violation("lockdep", f"bad unlock balance: {message}", True, self.s.name))
        leave(memory, self.s, self.cell, reader)


class _Synchronize(_SrcuOp):
    name = "synchronize_srcu"
    verb = "begins a grace period of"

    def run(self, memory: Memory) -> bool:
        lock_sync(memory, self.cell, self.site)
        may_sleep(memory, self.site)
        return begin(memory, self.s, self.cell, memory.task)


class _GracePeriod(_SrcuOp):
    name = "srcu_grace_period"
    verb = "all readers that it waited for have left"

    def run(self, memory: Memory) -> Value:
        return None if over(memory, self.s, self.cell) else BLOCK


class _Dereference(Dereference):
    name = "srcu_dereference"

    def __init__(self, cell: Cell, condition: bool, readers: Cell) -> None:
        super().__init__(cell, condition)
        self.readers = readers


def srcu_read_lock(s: srcu_struct) -> int:
    """Enter a read-side critical section of `s`; returns the index for srcu_read_unlock(). Never waits."""
    return cast("int", perform(_ReadLock(s)))


def srcu_read_unlock(s: srcu_struct, idx: int) -> None:
    """Leave the read-side critical section of `s` for which srcu_read_lock() returned `idx`."""
    perform(_ReadUnlock(s, idx))


def srcu_dereference(obj: Object, field: Field[T], s: srcu_struct, condition: bool = False) -> T:
    """Read a pointer that readers of `s` may follow: in such a reader, or where `condition` says that it is safe."""
    return cast("T", perform(_Dereference(field.cell(obj), condition, srcu_struct.readers.cell(s))))


@routine
def synchronize_srcu(s: srcu_struct) -> None:
    """Wait until all readers of `s` that are inside now have left. Sleeps; not in a reader of `s`."""
    if perform(_Synchronize(s)):
        perform(_GracePeriod(s))


def synchronize_srcu_expedited(s: srcu_struct) -> None:
    """As synchronize_srcu(), only faster; in the model, time does not pass."""
    synchronize_srcu(s)
