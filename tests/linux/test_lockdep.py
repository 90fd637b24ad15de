from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.linux.lockdep import LockOrder, lockdep_assert_held, lockdep_is_held, might_sleep
from interleaf.linux.mutex import mutex, mutex_lock, mutex_unlock
from interleaf.linux.rcu import call_rcu, rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, rwlock_t, write_lock, write_unlock
from interleaf.linux.spinlock import spin_lock, spin_trylock, spin_unlock, spinlock_t
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock, srcu_struct
from interleaf.runtime import Embedded, Marked, Object, World, spawn, the

from .drive import Drive, run


class Shared(Object):
    a = Embedded(spinlock_t)
    b = Embedded(spinlock_t)
    rw = Embedded(rwlock_t)
    m = Embedded(mutex)
    srcu = Embedded(srcu_struct)
    answer = Marked[tuple[bool, ...]](())


def a_then_b() -> None:
    spin_lock(the(Shared).a)
    spin_lock(the(Shared).b)
    spin_unlock(the(Shared).b)
    spin_unlock(the(Shared).a)


def b_then_a() -> None:
    spin_lock(the(Shared).b)
    spin_lock(the(Shared).a)
    spin_unlock(the(Shared).a)
    spin_unlock(the(Shared).b)


def both_orders() -> None:
    spawn(a_then_b, name="x")
    spawn(b_then_a, name="y")


def after(*edges: tuple[str, str, bool, bool]) -> LockOrder:
    order = LockOrder()
    for held, taken, shared, recursive in edges:
        order.add(held, taken, shared, recursive, "f()")
    return order


def test_an_inversion_names_both_places_although_nothing_deadlocks() -> None:
    drive = Drive(both_orders)
    drive.finish("x")
    drive.finish("y")
    [violation] = drive.violations
    assert not violation.fatal
    assert violation.message == (
        "possible circular locking: Shared.a is taken under Shared.b in b_then_a(), "
        "but Shared.b is taken under Shared.a in a_then_b()"
    )


def test_the_order_is_gathered_over_executions_and_reported_in_each() -> None:
    world = World()
    for first, second in (("x", ""), ("y", "y"), ("y", "y")):
        drive = Drive(both_orders, world)
        drive.finish(first)
        assert drive.rules == (["lockdep"] if second else [])
        drive.execution.close()


def test_a_circle_of_three_is_named_in_order() -> None:
    order = after(("a", "b", False, False), ("b", "c", False, False))
    assert order.add("c", "a", False, False, "g()") == ["b is taken under a in f()", "c is taken under b in f()"]
    assert order.add("c", "a", False, False, "h()") == []


@pytest.mark.parametrize(
    ("edges", "last", "circular"),
    [
        # A holds a for reading (srcu) and takes m; B holds m and waits for the readers of a
        ([("a", "m", True, False)], ("m", "a", False, False), True),
        # the same, but B only becomes a reader itself
        ([("a", "m", True, False)], ("m", "a", False, True), False),
        # whoever holds a exclusively keeps even recursive readers out
        ([("a", "m", False, False)], ("m", "a", False, True), True),
        # the weak link is in the middle
        ([("m", "a", False, True), ("a", "n", True, False)], ("n", "m", False, False), False),
        ([("m", "a", False, False), ("a", "n", True, False)], ("n", "m", False, False), True),
        # a second, stronger way over the same locks
        ([("m", "a", False, True), ("a", "n", True, False), ("a", "n", False, False)], ("n", "m", False, False), True),
    ],
)
def test_only_what_can_block_makes_a_circle(
    edges: list[tuple[str, str, bool, bool]], last: tuple[str, str, bool, bool], circular: bool
) -> None:
    assert bool(after(*edges).add(*last, "g()")) is circular


def try_b_then_a() -> None:
    spin_lock(the(Shared).a)
    if spin_trylock(the(Shared).b):
        spin_unlock(the(Shared).b)
    spin_unlock(the(Shared).a)
    b_then_a()


def try_then_lock() -> None:
    if spin_trylock(the(Shared).a):
        spin_lock(the(Shared).b)
        spin_unlock(the(Shared).b)
        spin_unlock(the(Shared).a)
    b_then_a()


def test_a_trylock_adds_no_dependency() -> None:
    assert run(try_b_then_a).rules == []


def test_what_is_taken_under_a_trylock_does() -> None:
    assert run(try_then_lock).rules == ["lockdep"]


def asserting() -> None:
    shared = the(Shared)
    lockdep_assert_held(shared.m)


def answering() -> None:
    shared = the(Shared)
    before = lockdep_is_held(shared.a)
    spin_lock(shared.a)
    inside = lockdep_is_held(shared.a)
    spin_unlock(shared.a)
    shared.answer = (before, inside, lockdep_is_held(shared.a))


def test_an_assertion_names_task_function_and_lock() -> None:
    drive = run(asserting)
    [violation] = drive.violations
    assert not violation.fatal
    assert violation.message == "a is in asserting() without holding Shared.m"
    assert drive.execution.world.exercised["lockdep"] == 1


def test_lockdep_is_held() -> None:
    drive = run(answering)
    assert drive.peek(drive.global_(Shared), Shared.answer) == (False, True, False)


def sleep_under_spinlock() -> None:
    spin_lock(the(Shared).a)
    might_sleep()
    spin_unlock(the(Shared).a)


def sleep_under_read_lock() -> None:
    read_lock(the(Shared).rw)
    might_sleep()
    read_unlock(the(Shared).rw)


def sleep_under_write_lock() -> None:
    write_lock(the(Shared).rw)
    might_sleep()
    write_unlock(the(Shared).rw)


def sleep_in_rcu() -> None:
    rcu_read_lock()
    might_sleep()
    rcu_read_unlock()


def sleep_in_callback() -> None:
    call_rcu(might_sleep)


def sleep_under_mutex() -> None:
    mutex_lock(the(Shared).m)
    might_sleep()
    mutex_unlock(the(Shared).m)


def sleep_in_srcu() -> None:
    idx = srcu_read_lock(the(Shared).srcu)
    might_sleep()
    srcu_read_unlock(the(Shared).srcu, idx)


@pytest.mark.parametrize(
    ("function", "ending"),
    [
        (sleep_under_spinlock, "and holds Shared.a"),
        (sleep_under_read_lock, "and holds Shared.rw"),
        (sleep_under_write_lock, "and holds Shared.rw"),
        (sleep_in_rcu, "and is in an RCU reader"),
        (sleep_in_callback, "and is in an RCU callback"),
    ],
)
def test_where_one_must_not_sleep(function: Callable[[], object], ending: str) -> None:
    [violation] = run(function).violations
    assert violation.rule == "sleeping-while-atomic"
    assert violation.message.endswith(ending)


@pytest.mark.parametrize("function", [sleep_under_mutex, sleep_in_srcu, might_sleep])
def test_where_one_may_sleep(function: Callable[[], object]) -> None:
    assert run(function).rules == []
