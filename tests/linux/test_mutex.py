from __future__ import annotations

from interleaf.linux.lockdep import lock
from interleaf.linux.mutex import mutex, mutex_lock, mutex_trylock, mutex_unlock
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Object, spawn, the

from .drive import Drive, run


class Shared(Object):
    lock = Embedded(mutex)
    spin = Embedded(spinlock_t)


def section() -> None:
    mutex_lock(the(Shared).lock)
    mutex_unlock(the(Shared).lock)


def both() -> None:
    spawn(section, name="a")
    spawn(section, name="b")


def under_spinlock() -> None:
    spin_lock(the(Shared).spin)
    section()
    spin_unlock(the(Shared).spin)


def attempt_twice() -> None:
    assert mutex_trylock(the(Shared).lock)
    assert not mutex_trylock(the(Shared).lock)
    mutex_unlock(the(Shared).lock)


def test_a_taken_mutex_makes_the_other_wait() -> None:
    drive = Drive(both)
    drive.step("a")
    assert drive.waits("b")
    drive.finish("a")
    assert not drive.waits("b")


def test_it_is_free_in_the_end() -> None:
    drive = Drive(both)
    drive.finish_all()
    assert drive.peek(drive.global_(Shared).lock, lock.holders) == 0
    assert drive.unfinished == []


def test_sleeping_for_it_under_a_spinlock_names_the_spinlock_and_goes_on() -> None:
    drive = run(under_spinlock)
    [violation] = drive.violations
    assert not violation.fatal
    assert violation.message == "a may sleep in section() and holds Shared.spin"
    assert drive.unfinished == []


def test_trylock_of_the_own_mutex_fails_without_a_violation() -> None:
    drive = run(attempt_twice)
    assert drive.violations == []
    assert drive.unfinished == []
