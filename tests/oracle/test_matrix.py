"""Both engines agree on every cell of the matrix, at the least size of each scenario, and measure the same.

Many cells are too large for a search without merging to come to its end here; then it must still find a violation of
each rule that the search over states finds violated, and nothing that this one, if it has come to its end, has not
found. `python -m tests.oracle.matrix` compares at the default sizes, for as long as it takes.
"""

from __future__ import annotations

import pytest

from interleaf import designs, scenarios
from interleaf.explore.outcome import Bounds

from .matrix import Cell, Comparison, compare, rules

BOUNDS = Bounds(executions=50), Bounds(executions=300), Bounds(states=400)

WHOLE = 0.2
"""The part of the scenarios, on each design, that both engines search to the end within these bounds, at least."""


@pytest.mark.parametrize("design", designs.library())
def test_engines_agree_on_each_scenario(design: str) -> None:
    whole = []
    for scenario in scenarios.library():
        comparison = compare(Cell(scenario, design, least=True), *BOUNDS)
        assert not comparison.disagreement(), f"{scenario} on {design}: {comparison.disagreement()}"
        if comparison.whole:
            whole.append(scenario)
    assert len(whole) >= WHOLE * len(scenarios.library()), f"only {', '.join(whole)} are searched to the end by both"


def test_a_disagreement_is_seen() -> None:
    right = compare(Cell("nx-huge-pages-vs-release", "v5.13", least=True), *BOUNDS)
    other = compare(Cell("nx-huge-pages-vs-release", "v6.12", least=True), *BOUNDS)
    assert rules(right.states)
    assert right.whole
    assert not right.disagreement()
    assert Comparison(right.states, other.steps, right.by_states, other.by_steps).disagreement()
    assert Comparison(other.states, right.steps, other.by_states, right.by_steps).disagreement()
