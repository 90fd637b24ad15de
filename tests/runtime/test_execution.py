"""One run: steps, schedules and replay."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.runtime import Execution, ModelError, Move, Step, StepLimit, World, checkpoint, new, routine, spawn
from tests.explore.programs import Counters, choosing, deadlocking, lock_benchmark, plain_worker


def drive(setup: Any, order: Any) -> Any:
    """Run the tasks in turns by name; returns the execution at its end."""
    run = Execution(World(), setup, narrate=True)
    while run.unfinished:
        moved = False
        for task in sorted(run.unfinished, key=lambda task: order.index(task.name)):
            if run.step(task) is not None:
                moved = True
                break
        assert moved
    return run


def stepped(run: Execution, *args: Any) -> Step:
    """The step, which must be possible."""
    step = run.step(*args)
    assert step is not None
    return step


def test_the_same_schedule_gives_the_same_run() -> None:
    setup = lock_benchmark(2, 2)
    one = drive(setup, ["t1", "t0", "sum"])
    other = Execution(World(), setup, narrate=True)
    for _ in other.replay(one.schedule):
        pass
    assert not other.unfinished
    assert [event for step in one.steps for event in step.events] == [
        event for step in other.steps for event in step.events
    ]
    assert one.memory.zobrist == other.memory.zobrist


def test_a_step_is_one_marked_operation_and_the_plain_ones_after_it() -> None:
    run = Execution(World(), lock_benchmark(2, 1), narrate=True)
    first = run.unfinished[0]
    assert [event.operation for event in stepped(run, first).events] == ["acquire", "read", "write"]
    assert [event.operation for event in stepped(run, first).events] == ["release", "end"]


def test_a_step_can_be_cut_short_before_a_plain_operation() -> None:
    run = Execution(World(), lock_benchmark(2, 1, plain_worker), narrate=True)
    racer = run.unfinished[1]
    assert [event.operation for event in stepped(run, racer, (), 1).events] == ["read"]
    assert run.schedule == (Move("t1", (), 1),)


def test_a_blocked_task_is_not_run_and_changes_nothing() -> None:
    run = Execution(World(), deadlocking)
    one, other = run.unfinished
    run.step(one)
    run.step(other)
    before = run.memory.zobrist
    assert run.step(one) is None
    assert run.step(other) is None
    assert run.memory.zobrist == before
    assert len(run.schedule) == 2


def test_choices_come_from_the_schedule_and_are_recorded() -> None:
    run = Execution(World(), choosing)
    (task,) = run.unfinished
    step = stepped(run, task, (2,))
    assert step.choices == (2,)
    assert step.branches == [3]
    step = stepped(run, task, (1,))
    assert [violation.rule for violation in step.violations] == ["not-2-1"]
    assert step.fatal


def test_an_outcome_that_a_choice_does_not_have_is_refused() -> None:
    run = Execution(World(), choosing)
    with pytest.raises(ModelError, match="has 3 outcomes"):
        run.step(run.unfinished[0], (3,))


def test_a_replay_that_diverges_names_the_step_and_the_place() -> None:
    run = Execution(World(), deadlocking)
    schedule = (Move("ab"), Move("ba"), Move("ab"))
    with pytest.raises(
        ModelError, match=r"diverges at step 2: task ab should run, but it waits in acquire at .*programs"
    ):
        list(run.replay(schedule))
    with pytest.raises(ModelError, match=r"diverges at step 0: task nobody should run"):
        list(Execution(World(), deadlocking).replay((Move("nobody"),)))


@routine
def _count(counters: Counters) -> None:
    number = 0
    while True:
        checkpoint()
        number += 1
        counters.p = number


def _counts(counters: Counters) -> None:
    _count(counters)


def test_an_endless_execution_meets_its_limit() -> None:
    run = Execution(World(), lambda: spawn(_counts, new(Counters), name="a"), step_limit=500)
    with pytest.raises(StepLimit, match="operations without an end"):
        run.step(run.unfinished[0])


def test_two_tasks_may_not_share_a_name() -> None:
    def setup() -> None:
        counters = new(Counters)
        spawn(_counts, counters, name="a")
        spawn(_counts, counters, name="a")

    with pytest.raises(ModelError, match="two tasks are called a"):
        Execution(World(), setup)
