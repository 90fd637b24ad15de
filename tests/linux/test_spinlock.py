from __future__ import annotations

from interleaf.linux.lockdep import lock
from interleaf.linux.spinlock import spin_lock, spin_trylock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Marked, Object, spawn, the

from .drive import Drive, run


class Shared(Object):
    lock = Embedded(spinlock_t)
    got = Marked(False)


def section() -> None:
    spin_lock(the(Shared).lock)
    spin_unlock(the(Shared).lock)


def attempt() -> None:
    if spin_trylock(the(Shared).lock):
        the(Shared).got = True
        spin_unlock(the(Shared).lock)


def both() -> None:
    spawn(section, name="a")
    spawn(section, name="b")


def one_tries() -> None:
    spawn(section, name="a")
    spawn(attempt, name="b")


def test_a_taken_lock_makes_the_other_wait() -> None:
    drive = Drive(both)
    drive.step("a")
    assert drive.waits("b")
    drive.finish("a")
    assert not drive.waits("b")


def test_holders_names_the_holder_and_is_free_in_the_end() -> None:
    drive = Drive(both)
    taken = drive.global_(Shared).lock
    index = drive.task("b").index
    drive.step("b")
    assert drive.peek(taken, lock.holders) == ~index
    drive.finish("b")
    assert drive.peek(taken, lock.holders) == 0


def test_trylock_fails_while_the_lock_is_taken() -> None:
    drive = Drive(one_tries)
    drive.step("a")
    drive.finish("b")
    assert not drive.peek(drive.global_(Shared), Shared.got)
    assert drive.story == ["a takes Shared.lock", "b finds Shared.lock taken", "b ends"]


def test_trylock_takes_a_free_lock() -> None:
    drive = Drive(one_tries)
    drive.finish("b")
    assert drive.peek(drive.global_(Shared), Shared.got)


def test_a_trylock_makes_unlocks_of_the_class_visible() -> None:
    drive = Drive(one_tries)
    domain = lock.holders.cell(drive.global_(Shared).lock).domain
    drive.finish("a")
    assert not domain.observed
    drive.finish("b")
    assert domain.observed


def test_an_unlock_only_lets_others_go() -> None:
    drive = Drive(both)
    drive.step("a")
    op = drive.execution.pending[drive.task("a").index]
    assert op.releases
    assert op.focus is lock.holders.cell(drive.global_(Shared).lock)


def test_unlocking_a_lock_that_another_task_holds_names_both() -> None:
    def setup() -> None:
        spawn(section, name="a")
        spawn(release, name="b")

    drive = Drive(setup)
    drive.step("a")
    drive.step("b")
    [violation] = drive.violations
    assert violation.fatal
    assert violation.message == "bad unlock balance: b releases Shared.lock in release(), not holding it"


def release() -> None:
    spin_unlock(the(Shared).lock)


def test_taking_it_twice_is_reported_where_it_happens() -> None:
    drive = run(twice)
    [violation] = drive.violations
    assert violation.rule == "lockdep"
    assert violation.message == "recursive locking: a takes Shared.lock in twice() and holds it"


def twice() -> None:
    spin_lock(the(Shared).lock)
    spin_lock(the(Shared).lock)
