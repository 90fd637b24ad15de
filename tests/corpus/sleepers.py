"""Sleeping where one must not."""

from __future__ import annotations

from interleaf.linux.bug import BUG_ON, WARN_ON, WARN_ON_ONCE
from interleaf.linux.completion import complete, completion, wait_for_completion
from interleaf.linux.mutex import mutex, mutex_lock, mutex_trylock, mutex_unlock
from interleaf.linux.rcu import rcu_barrier, rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, rwlock_t
from interleaf.linux.sched import cond_resched, need_resched
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.linux.srcu import srcu_struct, synchronize_srcu
from interleaf.linux.wait import wait_event, wait_queue_head_t
from interleaf.linux.workqueue import alloc_workqueue, flush_workqueue
from interleaf.runtime import Embedded, Marked, Object, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Place(Object):
    """Locks to sleep under, and things to sleep for."""

    spin = Embedded(spinlock_t)
    rw = Embedded(rwlock_t)
    m = Embedded(mutex)
    srcu = Embedded(srcu_struct)
    done = Embedded(completion)
    queue = Embedded(wait_queue_head_t)
    asked = Marked(0)


def always() -> bool:
    return True


def mutex_under_spinlock() -> None:
    spin_lock(the(Place).spin)
    mutex_lock(the(Place).m)
    mutex_unlock(the(Place).m)
    spin_unlock(the(Place).spin)


def spinlock_under_mutex() -> None:
    mutex_lock(the(Place).m)
    spin_lock(the(Place).spin)
    spin_unlock(the(Place).spin)
    mutex_unlock(the(Place).m)


def trylock_under_spinlock() -> None:
    spin_lock(the(Place).spin)
    if mutex_trylock(the(Place).m):
        mutex_unlock(the(Place).m)
    spin_unlock(the(Place).spin)


def mutex_in_reader() -> None:
    rcu_read_lock()
    mutex_lock(the(Place).m)
    mutex_unlock(the(Place).m)
    rcu_read_unlock()


def completion_under_spinlock() -> None:
    complete(the(Place).done)
    spin_lock(the(Place).spin)
    wait_for_completion(the(Place).done)
    spin_unlock(the(Place).spin)


def event_under_rwlock() -> None:
    read_lock(the(Place).rw)
    wait_event(the(Place).queue, always)
    read_unlock(the(Place).rw)


def srcu_under_rwlock() -> None:
    read_lock(the(Place).rw)
    synchronize_srcu(the(Place).srcu)
    read_unlock(the(Place).rw)


def barrier_under_spinlock() -> None:
    spin_lock(the(Place).spin)
    rcu_barrier()
    spin_unlock(the(Place).spin)


def flush_under_spinlock() -> None:
    wq = alloc_workqueue("wq")
    spin_lock(the(Place).spin)
    flush_workqueue(wq)
    spin_unlock(the(Place).spin)


def resched_in_reader() -> None:
    rcu_read_lock()
    cond_resched()
    rcu_read_unlock()


def resched_under_mutex() -> None:
    mutex_lock(the(Place).m)
    if need_resched():
        the(Place).asked = 1
        cond_resched()
    mutex_unlock(the(Place).m)


def warn() -> None:
    WARN_ON(WARN_ON_ONCE(False, "fine") or the(Place).asked == 0, "nobody asked")


def keep_quiet() -> None:
    WARN_ON(WARN_ON_ONCE(the(Place).asked != 0, "somebody asked"), "neither")
    BUG_ON(the(Place).asked != 0, "somebody asked")


def bug() -> None:
    BUG_ON(the(Place).asked == 0, "nobody asked")


@CORPUS.good()
def spinlock_in_a_mutex() -> None:
    spawn(spinlock_under_mutex, name="a")


@CORPUS.good()
def mutex_trylock_in_a_spinlock() -> None:
    spawn(trylock_under_spinlock, name="a")


@CORPUS.good(Place, asked={0, 1})
def cond_resched_in_a_mutex() -> None:
    spawn(resched_under_mutex, name="a")


@CORPUS.bad("sleeping-while-atomic")
def mutex_in_a_spinlock() -> None:
    spawn(mutex_under_spinlock, name="a")


@CORPUS.bad("sleeping-while-atomic")
def mutex_in_an_rcu_reader() -> None:
    spawn(mutex_in_reader, name="a")


@CORPUS.bad("sleeping-while-atomic")
def wait_for_completion_in_a_spinlock() -> None:
    spawn(completion_under_spinlock, name="a")


@CORPUS.bad("sleeping-while-atomic")
def wait_event_in_an_rwlock() -> None:
    spawn(event_under_rwlock, name="a")


@CORPUS.bad("sleeping-while-atomic")
def synchronize_srcu_in_an_rwlock() -> None:
    spawn(srcu_under_rwlock, name="a")


@CORPUS.bad("sleeping-while-atomic")
def rcu_barrier_in_a_spinlock() -> None:
    spawn(barrier_under_spinlock, name="a")


@CORPUS.bad("sleeping-while-atomic")
def flush_workqueue_in_a_spinlock() -> None:
    spawn(flush_under_spinlock, name="a")


@CORPUS.bad("sleeping-while-atomic")
def cond_resched_in_an_rcu_reader() -> None:
    spawn(resched_in_reader, name="a")


@CORPUS.good()
def nothing_to_warn_of() -> None:
    spawn(keep_quiet, name="a")


@CORPUS.bad("WARN")
def warning() -> None:
    spawn(warn, name="a")


@CORPUS.bad("BUG")
def bugging() -> None:
    spawn(bug, name="a")
