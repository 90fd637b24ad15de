"""Every scenario runs to its end, on v6.12 (or v6.18) without any violation, whatever the scheduler does.

These are samples: what holds in every execution is the business of the search.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from interleaf.designs import OFF_LIST, SERIES_V1, V6_12, V6_18
from interleaf.kvm.design import Design
from interleaf.runtime import Execution, Task, Violation, World
from interleaf.scenarios import Scenario, library, load

EXAMPLE = load(str(Path(__file__).parents[2] / "examples" / "my_scenario.py"))

Pick = Callable[[list[Task]], Task]


def play(scenario: Scenario, design: Design, pick: Pick, coin: Callable[[], int]) -> tuple[list[Violation], World]:
    """One execution, up to its end or to a fatal violation; tasks by `pick`, choices by `coin`."""
    world = World()
    run = Execution(world, functools.partial(scenario.setup, design))
    found: list[Violation] = []
    try:
        while run.unfinished:
            ready = run.unfinished
            step = None
            while ready and step is None:
                task = pick(ready)
                step = run.step(task, iter(coin, None))
                ready.remove(task)
            assert step is not None, (
                f"deadlock: {[(task.name, run.pending[task.index].name) for task in run.unfinished]}"
            )
            found += step.violations
            if step.fatal:
                break
    finally:
        run.close()
    return found, world


LATER = {
    "prefault-vs-memslot-delete": "3ccbf6f47098",
    "prefault-with-obsolete-root": "20a6cff3b283",
    "private-conversion-vs-fault": "9129633d568e",
}
"""The scenarios that show a bug of v6.12, with its fix."""


def newest(scenario: Scenario) -> Design:
    """The oldest kernel without a known bug in the scenario, of the latest two."""
    return V6_18 if scenario.name in LATER else V6_12


def at_random(scenario: Scenario, design: Design, seed: int) -> list[Violation]:
    rng = random.Random(seed)
    return play(scenario, design, rng.choice, lambda: rng.randrange(2))[0]


every_scenario = pytest.mark.parametrize("scenario", [*library().values(), EXAMPLE], ids=lambda found: found.name)


@every_scenario
@pytest.mark.parametrize("choice", [0, 1])
def test_each_task_after_the_other(scenario: Scenario, choice: int) -> None:
    found, world = play(scenario, newest(scenario), lambda ready: ready[0], lambda: choice)
    assert not found
    assert world.exercised["I12"], "the VM is not destroyed in the end"


@every_scenario
def test_each_task_as_often_as_the_others(scenario: Scenario) -> None:
    turns: Counter[str] = Counter()

    def next_one(ready: list[Task]) -> Task:
        chosen = min(ready, key=lambda task: turns[task.name])
        turns[chosen.name] += 1
        return chosen

    found, _world = play(scenario, newest(scenario), next_one, lambda: 0)
    assert not found


@every_scenario
def test_at_random(scenario: Scenario) -> None:
    for seed in range(10):
        found = at_random(scenario, newest(scenario), seed)
        assert not found, f"seed {seed}"


@every_scenario
def test_the_smallest_size_works_too(scenario: Scenario) -> None:
    minima = {parameter.name: parameter.minimum for parameter in scenario.parameters}
    small = Scenario(scenario.name, scenario.title, scenario.text, functools.partial(scenario.setup, **minima))
    assert not at_random(small, newest(scenario), 1)


@pytest.mark.parametrize(
    ("name", "design"),
    [
        ("memslot-delete-vs-unmap", OFF_LIST),
        ("nx-huge-pages-vs-release", OFF_LIST),
        ("last-put-vs-unmap", SERIES_V1),
        ("fault-vs-unmap", V6_12.without("notifier-retry")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_random_schedules_find_the_race_that_the_scenario_is_about(name: str, design: Design) -> None:
    found = [violation.rule for seed in range(60) for violation in at_random(load(name), design, seed)]
    assert "I1" in found
