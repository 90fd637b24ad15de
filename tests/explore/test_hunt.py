"""Random searches: each strategy finds what there is, repeats with its seed, and ends at its bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from interleaf.explore.hunt import PCT, POS, SURW, Hunt, RandomWalk, Strategy, portfolio
from interleaf.explore.outcome import Bounds
from interleaf.runtime import Execution, World

from .programs import choosing, deadlocking, lock_benchmark, racy_worker, spinning_until_set

STRATEGIES: dict[str, Callable[[], Strategy]] = {"POS": POS, "PCT": lambda: PCT(3), "SURW": SURW, "walk": RandomWalk}


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_finds_a_lost_update(name: Any) -> None:
    setup = lock_benchmark(3, 3, racy_worker)
    hunt = Hunt(setup, Bounds(executions=2_000), 1, strategies=[STRATEGIES[name]()], stop_at_first=True)
    (found,) = hunt.run().found
    assert found.violation.rule == "sum"
    run = Execution(World(), setup)
    assert [violation.rule for violation in list(run.replay(found.schedule))[-1].violations] == ["sum"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_hunt(name: Any) -> None:
    outcomes = [
        Hunt(lock_benchmark(3, 2, racy_worker), Bounds(executions=50), 7, strategies=[STRATEGIES[name]()]).run()
        for _ in range(2)
    ]
    assert outcomes[0].found == outcomes[1].found
    assert outcomes[0].transitions == outcomes[1].transitions


def test_a_hunt_finds_deadlocks_and_outcomes_of_choices() -> None:
    deadlock = Hunt(deadlocking, Bounds(executions=200), 1).run()
    choice = Hunt(choosing, Bounds(executions=200), 1).run()
    assert {found.violation.rule for found in deadlock.found} == {"deadlock"}
    assert {found.violation.rule for found in choice.found} == {"not-2-1"}


def test_a_spinning_task_does_not_starve_the_others() -> None:
    outcome = Hunt(spinning_until_set, Bounds(executions=20), 1, strategies=[PCT(2)]).run()
    assert outcome.executions == 20
    assert not outcome.found


def test_a_hunt_proves_nothing_and_needs_an_end() -> None:
    outcome = Hunt(lock_benchmark(2, 1), Bounds(executions=10), 1).run()
    assert outcome.executions == 10
    assert not outcome.exhaustive
    assert "seed 1" in outcome.stopped
    with pytest.raises(ValueError, match="no end"):
        Hunt(deadlocking, Bounds(), 1)


def test_the_portfolio_has_each_strategy_of_the_design() -> None:
    assert [strategy.name for strategy in portfolio()] == ["POS", "PCT 3", "SURW", "PCT 5", "random walk"]


def test_a_hunt_tells_how_much_of_its_bound_is_used() -> None:
    seen: list[float] = []
    hunt = Hunt(lock_benchmark(2, 2), Bounds(executions=4), 1, progress=lambda progress: seen.append(progress.fraction))
    hunt.run()
    hunt.close()
    assert seen == [0.25, 0.5, 0.75, 1.0]
