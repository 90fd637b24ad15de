"""Reader-writer spinlocks (include/linux/rwlock.h, kernel/locking/qrwlock.c, kernel/sched/core.c).

Many readers or one writer; no holder may sleep. In the model a waiting writer does not hold up new readers. The
kernel's queue does, which only takes behaviours away, with one exception: a reader that takes the lock again
while a writer waits between deadlocks. Lockdep's recursion rule reports that whether or not a writer comes.

Readers come and go in any order with the same outcome, so their operations are independent of each other.
"""

from __future__ import annotations

from interleaf.runtime import BLOCK, Array, Memory, Violation, choose
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.operations import Choose
from interleaf.runtime.values import Value

from .lockdep import READ, known, lock, lock_acquire, lock_release, place, self_deadlock
from .spinlock import Acquire, Release

YIELDS = "yields"
CONTENDED = "is contended"


class rwlock_t(lock):
    """A reader-writer lock. All zero is unlocked, so an embedded one needs no initialisation."""

    atomic = True
    again = Array(0)
    """Per task: how often it took the lock for reading again (a violation, but the kernel goes on)."""
    done: Array[Value] = Array(None)
    """Per task: what a model has noted of what the task has done since it took the lock, or since it last could have
    given it up; None if it has noted nothing. Only the task itself uses it."""


class _ReadLock(Op):
    marked = True
    name = "read_lock"

    def __init__(self, taken: rwlock_t) -> None:
        self.lock = taken
        self.cell = self.focus = lock.holders.cell(taken)

    def run(self, memory: Memory) -> Value:
        cell = self.cell
        holders = memory.peek(cell)
        task = memory.task
        if memory.held[task].any & cell.bit:
            if holders < 0:
                self_deadlock(memory, cell, self.site)
            self._again(memory)
            return None
        if holders < 0:
            memory.load_cell(cell)
            return BLOCK
        memory.commute_cell(cell, holders | 1 << task)
        lock_acquire(memory, cell, READ, self.site)
        memory.hold(cell, False)
        return None

    def _again(self, memory: Memory) -> None:
        name = self.lock.name
        task = memory.world.tasks[memory.task]
        memory.violate(
            Violation(
                "lockdep",
                f"recursive read lock: {task} takes {name} again in {place(self.site)}; "
                "a writer that waits between deadlocks with it",
                False,
                name,
            )
        )
        depth = rwlock_t.again.element(self.lock, memory.task)
        memory.store_cell(depth, memory.load_cell(depth) + 1)
        memory.hold(self.cell, False)

    def text(self, result: Value) -> str:
        return f"takes {self.lock} for reading"


class _ReadUnlock(Op):
    marked = True
    releases = True
    name = "read_unlock"

    def __init__(self, released: rwlock_t) -> None:
        self.lock = released
        self.cell = self.focus = lock.holders.cell(released)

    def run(self, memory: Memory) -> None:
        cell = self.cell
        lock_release(memory, cell, False, self.site)
        if memory.held[memory.task].locks.count((cell, False)) > 1:
            depth = rwlock_t.again.element(self.lock, memory.task)
            memory.store_cell(depth, memory.load_cell(depth) - 1)
        else:
            memory.commute_cell(cell, memory.peek(cell) & ~(1 << memory.task))
            forget(memory, self.lock)
        memory.drop(cell)

    def text(self, result: Value) -> str:
        return f"releases {self.lock} (reader)"


class _WriteLock(Acquire):
    name = "write_lock"

    def text(self, result: Value) -> str:
        return f"takes {self.cell.owner} for writing"


class _WriteUnlock(Release):
    name = "write_unlock"

    def __init__(self, released: rwlock_t) -> None:
        super().__init__(released)
        self.lock = released

    def run(self, memory: Memory) -> None:
        super().run(memory)
        forget(memory, self.lock)

    def text(self, result: Value) -> str:
        return f"releases {self.cell.owner} (writer)"


class _YieldPoint(Op):
    """The running task could give the lock up here."""

    local = True
    name = "yield_point"

    def __init__(self, held: rwlock_t) -> None:
        self.lock = held

    def run(self, memory: Memory) -> None:
        forget(memory, self.lock)

    def text(self, result: Value) -> str:
        return f"could give {self.lock} up"


class _MayBreak(Op):
    """The lock is held in the right way, and nothing else that forbids to sleep (__might_resched)."""

    def __init__(self, held: rwlock_t, write: bool) -> None:
        self.lock = held
        self.cell = lock.holders.cell(held)
        self.write = write

    def run(self, memory: Memory) -> None:
        forget(memory, self.lock)
        held = memory.held[memory.task]
        task = memory.world.tasks[memory.task]
        mode = held.exclusive if self.write else held.any & ~held.exclusive
        memory.exercise("lockdep")
        memory.exercise("sleeping-while-atomic")
        if not mode & self.cell.bit:
            how = "writing" if self.write else "reading"
            message = f"{task} yields {self.cell.owner} in {place(self.site)} without holding it for {how}"
            memory.violate(Violation("lockdep", message, True, self.cell.owner.name))
        for cell, _exclusive in held.locks:
            owner = known(cell)
            if cell is not self.cell and owner.atomic:
                message = f"{task} yields {self.cell.owner} in {place(self.site)}, and may not sleep because of {owner}"
                memory.violate(Violation("sleeping-while-atomic", message, False, owner.name))

    def text(self, result: Value) -> str:
        return f"may yield {self.cell.owner}"


def read_lock(taken: rwlock_t) -> None:
    """Take the lock for reading; waits while a writer holds it."""
    perform(_ReadLock(taken))


def read_unlock(released: rwlock_t) -> None:
    """Give the lock back. The running task must hold it for reading."""
    perform(_ReadUnlock(released))


def write_lock(taken: rwlock_t) -> None:
    """Take the lock for writing; waits while anybody else holds it."""
    perform(_WriteLock(taken))


def write_unlock(released: rwlock_t) -> None:
    """Give the lock back. The running task must hold it for writing."""
    perform(_WriteUnlock(released))


def forget(memory: Memory, held: rwlock_t) -> None:
    """Inside an operation: what has been noted of the running task in `rwlock_t.done` is settled."""
    memory.set(rwlock_t.done.element(held, memory.task), None)


def asks_to_yield(choice: Choose) -> bool:
    """Is it the choice of a task whether it gives a lock that it holds up for a while?"""
    return choice.what.startswith(YIELDS) or choice.what.endswith(CONTENDED)


def rwlock_needbreak(contended: rwlock_t) -> bool:
    """Does somebody wait for the lock? A choice of the environment: both answers are explored.

    The running task holds it, and gives it up if so: whatever the answer, this is a yield point.
    """
    perform(_YieldPoint(contended))
    return bool(choose(2, f"{contended} {CONTENDED}"))


def cond_resched_rwlock_read(held: rwlock_t) -> bool:
    """Give the read lock up and take it again, if somebody waits for it or for the CPU; did it?

    A choice of the environment. The lock must be held for reading, no other spinlock or rwlock may be held, and
    the task must not be in an RCU reader (__cond_resched_rwlock_read).
    """
    perform(_MayBreak(held, False))
    if not choose(2, f"{YIELDS} {held}"):
        return False
    read_unlock(held)
    read_lock(held)
    return True


def cond_resched_rwlock_write(held: rwlock_t) -> bool:
    """As cond_resched_rwlock_read(), for a lock that is held for writing (__cond_resched_rwlock_write)."""
    perform(_MayBreak(held, True))
    if not choose(2, f"{YIELDS} {held}"):
        return False
    write_unlock(held)
    write_lock(held)
    return True
