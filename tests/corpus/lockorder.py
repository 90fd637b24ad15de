"""Lock order, held-lock assertions, and what two of a class do to each other."""

from __future__ import annotations

from interleaf.linux.completion import complete, completion, wait_for_completion
from interleaf.linux.lockdep import lockdep_assert_held, lockdep_assert_held_read, lockdep_assert_held_write
from interleaf.linux.mutex import mutex, mutex_lock, mutex_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, rwlock_t, write_lock, write_unlock
from interleaf.linux.spinlock import spin_lock, spin_trylock, spin_unlock, spinlock_t
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock, srcu_struct, synchronize_srcu
from interleaf.runtime import Embedded, Marked, Object, new, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Locks(Object):
    """One of each kind, and more."""

    a = Embedded(spinlock_t)
    b = Embedded(spinlock_t)
    c = Embedded(spinlock_t)
    rw = Embedded(rwlock_t)
    m = Embedded(mutex)
    srcu = Embedded(srcu_struct)
    first_is_done = Embedded(completion)
    second_is_done = Embedded(completion)


class Node(Object):
    """Its lock is one class, however many there are."""

    lock = Embedded(spinlock_t)
    other = Marked(0)


def a_then_b() -> None:
    locks = the(Locks)
    spin_lock(locks.a)
    spin_lock(locks.b)
    spin_unlock(locks.b)
    spin_unlock(locks.a)


def b_then_a() -> None:
    locks = the(Locks)
    spin_lock(locks.b)
    spin_lock(locks.a)
    spin_unlock(locks.a)
    spin_unlock(locks.b)


def b_then_try_a() -> None:
    locks = the(Locks)
    spin_lock(locks.b)
    if spin_trylock(locks.a):
        spin_unlock(locks.a)
    spin_unlock(locks.b)


def b_then_c() -> None:
    locks = the(Locks)
    spin_lock(locks.b)
    spin_lock(locks.c)
    spin_unlock(locks.c)
    spin_unlock(locks.b)


def c_then_a() -> None:
    locks = the(Locks)
    spin_lock(locks.c)
    spin_lock(locks.a)
    spin_unlock(locks.a)
    spin_unlock(locks.c)


def a_then_b_first() -> None:
    a_then_b()
    complete(the(Locks).first_is_done)


def b_then_a_second() -> None:
    wait_for_completion(the(Locks).first_is_done)
    b_then_a()


def b_then_c_second() -> None:
    wait_for_completion(the(Locks).first_is_done)
    b_then_c()
    complete(the(Locks).second_is_done)


def c_then_a_third() -> None:
    wait_for_completion(the(Locks).second_is_done)
    c_then_a()


def read_then_a() -> None:
    locks = the(Locks)
    read_lock(locks.rw)
    spin_lock(locks.a)
    spin_unlock(locks.a)
    read_unlock(locks.rw)
    complete(locks.first_is_done)


def a_then_read() -> None:
    locks = the(Locks)
    wait_for_completion(locks.first_is_done)
    spin_lock(locks.a)
    read_lock(locks.rw)
    read_unlock(locks.rw)
    spin_unlock(locks.a)


def srcu_then_mutex() -> None:
    locks = the(Locks)
    idx = srcu_read_lock(locks.srcu)
    mutex_lock(locks.m)
    mutex_unlock(locks.m)
    srcu_read_unlock(locks.srcu, idx)
    complete(locks.first_is_done)


def mutex_then_srcu() -> None:
    locks = the(Locks)
    mutex_lock(locks.m)
    idx = srcu_read_lock(locks.srcu)
    srcu_read_unlock(locks.srcu, idx)
    mutex_unlock(locks.m)


def mutex_then_synchronize() -> None:
    locks = the(Locks)
    wait_for_completion(locks.first_is_done)
    mutex_lock(locks.m)
    synchronize_srcu(locks.srcu)
    mutex_unlock(locks.m)


