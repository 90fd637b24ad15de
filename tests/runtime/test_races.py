"""Happens-before: what orders two accesses, and what does not."""

from __future__ import annotations

from typing import Any

from interleaf.runtime import Execution, World
from interleaf.runtime.races import RaceDetector
from tests.explore.programs import freeing_without_order, lock_benchmark, plain_worker, racy_worker


def races(setup: Any, order: Any) -> Any:
    """Races in the run in which the tasks run one after the other in `order`."""
    detector = RaceDetector(lambda: ("", 0, "somewhere"))
    run = Execution(World(), setup, observer=detector)
    for name in order:
        while True:
            running = [task for task in run.unfinished if task.name == name]
            if not running or run.step(running[0]) is None:
                break
    return {(race.rule, race.message) for race in detector.races}


def test_a_lock_orders_what_it_protects() -> None:
    assert races(lock_benchmark(2, 2), ["t0", "t1", "sum"]) == set()


def test_an_access_without_the_lock_races_though_the_tasks_ran_one_after_the_other() -> None:
    found = races(lock_benchmark(2, 2, plain_worker), ["t1", "t0", "sum"])
    assert {rule for rule, _ in found} == {"data-race"}
    assert any("Counters.c[]" in message for _, message in found)


def test_a_marked_access_races_with_a_plain_one_only() -> None:
    found = races(lock_benchmark(3, 1, racy_worker), ["t0", "t1", "t2", "sum"])
    assert all("plain" in message for _, message in found)
    assert found


def test_the_end_of_a_task_orders_what_comes_after_join() -> None:
    # the sum is read without the lock, after all tasks have been joined
    assert races(lock_benchmark(3, 1), ["t2", "t0", "t1", "sum"]) == set()


def test_an_unordered_free_is_a_use_after_free_in_waiting() -> None:
    assert {rule for rule, _ in races(freeing_without_order, ["user", "dropper"])} == {"use-after-free"}
