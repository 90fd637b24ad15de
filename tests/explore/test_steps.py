"""The search over steps: what it must find, how many executions it needs, and where it must say that it stopped."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest

from interleaf.explore.outcome import Bounds, Outcome
from interleaf.explore.steps import StepSearch
from interleaf.runtime import (
    Execution,
    ModelError,
    World,
    check,
    checkpoint,
    new,
    read_marked,
    routine,
    spawn,
    write_marked,
)

from .programs import (
    Counters,
    acquire,
    choosing,
    deadlocking,
    freeing_without_order,
    lock_benchmark,
    racy_worker,
    release,
    spinning_for_ever,
    spinning_until_set,
)

Setup = Callable[[], object]


def steps(setup: Setup, **options: Any) -> Outcome:
    search = StepSearch(setup, **options)
    try:
        return search.run()
    finally:
        search.close()


def executions(setup: Setup) -> int:
    """How many executions it takes to exhaustion, once all is learned."""
    search = StepSearch(setup)
    outcome = search.run()
    search.close()
    assert outcome.exhaustive, outcome.stopped
    return search.executions


def tasks(*bodies: Callable[[Counters], None]) -> Setup:
    """A program with one task a function."""

    def setup() -> None:
        counters = new(Counters)
        for number, body in enumerate(bodies):
            spawn(body, counters, name=f"t{number}")

    return setup


def write(index: int, counters: Counters) -> None:
    write_marked(counters, Counters.c[index], index + 1)


def overwrite(value: int, counters: Counters) -> None:
    counters.m = value


def read(counters: Counters) -> None:
    read_marked(counters, Counters.m)


def locked_write(index: int, counters: Counters) -> None:
    acquire(counters.lock)
    counters.c[index] = 1
    release(counters.lock)


def part(function: Callable[..., None], value: int) -> Callable[[Counters], None]:
    return functools.partial(function, value)


def test_independent_steps_are_one_execution() -> None:
    assert executions(tasks(*(part(write, index) for index in range(5)))) == 1


@pytest.mark.parametrize("number", [2, 3, 4])
def test_writes_of_one_field_are_tried_in_every_order(number: int) -> None:
    assert executions(tasks(*(part(overwrite, value) for value in range(number)))) == math.factorial(number)


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_each_reader_comes_before_or_after_the_writer(readers: int) -> None:
    # the benchmark "readers" of Abdulla et al., POPL 2014
    assert executions(tasks(part(overwrite, 1), *[read] * readers)) == 2**readers


def test_sections_that_touch_different_data_are_not_ordered() -> None:
    assert executions(tasks(*(part(locked_write, index) for index in range(6)))) == 1


def test_sections_that_touch_the_same_data_are_tried_in_every_order() -> None:
    assert executions(tasks(*[part(locked_write, 0)] * 4)) == math.factorial(4)


@pytest.mark.parametrize("discipline", [True, False])
def test_lost_update_is_found_and_none_where_there_is_none(discipline: bool) -> None:
    assert not steps(lock_benchmark(3, 2), discipline=discipline).found
    outcome = steps(lock_benchmark(3, 2, racy_worker), discipline=discipline)
    assert outcome.exhaustive
    assert [found.violation.rule for found in outcome.found] == ["sum"]


@pytest.mark.parametrize("setup", [deadlocking, freeing_without_order, choosing, lock_benchmark(3, 2, racy_worker)])
def test_what_is_found_replays(setup: Setup) -> None:
    outcome = steps(setup)
    assert outcome.exhaustive
    assert outcome.found
    for found in outcome.found:
        run = Execution(World(), setup)
        last = list(run.replay(found.schedule))[-1]
        if found.violation.rule == "deadlock":
            assert all(run.step(task) is None for task in run.unfinished)
        else:
            assert found.violation in last.violations
        run.close()


def dies(name: str, counters: Counters) -> None:
    read_marked(counters, Counters.c[9])
    check(name, False, f"{name} dies")


def dies_late(counters: Counters) -> None:
    check("late", read_marked(counters, Counters.m) != 1, "the other one has got through")


def test_a_fatal_violation_hides_none_of_another_task() -> None:
    setup = tasks(functools.partial(dies, "one"), functools.partial(dies, "other"), dies_late, part(overwrite, 1))
    outcome = steps(setup)
    assert {found.violation.rule for found in outcome.found} == {"one", "other", "late"}
    for found in outcome.found:
        # its story has nothing in it that came before by chance
        assert len({move.task for move in found.schedule}) == (2 if found.violation.rule == "late" else 1)


def test_who_waits_for_himself_gets_nowhere() -> None:
    outcome = steps(spinning_for_ever)
    assert outcome.exhaustive
    [found] = outcome.found
    assert found.violation.rule == "livelock"
    assert "spinner retries for ever" in found.violation.message


def test_who_waits_for_another_one_is_woken() -> None:
    outcome = steps(spinning_until_set)
    assert outcome.exhaustive
    assert not outcome.found
    assert executions(spinning_until_set) == 2


@routine
def count_for_ever(counters: Counters) -> None:
    number = 0
    while True:
        checkpoint()
        number += 1
        counters.m = number


def counts_for_ever(counters: Counters) -> None:
    count_for_ever(counters)


@pytest.mark.parametrize(
    ("discipline", "words"), [(False, "an execution is longer than 50 steps"), (True, "without a scheduling point")]
)
def test_an_execution_without_end_is_incomplete(discipline: bool, words: str) -> None:
    outcome = steps(tasks(counts_for_ever, read), bounds=Bounds(steps=50), discipline=discipline)
    assert not outcome.exhaustive
    assert words in outcome.stopped


def test_bounds_are_kept_and_stated() -> None:
    setup = tasks(*(part(overwrite, value) for value in range(5)))
    outcome = steps(setup, bounds=Bounds(executions=10))
    assert (outcome.executions, outcome.exhaustive) == (10, False)
    assert outcome.stopped == "the bound of 10 executions was reached"
    outcome = steps(lock_benchmark(4, 4, racy_worker), bounds=Bounds(seconds=0))
    assert outcome.stopped == "the bound of 0 seconds was reached"


@pytest.mark.parametrize("bounds", [Bounds(states=3), Bounds(preemptions=1)])
def test_a_bound_that_it_cannot_honour_is_an_error(bounds: Bounds) -> None:
    with pytest.raises(ModelError, match="cannot honour"):
        StepSearch(deadlocking, bounds=bounds)


def test_it_can_stop_at_the_first_violation() -> None:
    outcome = steps(deadlocking, stop_at_first=True)
    assert len(outcome.found) == 1
    assert not outcome.exhaustive


def test_memory_does_not_grow_with_the_executions() -> None:
    search = StepSearch(lock_benchmark(3, 3, racy_worker))
    outcome = search.run()
    assert outcome.executions > 300
    assert not search.stack
    assert len(search.path.events) <= 1
    assert len(search.world.frames) < 300
    search.close()