def two_nodes() -> None:
    first, second = new(Node), new(Node)
    spin_lock(first.lock)
    spin_lock(second.lock)
    spin_unlock(second.lock)
    spin_unlock(first.lock)


def one_node_after_the_other() -> None:
    first, second = new(Node), new(Node)
    spin_lock(first.lock)
    spin_unlock(first.lock)
    spin_lock(second.lock)
    spin_unlock(second.lock)


def assert_what_is_held() -> None:
    locks = the(Locks)
    spin_lock(locks.a)
    lockdep_assert_held(locks.a)
    spin_unlock(locks.a)
    read_lock(locks.rw)
    lockdep_assert_held(locks.rw)
    lockdep_assert_held_read(locks.rw)
    read_unlock(locks.rw)
    write_lock(locks.rw)
    lockdep_assert_held(locks.rw)
    lockdep_assert_held_write(locks.rw)
    write_unlock(locks.rw)


def assert_without() -> None:
    lockdep_assert_held(the(Locks).a)


def assert_write_as_reader() -> None:
    read_lock(the(Locks).rw)
    lockdep_assert_held_write(the(Locks).rw)
    read_unlock(the(Locks).rw)


def assert_read_as_writer() -> None:
    write_lock(the(Locks).rw)
    lockdep_assert_held_read(the(Locks).rw)
    write_unlock(the(Locks).rw)


def hold_a() -> None:
    spin_lock(the(Locks).a)
    complete(the(Locks).first_is_done)
    spin_unlock(the(Locks).a)


@CORPUS.good()
def same_order() -> None:
    spawn(a_then_b, name="a")
    spawn(a_then_b, name="b")


@CORPUS.bad("lockdep", "deadlock")
def opposite_orders() -> None:
    spawn(a_then_b, name="a")
    spawn(b_then_a, name="b")


@CORPUS.bad("lockdep")
def opposite_orders_one_after_the_other() -> None:
    spawn(a_then_b_first, name="a")
    spawn(b_then_a_second, name="b")


@CORPUS.bad("lockdep")
def a_circle_of_three_one_after_the_other() -> None:
    spawn(a_then_b_first, name="a")
    spawn(b_then_c_second, name="b")
    spawn(c_then_a_third, name="c")


@CORPUS.good()
def opposite_order_by_trylock() -> None:
    spawn(a_then_b, name="a")
    spawn(b_then_try_a, name="b")


@CORPUS.bad("lockdep")
def read_lock_in_opposite_orders() -> None:
    # no deadlock here: but with a writer that waits between there would be one
    spawn(read_then_a, name="a")
    spawn(a_then_read, name="b")


@CORPUS.good()
def srcu_readers_in_opposite_orders() -> None:
    spawn(srcu_then_mutex, name="a")
    spawn(mutex_then_srcu, name="b")


@CORPUS.bad("lockdep")
def waiting_for_readers_under_a_mutex_that_they_take() -> None:
    spawn(srcu_then_mutex, name="a")
    spawn(mutex_then_synchronize, name="b")


@CORPUS.bad("lockdep")
def two_locks_of_one_class() -> None:
    spawn(two_nodes, name="a")


@CORPUS.good()
def two_locks_of_one_class_one_after_the_other() -> None:
    spawn(one_node_after_the_other, name="a")


@CORPUS.good()
def assertions_that_hold() -> None:
    spawn(assert_what_is_held, name="a")


@CORPUS.bad("lockdep")
def assertion_without_the_lock() -> None:
    spawn(assert_without, name="a")


@CORPUS.bad("lockdep")
def assertion_that_somebody_else_satisfies() -> None:
    spawn(hold_a, name="a")
    spawn(assert_without, name="b")


@CORPUS.bad("lockdep")
def write_assertion_in_a_reader() -> None:
    spawn(assert_write_as_reader, name="a")


@CORPUS.bad("lockdep")
def read_assertion_in_a_writer() -> None:
    spawn(assert_read_as_writer, name="a")
