"""The lives of objects."""

from __future__ import annotations

from interleaf.linux.completion import complete, completion, wait_for_completion
from interleaf.linux.slab import GFP_KERNEL, kfree, kmem_cache_alloc, kmem_cache_free
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Object, Plain, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Thing(Object):
    """Can be freed."""

    freeable = True
    lock = Embedded(spinlock_t)
    value = Plain(0)


class Global(Object):
    """Lives for ever."""

    lock = Embedded(spinlock_t)
    used = Embedded(completion)


def use(thing: Thing) -> None:
    thing.value = 1
    complete(the(Global).used)


def free_when_used(thing: Thing) -> None:
    wait_for_completion(the(Global).used)
    kmem_cache_free(thing)


def free_at_once(thing: Thing) -> None:
    kfree(thing)


def free_twice(thing: Thing) -> None:
    kfree(thing)
    kfree(thing)


def free_held(thing: Thing) -> None:
    spin_lock(thing.lock)
    kfree(thing)


def allocate_asleep() -> None:
    kfree(kmem_cache_alloc(Thing, GFP_KERNEL))


def allocate_asleep_under_spinlock() -> None:
    spin_lock(the(Global).lock)
    kfree(kmem_cache_alloc(Thing, GFP_KERNEL))
    spin_unlock(the(Global).lock)


def allocate_under_spinlock() -> None:
    spin_lock(the(Global).lock)
    kfree(kmem_cache_alloc(Thing))
    spin_unlock(the(Global).lock)


@CORPUS.good()
def freeing_after_use() -> None:
    thing = kmem_cache_alloc(Thing)
    spawn(use, thing, name="a")
    spawn(free_when_used, thing, name="b")


@CORPUS.bad("use-after-free")
def freeing_during_use() -> None:
    thing = kmem_cache_alloc(Thing)
    spawn(use, thing, name="a")
    spawn(free_at_once, thing, name="b")


@CORPUS.bad("double-free")
def freeing_twice() -> None:
    spawn(free_twice, kmem_cache_alloc(Thing), name="a")


@CORPUS.bad("lockdep")
def freeing_a_held_lock() -> None:
    spawn(free_held, kmem_cache_alloc(Thing), name="a")


@CORPUS.good()
def allocating_with_sleep() -> None:
    spawn(allocate_asleep, name="a")


@CORPUS.good()
def allocating_atomically_under_a_spinlock() -> None:
    spawn(allocate_under_spinlock, name="a")


@CORPUS.bad("sleeping-while-atomic")
def allocating_with_sleep_under_a_spinlock() -> None:
    spawn(allocate_asleep_under_spinlock, name="a")
