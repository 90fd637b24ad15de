from __future__ import annotations

from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.slab import GFP_ATOMIC, GFP_KERNEL, kfree, kfree_rcu, kmem_cache_alloc, kmem_cache_free
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Object, Plain, spawn, the

from .drive import Drive, run


class Thing(Object):
    freeable = True
    value = Plain(0)
    lock = Embedded(spinlock_t)


class Global(Object):
    lock = Embedded(spinlock_t)


def life() -> None:
    thing = kmem_cache_alloc(Thing, GFP_KERNEL, value=7)
    assert thing.value == 7
    kmem_cache_free(thing)


def use_after() -> None:
    thing = kmem_cache_alloc(Thing)
    kfree(thing)
    thing.value = 1


def twice() -> None:
    thing = kmem_cache_alloc(Thing)
    kfree(thing)
    kfree(thing)


def held() -> None:
    thing = kmem_cache_alloc(Thing)
    spin_lock(thing.lock)
    kfree(thing)


def under_lock() -> None:
    spin_lock(the(Global).lock)
    kfree(kmem_cache_alloc(Thing, GFP_ATOMIC))
    kfree(kmem_cache_alloc(Thing, GFP_KERNEL))
    spin_unlock(the(Global).lock)


def later() -> None:
    kfree_rcu(kmem_cache_alloc(Thing))


def stay() -> None:
    rcu_read_lock()
    rcu_read_unlock()


def test_a_life() -> None:
    drive = run(life)
    assert drive.violations == []
    assert [line for line in drive.story if "free" in line] == ["a free a:Thing0"]


def test_use_after_free() -> None:
    [violation] = run(use_after).violations
    assert violation.rule == "use-after-free"
    assert violation.object == "a:Thing0"


def test_double_free() -> None:
    assert run(twice).rules == ["double-free"]


def test_a_held_lock_is_not_freed() -> None:
    [violation] = run(held).violations
    assert violation.message == "held lock freed: a frees a:Thing0 in held() and holds a:Thing0.lock"


def test_gfp_kernel_may_sleep_and_gfp_atomic_not() -> None:
    [violation] = run(under_lock).violations
    assert violation.message == "a may sleep in under_lock() and holds Global.lock"


def test_kfree_rcu_frees_after_the_readers() -> None:
    def setup() -> None:
        spawn(later, name="a")
        spawn(stay, name="reader")

    drive = Drive(setup)
    drive.step("reader")
    drive.finish("a")
    assert drive.waits("rcu:kfree(a:Thing0)")
    drive.finish("reader")
    drive.finish("rcu:kfree(a:Thing0)")
    assert "rcu:kfree(a:Thing0) free a:Thing0" in drive.story
