"""Brute force counts what it should, live and remembered."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from interleaf.explore.brute import BruteForce
from interleaf.explore.outcome import Bounds, Outcome
from interleaf.runtime import ModelError, new, spawn

from .programs import Counters, choosing, deadlocking, freeing_without_order, spinning_for_ever, spinning_until_set


def brute(setup: Callable[[], object], *, bounds: Bounds | None = None, live: bool = False) -> tuple[Outcome, int]:
    """The outcome, and the number of different states in which executions end."""
    search = BruteForce(setup, bounds=bounds, live=live)
    try:
        return search.run(), len(search.finals)
    finally:
        search.close()


def writer(counters: Counters, number: int, writes: int, plain: bool) -> None:
    for value in range(writes):
        if plain:
            counters.p = 10 * number + value
        else:
            counters.m = 10 * number + value


def writers(tasks: int, writes: int, plain: bool = False) -> Callable[[], None]:
    def setup() -> None:
        counters = new(Counters)
        for number in range(tasks):
            spawn(writer, counters, number, writes, plain, name=f"w{number}")

    return setup


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("tasks", "writes"), [(2, 1), (2, 3), (3, 2), (4, 1)])
def test_every_order_of_accesses_is_one_execution(tasks: int, writes: int, plain: bool, live: bool) -> None:
    outcome, finals = brute(writers(tasks, writes, plain), live=live)
    assert outcome.exhaustive
    assert outcome.executions == math.factorial(tasks * writes) // math.factorial(writes) ** tasks
    assert finals == tasks
    assert outcome.depth == tasks * writes


@pytest.mark.parametrize("live", [False, True])
def test_all_outcomes_of_choices_are_tried(live: bool) -> None:
    outcome, finals = brute(choosing, live=live)
    [found] = outcome.found
    assert found.violation.rule == "not-2-1"
    assert [outcome for move in found.schedule for outcome in move.choices] == [2, 1]
    assert (outcome.executions, finals) == (6, 3)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(("setup", "rule"), [(deadlocking, "deadlock"), (freeing_without_order, "use-after-free")])
def test_violations_come_with_a_schedule_that_replays(setup: Callable[[], None], rule: str, live: bool) -> None:
    from interleaf.runtime import Execution, World

    outcome, _ = brute(setup, live=live)
    [found] = outcome.found
    assert found.violation.rule == rule
    run = Execution(World(), setup)
    steps = list(run.replay(found.schedule))
    if rule == "deadlock":
        assert all(run.step(task) is None for task in run.unfinished)
    else:
        assert steps[-1].violations == [found.violation]
    run.close()


@pytest.mark.parametrize("live", [False, True])
def test_a_circle_is_gone_round_once(live: bool) -> None:
    assert brute(spinning_for_ever, live=live)[0].exhaustive
    outcome, finals = brute(spinning_until_set, live=live)
    assert outcome.exhaustive
    assert finals == 1


def test_merging_visits_each_state_once() -> None:
    search = BruteForce(writers(3, 3), live=False, merge=True)
    outcome = search.run()
    search.close()
    # how far each task is, and which write came last
    assert outcome.states == 1 + sum(
        1 for a in range(4) for b in range(4) for c in range(4) for done in (a, b, c) if done
    )
    assert len(search.finals) == 3


@pytest.mark.parametrize(
    ("bounds", "word"),
    [(Bounds(executions=7), "7 executions"), (Bounds(seconds=0), "0 seconds"), (Bounds(steps=4), "longer than 4")],
)
def test_a_bound_that_stops_it_is_stated(bounds: Bounds, word: str) -> None:
    outcome, _ = brute(writers(3, 2), bounds=bounds)
    assert not outcome.exhaustive
    assert word in outcome.stopped


@pytest.mark.parametrize("bounds", [Bounds(states=3), Bounds(preemptions=1)])
def test_a_bound_that_it_cannot_honour_is_an_error(bounds: Bounds) -> None:
    with pytest.raises(ModelError, match="cannot honour"):
        BruteForce(writers(2, 1), bounds=bounds)
