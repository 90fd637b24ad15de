"""Spinlocks and mutexes: exclusion, recursion, balance."""

from __future__ import annotations

from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.mutex import mutex, mutex_lock, mutex_trylock, mutex_unlock
from interleaf.linux.spinlock import spin_lock, spin_trylock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Object, Plain, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Counter(Object):
    """Counted under a lock."""

    lock = Embedded(spinlock_t)
    sleeping_lock = Embedded(mutex)
    value = Plain(0)


def count_under_spinlock() -> None:
    counter = the(Counter)
    spin_lock(counter.lock)
    counter.value += 1
    spin_unlock(counter.lock)


def count_under_mutex() -> None:
    counter = the(Counter)
    mutex_lock(counter.sleeping_lock)
    counter.value += 1
    mutex_unlock(counter.sleeping_lock)


def count_if_free() -> None:
    counter = the(Counter)
    if spin_trylock(counter.lock):
        counter.value += 1
        spin_unlock(counter.lock)


def count_if_mutex_free() -> None:
    counter = the(Counter)
    if mutex_trylock(counter.sleeping_lock):
        counter.value += 1
        mutex_unlock(counter.sleeping_lock)


def count() -> None:
    the(Counter).value += 1


def lock() -> None:
    spin_lock(the(Counter).lock)


def unlock() -> None:
    spin_unlock(the(Counter).lock)


def lock_twice() -> None:
    lock()
    lock()


def lock_mutex_twice() -> None:
    mutex_lock(the(Counter).sleeping_lock)
    mutex_lock(the(Counter).sleeping_lock)


def lock_and_look() -> None:
    lock()
    READ_ONCE(the(Counter), Counter.value)
    unlock()


def unlock_mutex() -> None:
    mutex_unlock(the(Counter).sleeping_lock)


@CORPUS.good(Counter, value={3})
def spinlock_excludes() -> None:
    for name in "abc":
        spawn(count_under_spinlock, name=name)


@CORPUS.bad("data-race")
def spinlock_forgotten_by_one() -> None:
    spawn(count_under_spinlock, name="a")
    spawn(count, name="b")


@CORPUS.good(Counter, value={2})
def mutex_excludes() -> None:
    spawn(count_under_mutex, name="a")
    spawn(count_under_mutex, name="b")


@CORPUS.bad("data-race")
def two_locks_for_one_counter() -> None:
    spawn(count_under_mutex, name="a")
    spawn(count_under_spinlock, name="b")


@CORPUS.good(Counter, value={1, 2})
def trylock_sees_the_lock_taken() -> None:
    spawn(count_if_free, name="a")
    spawn(count_if_free, name="b")


@CORPUS.good(Counter, value={1, 2})
def trylock_against_lock() -> None:
    spawn(count_under_spinlock, name="a")
    spawn(count_if_free, name="b")


@CORPUS.good(Counter, value={1, 2})
def mutex_trylock_sees_the_mutex_taken() -> None:
    spawn(count_if_mutex_free, name="a")
    spawn(count_if_mutex_free, name="b")


@CORPUS.bad("lockdep")
def spinlock_taken_twice() -> None:
    spawn(lock_twice, name="a")


@CORPUS.bad("lockdep")
def mutex_taken_twice() -> None:
    spawn(lock_mutex_twice, name="a")


@CORPUS.bad("lockdep")
def spinlock_released_without_holding_it() -> None:
    spawn(unlock, name="a")


@CORPUS.bad("lockdep")
def mutex_released_without_holding_it() -> None:
    spawn(unlock_mutex, name="a")


@CORPUS.bad("lockdep")
def spinlock_released_for_somebody_else() -> None:
    spawn(lock_and_look, name="a")
    spawn(unlock, name="b")


@CORPUS.bad("held-at-end")
def spinlock_never_released() -> None:
    spawn(lock, name="a")
