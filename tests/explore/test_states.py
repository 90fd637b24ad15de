"""The proof engine: state counts, what it must find, and that its ingredients do not change the answer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from interleaf.explore.outcome import Bounds
from interleaf.explore.states import Options, StateSearch
from interleaf.runtime import check, spawn, the

from .programs import (
    Counters,
    choosing,
    deadlocking,
    freeing_without_order,
    lock_benchmark,
    plain_worker,
    racy_worker,
    spinning_for_ever,
    spinning_until_set,
)


def racing_to_fail() -> None:
    """Each task ends the execution."""

    def fails(me: int) -> None:
        the(Counters).m = me
        check("never", False, f"task {me} was here")

    for me in range(3):
        spawn(fails, me, name=f"task{me}")


def rules(setup: Any, **kwargs: Any) -> Any:
    search = StateSearch(setup, **kwargs)
    outcome = search.run()
    search.close()
    assert outcome.exhaustive, outcome.stopped
    return {found.violation.rule for found in outcome.found}


@pytest.mark.parametrize(("tasks", "rounds"), [(2, 2), (3, 2), (3, 4)])
def test_lock_benchmark_has_one_state_for_each_progress_of_each_task(tasks: Any, rounds: Any) -> None:
    outcome = StateSearch(lock_benchmark(tasks, rounds)).run()
    # all (rounds + 1)^tasks combinations, and from the end of all tasks two steps of the one that sums up:
    # waiting for the last task and looking at the counters are one step, and its state before that is merged
    # with the end of the workers only when all of them have ended
    assert outcome.exhaustive
    assert not outcome.found
    assert (rounds + 1) ** tasks <= outcome.states < 1.6 * (rounds + 1) ** tasks


def test_without_lock_reduction_there_are_no_fewer_states() -> None:
    reduced = StateSearch(lock_benchmark(3, 2)).run()
    full = StateSearch(lock_benchmark(3, 2), options=Options(locks=False)).run()
    assert reduced.states < full.states
    assert full.exhaustive
    assert not full.found


def test_lost_update_is_found() -> None:
    assert "sum" in rules(lock_benchmark(3, 3, racy_worker))


def test_plain_accesses_without_the_lock_are_a_data_race() -> None:
    assert rules(lock_benchmark(3, 3, plain_worker)) == {"data-race", "sum"}


def test_no_race_is_reported_where_the_lock_orders() -> None:
    assert rules(lock_benchmark(3, 3)) == set()


def test_deadlock_is_found_and_says_who_waits() -> None:
    outcome = StateSearch(deadlocking).run()
    (found,) = outcome.found
    assert found.violation.rule == "deadlock"
    assert "ab waits in acquire" in found.violation.message
    assert "ba waits in acquire" in found.violation.message


def test_a_task_that_nobody_can_set_free_is_a_livelock() -> None:
    assert rules(spinning_for_ever) == {"livelock"}


def test_a_task_that_waits_for_another_one_is_no_livelock() -> None:
    assert rules(spinning_until_set) == set()


def test_all_outcomes_of_choices_are_covered() -> None:
    outcome = StateSearch(choosing).run()
    (found,) = outcome.found
    assert found.violation.rule == "not-2-1"
    assert [outcome for move in found.schedule for outcome in move.choices] == [2, 1]


def test_unordered_free_is_a_use_after_free() -> None:
    assert "use-after-free" in rules(freeing_without_order)


PROGRAMS = {
    "locks": lock_benchmark(3, 2),
    "racy": lock_benchmark(3, 2, racy_worker),
    "plain": lock_benchmark(2, 2, plain_worker),
    "deadlock": deadlocking,
    "choices": choosing,
    "free": freeing_without_order,
    "spin": spinning_for_ever,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_mix_of_ingredients_gives_the_same_answer(name: Any) -> None:
    expected = rules(PROGRAMS[name])
    for frames, sleep, locks, journal in itertools.product((True, False), repeat=4):
        options = Options(frames=frames, sleep=sleep, locks=locks, journal=journal)
        if name == "spin" and not frames:
            continue  # a flat history never forgets, so a retry loop has no end
        assert rules(PROGRAMS[name], options=options) == expected, options


@pytest.mark.parametrize("name", ["locks", "racy", "choices", "free"])
def test_the_journal_and_known_steps_make_the_same_search_only_faster(name: Any) -> None:
    one = StateSearch(PROGRAMS[name]).run()
    for options in (Options(journal=False), Options(known=False)):
        other = StateSearch(PROGRAMS[name], options=options).run()
        assert (one.states, one.transitions, one.found) == (other.states, other.transitions, other.found)


def test_a_bound_on_states_ends_the_search_and_says_so() -> None:
    outcome = StateSearch(lock_benchmark(3, 4), bounds=Bounds(states=20)).run()
    assert not outcome.exhaustive
    assert outcome.stopped == "the bound of 20 states was reached"


def test_a_bound_on_executions_ends_the_search_and_says_so() -> None:
    outcome = StateSearch(lock_benchmark(3, 4), bounds=Bounds(executions=5)).run()
    assert not outcome.exhaustive
    assert "5 executions" in outcome.stopped


@pytest.mark.parametrize("program", [lock_benchmark(2, 2), racing_to_fail])
def test_a_bound_that_is_as_large_as_the_search_stops_nothing(program: Any) -> None:
    whole = StateSearch(program).run()
    assert whole.exhaustive
    enough = StateSearch(program, bounds=Bounds(states=whole.states, executions=whole.executions)).run()
    assert enough.exhaustive
    assert not StateSearch(program, bounds=Bounds(states=whole.states - 1)).run().exhaustive
    fewer = StateSearch(program, bounds=Bounds(executions=whole.executions - 1)).run()
    assert (fewer.exhaustive, fewer.executions) == (False, whole.executions - 1)


def test_a_search_repeats_exactly() -> None:
    one, other = (StateSearch(lock_benchmark(3, 3, racy_worker)).run() for _ in range(2))
    assert (one.states, one.transitions, one.executions) == (other.states, other.transitions, other.executions)
    assert one.found == other.found


def test_the_estimate_of_the_finished_share_grows_to_one() -> None:
    seen: list[float] = []
    search = StateSearch(lock_benchmark(4, 4), progress=lambda progress: seen.append(progress.fraction))
    search.run()
    assert seen
    assert all(0 <= fraction <= 1 for fraction in seen)
    restarts = sum(later < earlier for earlier, later in itertools.pairwise(seen))
    assert restarts <= search.outcome.restarts
    assert seen[-1] > 0
