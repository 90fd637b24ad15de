from __future__ import annotations

from interleaf.linux.kthread import kthread_create, kthread_run, kthread_should_stop, kthread_stop
from interleaf.linux.sched import wake_up_process
from interleaf.runtime import Marked, Object, checkpoint, routine, spawn, the

from .drive import Drive


class Global(Object):
    rounds = Marked(0)


@routine
def work_until_stopped() -> None:
    while not kthread_should_stop():
        checkpoint()
        the(Global).rounds += 1


def create() -> None:
    thread = kthread_create(work_until_stopped, name="thread")
    wake_up_process(thread)
    kthread_stop(thread)


def start() -> None:
    kthread_stop(kthread_run(work_until_stopped, name="thread"))


def test_a_thread_sleeps_until_it_is_woken() -> None:
    drive = Drive(lambda: spawn(create, name="a"))
    drive.until("a", "wake_up_process")
    drive.step("thread")
    assert drive.waits("thread")
    drive.step("a")
    assert not drive.waits("thread")
    assert drive.pending("thread") == "kthread_should_stop"


def test_stop_waits_for_the_end() -> None:
    drive = Drive(lambda: spawn(start, name="a"))
    drive.until("a", "kthread_stop")
    drive.until("thread", "write")
    drive.until("a", "join")
    assert drive.waits("a")
    drive.finish("thread")
    drive.finish("a")
    assert drive.peek(drive.global_(Global), Global.rounds) == 1


def test_a_thread_stopped_before_it_ran_never_runs() -> None:
    drive = Drive(lambda: spawn(start, name="a"))
    drive.until("a", "join")
    drive.finish("thread")
    assert drive.peek(drive.global_(Global), Global.rounds) == 0
    assert drive.story[-3:] == ["thread is awake", "thread should stop", "thread ends"]
