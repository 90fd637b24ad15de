from __future__ import annotations

from interleaf.linux.atomic import READ_ONCE, WRITE_ONCE
from interleaf.linux.wait import wait_event, wait_queue_head_t, wake_up
from interleaf.runtime import Embedded, Marked, Object, spawn, the

from .drive import Drive


class Global(Object):
    queue = Embedded(wait_queue_head_t)
    level = Marked(0)


def reached(level: int) -> bool:
    return READ_ONCE(the(Global), Global.level) >= level


def wait(level: int) -> None:
    wait_event(the(Global).queue, reached, level)


def rise() -> None:
    for level in (1, 2):
        WRITE_ONCE(the(Global), Global.level, level)
        wake_up(the(Global).queue)


def program() -> None:
    spawn(wait, 1, name="one")
    spawn(wait, 2, name="two")
    spawn(rise, name="rise")


def test_a_waiter_sleeps_until_it_is_woken_and_looks_again() -> None:
    drive = Drive(program)
    drive.until("one", "schedule")
    drive.until("two", "schedule")
    assert drive.waits("one")
    drive.step("rise")
    drive.step("rise")
    drive.finish("one")
    drive.until("two", "prepare_to_wait")
    drive.until("two", "schedule")
    assert drive.waits("two")
    drive.finish("rise")
    drive.finish("two")


def test_a_condition_that_is_true_is_not_waited_for() -> None:
    drive = Drive(program)
    drive.finish("rise")
    drive.finish("two")
    assert not any("queues itself" in line for line in drive.story)


def test_a_change_between_the_look_and_the_sleep_is_not_missed() -> None:
    drive = Drive(program)
    drive.until("one", "prepare_to_wait")
    drive.finish("rise")
    drive.finish("one")
    assert drive.peek(drive.global_(Global).queue, wait_queue_head_t.waiters) == 0
