"""Searches with a bound on preemptions, and the stories that come out of them."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.explore.bounded import BoundedSearch, shortest
from interleaf.explore.outcome import Bounds, Progress, Stopped
from interleaf.runtime import Execution, World

from .programs import deadlocking, lock_benchmark, racy_worker

LOST = ("sum", "updates are lost")


def replayed(setup: Any, schedule: Any) -> Any:
    run = Execution(World(), setup)
    steps = list(run.replay(schedule))
    run.close()
    return steps


def test_no_preemption_is_not_enough_for_a_lost_update_and_one_is() -> None:
    setup = lock_benchmark(3, 3, racy_worker)
    none = BoundedSearch(setup, Bounds(preemptions=0)).run()
    one = BoundedSearch(setup, Bounds(preemptions=1)).run()
    assert not none.found
    assert {found.violation.rule for found in one.found} == {"sum"}
    assert not none.exhaustive
    assert not one.exhaustive
    assert "at most 0 preemptions" in none.stopped


def test_the_shortest_story_has_the_fewest_preemptions_and_replays() -> None:
    setup = lock_benchmark(2, 2, racy_worker)
    ((found, preemptions),) = shortest(setup, [LOST], preemptions=3, states=10_000).values()
    assert preemptions == 1
    steps = replayed(setup, found.schedule)
    assert [violation.rule for violation in steps[-1].violations] == ["sum"]
    assert not any(step.violations for step in steps[:-1])


def test_the_story_of_a_deadlock_is_two_acquisitions() -> None:
    waits = ("deadlock", "ab waits in acquire (_nested); ba waits in acquire (_nested)")
    ((found, preemptions),) = shortest(deadlocking, [waits], preemptions=3, states=1_000).values()
    assert [move.task for move in found.schedule] == ["ab", "ba"]
    assert preemptions == 1


def test_what_is_not_there_is_not_found() -> None:
    assert shortest(lock_benchmark(2, 2), [LOST], preemptions=2, states=10_000) == {}


def test_too_few_states_give_no_story() -> None:
    setup = lock_benchmark(3, 3, racy_worker)
    assert shortest(setup, [LOST], preemptions=3, states=3) == {}


def test_a_bounded_search_needs_its_bound() -> None:
    with pytest.raises(ValueError, match="preemptions"):
        BoundedSearch(deadlocking, Bounds())


def test_a_bounded_search_tells_how_far_it_is_and_can_be_stopped() -> None:
    seen: list[float] = []

    def follow(progress: Progress) -> None:
        seen.append(progress.fraction)
        if len(seen) == 3:
            raise Stopped("that is enough")

    search = BoundedSearch(lock_benchmark(4, 4), Bounds(preemptions=3), progress=follow)
    outcome = search.run()
    search.close()
    assert outcome.stopped == "that is enough"
    assert len(seen) == 3
    assert all(0 <= fraction <= 1 for fraction in seen)
