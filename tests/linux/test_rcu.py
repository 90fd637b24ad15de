from __future__ import annotations

from typing import Any

from interleaf.linux.grace import Readers
from interleaf.linux.rcu import (
    RcuState,
    call_rcu,
    rcu_assign_pointer,
    rcu_barrier,
    rcu_dereference,
    rcu_read_lock,
    rcu_read_unlock,
    synchronize_rcu,
)
from interleaf.runtime import Marked, Object, Plain, spawn, the

from .drive import Drive, conflict, run


class Global(Object):
    pointer = Plain[Any](None)
    freed = Marked(0)


def stay() -> None:
    rcu_read_lock()
    rcu_read_unlock()


def stay_nested() -> None:
    rcu_read_lock()
    rcu_read_lock()
    rcu_read_unlock()
    rcu_read_unlock()


def stay_twice() -> None:
    stay()
    stay()


def release(what: str) -> None:
    the(Global).freed += 1


def call() -> None:
    call_rcu(release, "x")


def call_two_and_barrier() -> None:
    call_rcu(release, "x")
    call_rcu(release, "y")
    rcu_barrier()


def publish() -> None:
    rcu_assign_pointer(the(Global), Global.pointer, "new")


def look() -> None:
    rcu_dereference(the(Global), Global.pointer)


def program() -> None:
    spawn(stay, name="old")
    spawn(stay, name="new")
    spawn(stay_nested, name="nested")
    spawn(stay_twice, name="twice")
    spawn(synchronize_rcu, name="waiter")
    spawn(call, name="caller")


def test_without_readers_a_grace_period_is_over_at_once() -> None:
    drive = Drive(program)
    drive.finish("waiter")
    assert drive.story == ["waiter begins a grace period: no readers", "waiter ends"]


def test_it_waits_for_a_reader_that_was_inside_when_it_began() -> None:
    drive = Drive(program)
    drive.step("old")
    drive.step("waiter")
    assert drive.waits("waiter")
    drive.finish("old")
    drive.finish("waiter")


def test_it_does_not_wait_for_a_reader_that_came_later() -> None:
    drive = Drive(program)
    drive.step("old")
    drive.step("waiter")
    drive.step("new")
    assert drive.waits("waiter")
    drive.finish("old")
    drive.finish("waiter")
    assert "new" in drive.unfinished


def test_it_does_not_wait_for_a_reader_that_has_come_back() -> None:
    drive = Drive(program)
    drive.step("twice")
    drive.step("waiter")
    drive.step("twice")
    drive.step("twice")
    assert drive.pending("twice") == "rcu_read_unlock"
    drive.finish("waiter")


def test_the_inner_unlock_does_not_end_a_nested_reader() -> None:
    drive = Drive(program)
    drive.step("nested")
    drive.step("nested")
    drive.step("waiter")
    drive.step("nested")
    assert drive.waits("waiter")
    drive.step("nested")
    drive.finish("waiter")


def test_a_callback_is_a_task_of_its_own_that_waits_for_the_readers() -> None:
    drive = Drive(program)
    drive.step("old")
    drive.finish("caller")
    assert drive.unfinished[-1] == "rcu:release(x)"
    assert drive.waits("rcu:release(x)")
    drive.finish("old")
    drive.finish("rcu:release(x)")
    assert drive.peek(drive.global_(Global), Global.freed) == 1


def test_two_waiters_wait_each_for_their_own_readers() -> None:
    drive = Drive(program)
    drive.step("old")
    drive.step("waiter")
    drive.step("new")
    drive.step("caller")
    drive.finish("old")
    drive.finish("waiter")
    assert drive.waits("rcu:release(x)")
    drive.finish("new")
    drive.finish("rcu:release(x)")


def test_barrier_waits_for_all_callbacks_queued_before() -> None:
    def setup() -> None:
        spawn(call_two_and_barrier, name="a")
        spawn(stay, name="reader")

    drive = Drive(setup)
    drive.step("reader")
    while drive.pending("a") != "join":
        drive.step("a")
    drive.finish("reader")
    drive.finish("rcu:release(x)")
    assert drive.waits("a")
    drive.finish("rcu:release(y)")
    drive.finish("a")


def test_nothing_remains_of_what_is_over() -> None:
    drive = Drive(program)
    before = drive.execution.memory.zobrist
    drive.step("old")
    drive.step("nested")
    drive.step("waiter")
    drive.finish_all()
    state = drive.global_(RcuState)
    assert drive.unfinished == []
    assert drive.peek(state, RcuState.readers) == 0
    assert drive.peek(state, RcuState.callbacks) == 0
    tasks = range(len(drive.execution.world.tasks))
    for array in (Readers.waiters, Readers.awaited, RcuState.nesting):
        assert [drive.element(state, array, task) for task in tasks] == [0 for _ in tasks]
    assert drive.execution.memory.zobrist != before


def test_readers_are_independent_of_each_other_and_not_of_a_grace_period() -> None:
    drive = Drive(program)
    enter_a, enter_b = drive.step("old"), drive.step("new")
    begin = drive.step("waiter")
    leave_a, leave_b = drive.step("old"), drive.step("new")
    for one in (enter_a, leave_a):
        for other in (enter_b, leave_b):
            assert one is not None
            assert other is not None
            assert not conflict(one, other)
    for step in (enter_a, leave_a):
        assert step is not None
        assert begin is not None
        assert conflict(step, begin)


def test_callbacks_that_are_queued_again_are_other_tasks() -> None:
    def again() -> None:
        call()
        rcu_barrier()
        call()

    drive = run(again)
    assert [line for line in drive.story if line.endswith("ends") and line.startswith("rcu")] == [
        "rcu:release(x) ends",
        "rcu:release(x)#1 ends",
    ]


def test_following_a_pointer_outside_a_reader_goes_on() -> None:
    drive = run(look)
    [violation] = drive.violations
    assert not violation.fatal
    assert violation.message == "a in look(): Global.pointer is dereferenced without protection"
    assert drive.unfinished == []


def test_publishing_and_waiting_in_words() -> None:
    assert run(publish).story[0] == "a Global.pointer = new (published)"
    assert run(call).story[0] == "a queues release(x), to run after a grace period"
