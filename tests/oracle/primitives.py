"""Statements that use the kernel's building blocks: locks, RCU, reference counts, and objects that are freed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interleaf.linux.atomic import xchg
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rcu import (
    call_rcu,
    rcu_assign_pointer,
    rcu_barrier,
    rcu_dereference,
    rcu_read_lock,
    rcu_read_unlock,
    synchronize_rcu,
)
from interleaf.linux.refcount import refcount_dec_and_test, refcount_inc, refcount_inc_not_zero
from interleaf.linux.rwlock import (
    cond_resched_rwlock_read,
    cond_resched_rwlock_write,
    read_lock,
    read_unlock,
    write_lock,
    write_unlock,
)
from interleaf.linux.slab import kfree
from interleaf.linux.spinlock import spin_lock, spin_trylock, spin_unlock
from interleaf.runtime import choose, new, the, warn, write_marked

from .programs import NOTHING, Block, Shared, Statement, Thing, block


@dataclass(frozen=True, eq=False)
class Locked(Statement):
    """A critical section; `lock` is a field of Shared, `how` is spin, mutex, read or write.

    With `drops`, it may be interrupted half-way: the lock is dropped and taken again, or not.
    """

    how: str
    lock: str
    body: Block
    drops: bool = False
    rest: Block = NOTHING

    def run(self, number: int) -> int:
        lock = getattr(the(Shared), self.lock)
        acquire, release = LOCKS[self.how]
        acquire(lock)
        number = block(self.body, number)
        if self.drops:
            if self.how == "read":
                cond_resched_rwlock_read(lock)
            elif self.how == "write":
                cond_resched_rwlock_write(lock)
            elif choose(2, "drops the lock"):
                release(lock)
                acquire(lock)
            number = block(self.rest, number)
        release(lock)
        return number


LOCKS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "spin": (spin_lock, spin_unlock),
    "mutex": (mutex_lock, mutex_unlock),
    "read": (read_lock, read_unlock),
    "write": (write_lock, write_unlock),
}


@dataclass(frozen=True, eq=False)
class Trylock(Statement):
    lock: str
    body: Block

    def run(self, number: int) -> int:
        lock = getattr(the(Shared), self.lock)
        if not spin_trylock(lock):
            return 2
        number = block(self.body, number)
        spin_unlock(lock)
        return number


@dataclass(frozen=True, eq=False)
class RcuReader(Statement):
    body: Block

    def run(self, number: int) -> int:
        rcu_read_lock()
        number = block(self.body, number)
        rcu_read_unlock()
        return number


@dataclass(frozen=True, eq=False)
class Synchronize(Statement):
    def run(self, number: int) -> int:
        synchronize_rcu()
        return number


@dataclass(frozen=True, eq=False)
class Barrier(Statement):
    def run(self, number: int) -> int:
        rcu_barrier()
        return number


@dataclass(frozen=True, eq=False)
class CallRcu(Statement):
    """A callback that writes."""

    index: int
    value: int
    serial: int

    def run(self, number: int) -> int:
        call_rcu(callback, self.index, self.value, self.serial)
        return number


def callback(index: int, value: int, serial: int) -> None:
    write_marked(the(Shared), Shared.x[index], value)


@dataclass(frozen=True, eq=False)
class Use(Statement):
    """Follow the pointer and write to what is there; `how` is marked, plain, or lock."""

    how: str

    def run(self, number: int) -> int:
        thing = rcu_dereference(the(Shared), Shared.thing, True)
        if thing is None:
            return 0
        if self.how == "plain":
            thing.plain = number
        elif self.how == "lock":
            spin_lock(thing.lock)
            thing.plain = number
            spin_unlock(thing.lock)
        else:
            write_marked(thing, Thing.value, number)
        return 1


@dataclass(frozen=True, eq=False)
class UseLater(Statement):
    """Follow the pointer under a lock, and under the lock again use what was there; warns if that was taken away."""

    def run(self, number: int) -> int:
        shared = the(Shared)
        spin_lock(shared.a)
        thing = rcu_dereference(shared, Shared.thing, True)
        spin_unlock(shared.a)
        if thing is None:
            return 0
        spin_lock(shared.a)
        write_marked(thing, Thing.value, 1)
        warn("taken away", shared.thing is None, "used after it was taken away")
        spin_unlock(shared.a)
        return 1


@dataclass(frozen=True, eq=False)
class Dispose(Statement):
    """Take the pointer away and free what was there: at once, after a grace period, or by call_rcu()."""

    how: str

    def run(self, number: int) -> int:
        thing = xchg(the(Shared), Shared.thing, None)
        if thing is None:
            return 0
        if self.how == "callback":
            call_rcu(kfree, thing)
            return 1
        if self.how == "grace":
            synchronize_rcu()
        kfree(thing)
        return 1


@dataclass(frozen=True, eq=False)
class Publish(Statement):
    """A new object behind the pointer (the old one leaks)."""

    def run(self, number: int) -> int:
        thing = new(Thing, plain=number)
        rcu_assign_pointer(the(Shared), Shared.thing, thing)
        return number


@dataclass(frozen=True, eq=False)
class Get(Statement):
    """Take a reference, with or without looking."""

    looks: bool

    def run(self, number: int) -> int:
        thing = rcu_dereference(the(Shared), Shared.thing, True)
        if thing is None:
            return 0
        if self.looks:
            return int(refcount_inc_not_zero(thing.refs))
        refcount_inc(thing.refs)
        return 1


@dataclass(frozen=True, eq=False)
class Put(Statement):
    """Give a reference back, and free what has none."""

    def run(self, number: int) -> int:
        thing = rcu_dereference(the(Shared), Shared.thing, True)
        if thing is None:
            return 0
        if not refcount_dec_and_test(thing.refs):
            return 1
        write_marked(the(Shared), Shared.thing, None)
        kfree(thing)
        return 2
