"""Spinlocks (include/linux/spinlock.h): one holder, who must not sleep; not recursive.

Whoever finds the lock taken waits (a blocked operation, no spinning). Nobody can see that a lock is taken without
waiting for it, and so a search needs no scheduling point before the unlock; spin_trylock() can, and says so
(`Memory.observe`), which makes all unlocks of this class of locks visible.
"""

from __future__ import annotations

from typing import ClassVar

from interleaf.runtime import BLOCK, Memory
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.values import Value

from .lockdep import EXCLUSIVE, lock, lock_acquire, lock_release, self_deadlock


class spinlock_t(lock):
    """A spinlock. All zero is unlocked, so an embedded one needs no initialisation."""

    atomic = True


class Acquire(Op):
    """Take a lock exclusively, waiting for it."""

    marked = True
    verb: ClassVar[str] = "takes"

    def __init__(self, taken: lock) -> None:
        self.cell = self.focus = lock.holders.cell(taken)

    def run(self, memory: Memory) -> Value:
        cell = self.cell
        if memory.load_cell(cell):
            if memory.held[memory.task].any & cell.bit:
                self_deadlock(memory, cell, self.site)
            return BLOCK
        lock_acquire(memory, cell, EXCLUSIVE, self.site)
        memory.store_cell(cell, ~memory.task)
        memory.hold(cell, True)
        return None

    def text(self, result: Value) -> str:
        return f"{self.verb} {self.cell.owner}"


class Try(Op):
    """Take a lock exclusively if it is free."""

    marked = True

    def __init__(self, tried: lock) -> None:
        self.cell = self.focus = lock.holders.cell(tried)

    def run(self, memory: Memory) -> bool:
        cell = self.cell
        memory.observe(cell)
        if memory.load_cell(cell):
            return False
        memory.store_cell(cell, ~memory.task)
        memory.hold(cell, True)
        return True

    def text(self, result: Value) -> str:
        return f"takes {self.cell.owner}" if result else f"finds {self.cell.owner} taken"


class Release(Op):
    """Give back a lock that is held exclusively."""

    marked = True
    releases = True
    verb: ClassVar[str] = "releases"

    def __init__(self, released: lock) -> None:
        self.cell = self.focus = lock.holders.cell(released)

    def run(self, memory: Memory) -> None:
        cell = self.cell
        lock_release(memory, cell, True, self.site)
        memory.store_cell(cell, 0)
        memory.drop(cell)

    def text(self, result: Value) -> str:
        return f"{self.verb} {self.cell.owner}"


class _SpinLock(Acquire):
    name = "spin_lock"


class _SpinTrylock(Try):
    name = "spin_trylock"


class _SpinUnlock(Release):
    name = "spin_unlock"


def spin_lock(taken: spinlock_t) -> None:
    """Take a spinlock; waits while another task holds it. Taking it twice is a violation of `lockdep`."""
    perform(_SpinLock(taken))


def spin_trylock(tried: spinlock_t) -> bool:
    """Take a spinlock if it is free now; never waits, so it adds nothing to the lock order."""
    return bool(perform(_SpinTrylock(tried)))


def spin_unlock(released: spinlock_t) -> None:
    """Give a spinlock back. The running task must hold it."""
    perform(_SpinUnlock(released))
