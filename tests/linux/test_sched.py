from __future__ import annotations

from interleaf.linux.sched import (
    TASK_INTERRUPTIBLE,
    TASK_RUNNING,
    bits,
    cond_resched,
    need_resched,
    schedule,
    set_current_state,
    wake_up_process,
)
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Marked, Object, Task, spawn, the

from .drive import Drive, run


class Global(Object):
    lock = Embedded(spinlock_t)
    woken = Marked[object](None)


def sleep() -> None:
    set_current_state(TASK_INTERRUPTIBLE)
    schedule()


def stay_awake() -> None:
    set_current_state(TASK_INTERRUPTIBLE)
    set_current_state(TASK_RUNNING)
    schedule()


def wake(task: Task) -> None:
    the(Global).woken = wake_up_process(task)


def program() -> None:
    spawn(wake, spawn(sleep, name="sleeper"), name="waker")


def resched_under_lock() -> None:
    spin_lock(the(Global).lock)
    cond_resched()
    spin_unlock(the(Global).lock)


def ask() -> None:
    the(Global).woken = need_resched()


def test_a_sleeper_waits_for_the_wake_up() -> None:
    drive = Drive(program)
    drive.step("sleeper")
    assert drive.waits("sleeper")
    drive.finish("waker")
    assert drive.peek(drive.global_(Global), Global.woken) is True
    drive.finish("sleeper")


def test_a_wake_up_before_schedule_is_not_lost() -> None:
    drive = Drive(program)
    drive.until("sleeper", "schedule")
    drive.finish("waker")
    drive.finish("sleeper")


def test_a_wake_up_before_the_state_is_set_is_lost() -> None:
    drive = Drive(program)
    drive.finish("waker")
    assert drive.peek(drive.global_(Global), Global.woken) is False
    drive.step("sleeper")
    assert drive.waits("sleeper")


def test_who_stays_awake_does_not_wait() -> None:
    assert run(stay_awake).unfinished == []


def test_cond_resched_under_a_spinlock() -> None:
    [violation] = run(resched_under_lock).violations
    assert violation.message == "a may sleep in resched_under_lock() and holds Global.lock"


def test_need_resched_is_a_choice() -> None:
    for outcome in (0, 1):
        drive = Drive(lambda: spawn(ask, name="a"))
        step = drive.step("a", outcome)
        assert step is not None
        drive.finish("a")
        assert drive.peek(drive.global_(Global), Global.woken) is bool(outcome)


def test_bits() -> None:
    assert list(bits(0)) == []
    assert list(bits(0b1010_0001)) == [0, 5, 7]
