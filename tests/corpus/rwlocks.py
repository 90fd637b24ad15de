"""Reader-writer locks: who is let in together, and how the lock may be given up for a while."""

from __future__ import annotations

from interleaf.linux.atomic import atomic_dec, atomic_inc_return, atomic_t
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import (
    cond_resched_rwlock_read,
    cond_resched_rwlock_write,
    read_lock,
    read_unlock,
    rwlock_needbreak,
    rwlock_t,
    write_lock,
    write_unlock,
)
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Marked, Object, Plain, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Shared(Object):
    """Data under an rwlock; `met` says that two were inside together."""

    lock = Embedded(rwlock_t)
    other = Embedded(spinlock_t)
    inside = Embedded(atomic_t)
    met = Marked(False)
    value = Plain(0)
    torn = Marked(False)


def be_inside() -> None:
    shared = the(Shared)
    if atomic_inc_return(shared.inside) == 2:
        shared.met = True
    atomic_dec(shared.inside)


def read() -> None:
    read_lock(the(Shared).lock)
    be_inside()
    read_unlock(the(Shared).lock)


def write() -> None:
    write_lock(the(Shared).lock)
    be_inside()
    write_unlock(the(Shared).lock)


def read_value() -> None:
    shared = the(Shared)
    read_lock(shared.lock)
    shared.value
    read_unlock(shared.lock)


def write_value() -> None:
    shared = the(Shared)
    write_lock(shared.lock)
    shared.value += 1
    write_unlock(shared.lock)


def write_value_as_reader() -> None:
    shared = the(Shared)
    read_lock(shared.lock)
    shared.value += 1
    read_unlock(shared.lock)


def look_twice_and_yield() -> None:
    shared = the(Shared)
    read_lock(shared.lock)
    before = shared.value
    cond_resched_rwlock_read(shared.lock)
    if shared.value != before:
        shared.torn = True
    read_unlock(shared.lock)


def look_twice() -> None:
    shared = the(Shared)
    read_lock(shared.lock)
    before = shared.value
    rwlock_needbreak(shared.lock)
    if shared.value != before:
        shared.torn = True
    read_unlock(shared.lock)


def write_twice_and_yield() -> None:
    shared = the(Shared)
    write_lock(shared.lock)
    before = shared.value
    if cond_resched_rwlock_write(shared.lock) and shared.value != before:
        shared.torn = True
    write_unlock(shared.lock)


def yield_without_lock() -> None:
    cond_resched_rwlock_read(the(Shared).lock)


def yield_write_as_reader() -> None:
    read_lock(the(Shared).lock)
    cond_resched_rwlock_write(the(Shared).lock)
    read_unlock(the(Shared).lock)


def yield_in_rcu() -> None:
    read_lock(the(Shared).lock)
    rcu_read_lock()
    cond_resched_rwlock_read(the(Shared).lock)
    rcu_read_unlock()
    read_unlock(the(Shared).lock)


def yield_with_spinlock() -> None:
    read_lock(the(Shared).lock)
    spin_lock(the(Shared).other)
    cond_resched_rwlock_read(the(Shared).lock)
    spin_unlock(the(Shared).other)
    read_unlock(the(Shared).lock)


def read_twice() -> None:
    read_lock(the(Shared).lock)
    read_lock(the(Shared).lock)
    read_unlock(the(Shared).lock)
    read_unlock(the(Shared).lock)


def upgrade() -> None:
    read_lock(the(Shared).lock)
    write_lock(the(Shared).lock)


def read_under_write() -> None:
    write_lock(the(Shared).lock)
    read_lock(the(Shared).lock)


def unlock_the_wrong_way() -> None:
    write_lock(the(Shared).lock)
    read_unlock(the(Shared).lock)


def unlock_the_other_wrong_way() -> None:
    read_lock(the(Shared).lock)
    write_unlock(the(Shared).lock)


@CORPUS.good(Shared, met={False, True})
def readers_meet() -> None:
    spawn(read, name="a")
    spawn(read, name="b")


@CORPUS.good(Shared, met={False})
def reader_and_writer_do_not_meet() -> None:
    spawn(read, name="a")
    spawn(write, name="b")


@CORPUS.good(Shared, met={False})
def writers_do_not_meet() -> None:
    spawn(write, name="a")
    spawn(write, name="b")


@CORPUS.good(Shared, value={1})
def reading_under_the_read_lock() -> None:
    spawn(read_value, name="a")
    spawn(read_value, name="b")
    spawn(write_value, name="c")


@CORPUS.bad("data-race")
def writing_under_the_read_lock() -> None:
    spawn(read_value, name="a")
    spawn(write_value_as_reader, name="b")


@CORPUS.good(Shared, torn={False})
def a_reader_that_does_not_yield_sees_no_change() -> None:
    spawn(look_twice, name="a")
    spawn(write_value, name="b")


@CORPUS.good(Shared, torn={False, True})
def a_reader_that_yields_may_see_a_change() -> None:
    spawn(look_twice_and_yield, name="a")
    spawn(write_value, name="b")


@CORPUS.good(Shared, torn={False, True})
def a_writer_that_yields_may_see_a_change() -> None:
    spawn(write_twice_and_yield, name="a")
    spawn(write_value, name="b")


@CORPUS.bad("lockdep")
def yielding_a_lock_that_is_not_held() -> None:
    spawn(yield_without_lock, name="a")


@CORPUS.bad("lockdep")
def yielding_a_read_lock_as_a_writer() -> None:
    spawn(yield_write_as_reader, name="a")


@CORPUS.bad("sleeping-while-atomic")
def yielding_in_an_rcu_reader() -> None:
    spawn(yield_in_rcu, name="a")


@CORPUS.bad("sleeping-while-atomic", "lockdep")
def yielding_with_a_spinlock_held() -> None:
    # taking the rwlock again under the spinlock turns the order round, too
    spawn(yield_with_spinlock, name="a")


@CORPUS.bad("lockdep")
def reading_recursively() -> None:
    spawn(read_twice, name="a")


@CORPUS.bad("lockdep")
def upgrading_a_read_lock() -> None:
    spawn(upgrade, name="a")


@CORPUS.bad("lockdep")
def reading_under_the_own_write_lock() -> None:
    spawn(read_under_write, name="a")


@CORPUS.bad("lockdep")
def releasing_a_write_lock_as_a_reader() -> None:
    spawn(unlock_the_wrong_way, name="a")


@CORPUS.bad("lockdep")
def releasing_a_read_lock_as_a_writer() -> None:
    spawn(unlock_the_other_wrong_way, name="a")
