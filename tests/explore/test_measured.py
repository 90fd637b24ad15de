"""What a model measures: every engine keeps the largest value that was met in any execution."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.explore.bounded import BoundedSearch
from interleaf.explore.brute import BruteForce
from interleaf.explore.hunt import Hunt
from interleaf.explore.outcome import Bounds, Outcome
from interleaf.explore.states import StateSearch
from interleaf.explore.steps import StepSearch
from interleaf.runtime import Marked, Memory, Object, operation, spawn, the


class Queue(Object):
    length = Marked(0)


@operation(focus=lambda queue, by: Queue.length.cell(queue))
def add(memory: Memory, queue: Queue, by: int) -> None:
    length = memory.load(queue, Queue.length) + by
    memory.store(queue, Queue.length, length)
    memory.measure("length", length)


def _come_and_go() -> None:
    add(the(Queue), 1)
    add(the(Queue), -1)


def three_customers() -> None:
    for name in ("a", "b", "c"):
        spawn(_come_and_go, name=name)


ENGINES: dict[str, Callable[[], Outcome]] = {
    "states": lambda: StateSearch(three_customers).run(),
    "steps": lambda: StepSearch(three_customers).run(),
    "brute": lambda: BruteForce(three_customers).run(),
    "bounded": lambda: BoundedSearch(three_customers, Bounds(preemptions=2)).run(),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_value_of_each_task_is_kept(engine: str) -> None:
    assert ENGINES[engine]().measured == {("length", name): 3 for name in ("a", "b", "c")}


def test_a_search_that_leaves_executions_out_may_meet_less() -> None:
    none = BoundedSearch(three_customers, Bounds(preemptions=0)).run()
    assert none.measured == {("length", name): 1 for name in ("a", "b", "c")}
    some = Hunt(three_customers, Bounds(executions=1), 1).run()
    assert 1 <= max(some.measured.values()) <= 3
