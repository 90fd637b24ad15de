from __future__ import annotations

from interleaf.linux.workqueue import (
    INIT_WORK,
    alloc_workqueue,
    destroy_workqueue,
    flush_workqueue,
    queue_work,
    work_struct,
    workqueue_struct,
)
from interleaf.runtime import Embedded, Marked, Object, container_of, spawn, the

from .drive import Drive


class Global(Object):
    work = Embedded(work_struct)
    other = Embedded(work_struct)
    answers = Marked[tuple[bool, ...]](())
    runs = Marked(0)


def job(work: work_struct) -> None:
    container_of(work, Global).runs += 1


def queue(wq: workqueue_struct) -> None:
    the(Global).answers += (queue_work(wq, the(Global).work),)


def queue_other(wq: workqueue_struct) -> None:
    queue_work(wq, the(Global).other)


def flush(wq: workqueue_struct) -> None:
    flush_workqueue(wq)


def destroy(wq: workqueue_struct) -> None:
    destroy_workqueue(wq)


def program() -> None:
    wq = alloc_workqueue("wq")
    INIT_WORK(the(Global).work, job)
    INIT_WORK(the(Global).other, job)
    spawn(queue, wq, name="a")
    spawn(queue, wq, name="b")
    spawn(queue_other, wq, name="other")
    spawn(flush, wq, name="flush")
    spawn(destroy, wq, name="destroy")


WORK = "work:Global.work"


def test_what_is_pending_is_not_queued_again() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.finish("b")
    assert drive.peek(drive.global_(Global), Global.answers) == (True, False)
    assert [name for name in drive.unfinished if name.startswith("work")] == [WORK]


def test_what_runs_can_be_queued_again_but_does_not_run_twice_at_once() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.step(WORK)
    drive.finish("b")
    assert drive.peek(drive.global_(Global), Global.answers) == (True, True)
    assert drive.waits(f"{WORK}#1")
    drive.finish(WORK)
    drive.finish(f"{WORK}#1")
    assert drive.peek(drive.global_(Global), Global.runs) == 2


def test_different_items_run_at_the_same_time() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.finish("other")
    drive.step(WORK)
    assert not drive.waits("work:Global.other")


def test_flush_waits_for_what_was_queued_before_and_for_nothing_else() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.step("flush")
    drive.finish("other")
    assert drive.waits("flush")
    drive.finish(WORK)
    drive.finish("flush")
    assert "work:Global.other" in drive.unfinished


def test_flush_waits_for_the_run_that_was_pending_and_not_for_the_next() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.step("flush")
    drive.step(WORK)
    drive.finish("b")
    drive.finish(WORK)
    drive.finish("flush")
    assert f"{WORK}#1" in drive.unfinished


def test_destroy_waits_until_nothing_is_left_and_frees_the_queue() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.until("destroy", "join")
    assert drive.waits("destroy")
    drive.finish(WORK)
    drive.finish("destroy")
    drive.step("b")
    while not drive.steps[-1].violations:
        drive.step("b")
    assert drive.rules == ["use-after-free"]


def test_queueing_on_a_queue_that_is_drained_is_reported() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.until("destroy", "join")
    drive.finish("other")
    [violation] = drive.violations
    assert violation.rule == "workqueue"
    assert not violation.fatal
    assert violation.message == (
        "other in queue_other(): Global.other is queued on wq, which is being drained; it never runs"
    )


def test_in_words() -> None:
    drive = Drive(program)
    drive.finish("a")
    drive.step("flush")
    drive.finish(WORK)
    assert [line for line in drive.story if "work" in line] == [
        "a queues Global.work",
        "flush waits for 1 work items of wq",
        f"{WORK} begins to work on Global.work",
        f"{WORK} Global.runs == 0",
        f"{WORK} Global.runs = 1",
        f"{WORK} is done with Global.work",
        f"{WORK} ends",
    ]
