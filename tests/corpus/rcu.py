"""RCU: what a grace period waits for, and what readers and callbacks may do."""

from __future__ import annotations

from typing import Any

from interleaf.linux.bug import BUG_ON
from interleaf.linux.lockdep import lockdep_is_held
from interleaf.linux.rcu import (
    call_rcu,
    rcu_assign_pointer,
    rcu_barrier,
    rcu_dereference,
    rcu_dereference_protected,
    rcu_read_lock,
    rcu_read_lock_held,
    rcu_read_unlock,
    synchronize_rcu,
)
from interleaf.linux.slab import kfree, kfree_rcu, kmem_cache_alloc
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Marked, Object, Plain, routine, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Config(Object):
    """What the RCU pointer points to."""

    freeable = True
    value = Plain(0)


class Global(Object):
    """An RCU pointer and its writers' lock."""

    config = Plain[Any](None)
    lock = Embedded(spinlock_t)
    seen = Marked(0)
    freed = Marked(False)


def start() -> Config:
    config = kmem_cache_alloc(Config, value=1)
    rcu_assign_pointer(the(Global), Global.config, config)
    return config


@routine
def replace() -> Config:
    shared = the(Global)
    fresh = kmem_cache_alloc(Config)
    fresh.value = 2
    spin_lock(shared.lock)
    old: Config = rcu_dereference_protected(shared, Global.config, lockdep_is_held(shared.lock))
    rcu_assign_pointer(shared, Global.config, fresh)
    spin_unlock(shared.lock)
    return old


def read() -> None:
    rcu_read_lock()
    BUG_ON(not rcu_read_lock_held(), "a reader knows that it is one")
    value = rcu_dereference(the(Global), Global.config).value
    rcu_read_unlock()
    the(Global).seen = value


def read_nested() -> None:
    rcu_read_lock()
    rcu_read_lock()
    config = rcu_dereference(the(Global), Global.config)
    rcu_read_unlock()
    config.value
    rcu_read_unlock()


def read_too_long() -> None:
    rcu_read_lock()
    config = rcu_dereference(the(Global), Global.config)
    rcu_read_unlock()
    config.value


def read_outside() -> None:
    rcu_dereference(the(Global), Global.config)


def read_locked() -> None:
    shared = the(Global)
    spin_lock(shared.lock)
    rcu_dereference(shared, Global.config, lockdep_is_held(shared.lock))
    spin_unlock(shared.lock)


def read_protected_by_nothing() -> None:
    shared = the(Global)
    rcu_dereference_protected(shared, Global.config, lockdep_is_held(shared.lock))


def unlock_outside() -> None:
    rcu_read_unlock()


def lock_for_ever() -> None:
    rcu_read_lock()


def replace_and_wait() -> None:
    old = replace()
    synchronize_rcu()
    kfree(old)


def replace_at_once() -> None:
    kfree(replace())


def replace_and_call() -> None:
    call_rcu(kfree, replace())


def replace_and_kfree_rcu() -> None:
    kfree_rcu(replace())


def wait_too_early() -> None:
    synchronize_rcu()
    kfree(replace())


def synchronize_in_reader() -> None:
    rcu_read_lock()
    synchronize_rcu()
    rcu_read_unlock()


def synchronize_locked() -> None:
    spin_lock(the(Global).lock)
    synchronize_rcu()
    spin_unlock(the(Global).lock)


def mark_freed() -> None:
    the(Global).freed = True


def sleep_in_callback() -> None:
    synchronize_rcu()


def call_and_barrier() -> None:
    call_rcu(mark_freed)
    rcu_barrier()
    BUG_ON(not the(Global).freed, "the callback has not run")


def call_and_synchronize() -> None:
    call_rcu(mark_freed)
    synchronize_rcu()
    BUG_ON(not the(Global).freed, "the callback has not run")


def call_twice() -> None:
    call_rcu(mark_freed)
    call_rcu(mark_freed)


def call_again_later() -> None:
    call_rcu(mark_freed)
    rcu_barrier()
    the(Global).freed = False
    call_rcu(mark_freed)


def call_a_sleeper() -> None:
    call_rcu(sleep_in_callback)


def call_in_reader() -> None:
    rcu_read_lock()
    call_rcu(mark_freed)
    BUG_ON(the(Global).freed, "the callback did not wait for the reader that queued it")
    rcu_read_unlock()


def stay() -> None:
    rcu_read_lock()
    rcu_read_unlock()


@CORPUS.good(Global, seen={1, 2})
def freeing_after_a_grace_period() -> None:
    start()
    spawn(read, name="a")
    spawn(replace_and_wait, name="b")


@CORPUS.good(Global, seen={1, 2})
def freeing_in_a_callback() -> None:
    start()
    spawn(read, name="a")
    spawn(replace_and_call, name="b")


@CORPUS.good(Global, seen={1, 2})
def freeing_by_kfree_rcu() -> None:
    start()
    spawn(read, name="a")
    spawn(replace_and_kfree_rcu, name="b")


@CORPUS.bad("use-after-free")
def freeing_without_a_grace_period() -> None:
    start()
    spawn(read, name="a")
    spawn(replace_at_once, name="b")


@CORPUS.bad("use-after-free")
def waiting_before_unpublishing() -> None:
    start()
    spawn(read, name="a")
    spawn(wait_too_early, name="b")


@CORPUS.bad("use-after-free")
def using_after_the_reader() -> None:
    start()
    spawn(read_too_long, name="a")
    spawn(replace_and_call, name="b")


@CORPUS.good()
def nested_readers_are_waited_for_to_the_end() -> None:
    start()
    spawn(read_nested, name="a")
    spawn(replace_and_wait, name="b")


@CORPUS.bad("suspicious-rcu-usage")
def following_outside_a_reader() -> None:
    start()
    spawn(read_outside, name="a")


@CORPUS.good()
def following_under_the_writers_lock() -> None:
    start()
    spawn(read_locked, name="a")
    spawn(replace, name="b")


@CORPUS.bad("suspicious-rcu-usage")
def following_without_the_writers_lock() -> None:
    start()
    spawn(read_protected_by_nothing, name="a")


@CORPUS.bad("suspicious-rcu-usage")
def leaving_without_entering() -> None:
    spawn(unlock_outside, name="a")


@CORPUS.bad("held-at-end")
def never_leaving() -> None:
    spawn(lock_for_ever, name="a")


@CORPUS.bad("suspicious-rcu-usage")
def waiting_for_oneself() -> None:
    spawn(synchronize_in_reader, name="a")


@CORPUS.bad("sleeping-while-atomic")
def waiting_under_a_spinlock() -> None:
    spawn(synchronize_locked, name="a")


@CORPUS.good(Global, freed={True})
def barrier_waits_for_callbacks() -> None:
    spawn(call_and_barrier, name="a")
    spawn(stay, name="b")


@CORPUS.bad("BUG")
def grace_period_does_not_wait_for_callbacks() -> None:
    spawn(call_and_synchronize, name="a")


@CORPUS.bad("suspicious-rcu-usage")
def queueing_a_callback_twice() -> None:
    spawn(call_twice, name="a")


@CORPUS.good(Global, freed={True})
def queueing_a_callback_again_later() -> None:
    spawn(call_again_later, name="a")


@CORPUS.bad("sleeping-while-atomic")
def sleeping_in_a_callback() -> None:
    spawn(call_a_sleeper, name="a")


@CORPUS.good(Global, freed={True})
def queueing_in_a_reader() -> None:
    spawn(call_in_reader, name="a")
