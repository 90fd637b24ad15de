"""Both engines agree on every cell of the matrix, at the least size of each scenario, and measure the same.

Many cells are too large for a search without merging to come to its end here; then what either has found must be among
what the other one, if it has come to its end, has found. `python -m tests.oracle.matrix` compares at the default sizes,
for as long as it takes.
"""

from __future__ import annotations

import pytest

from interleaf import designs, scenarios
from interleaf.explore.outcome import Bounds

from .matrix import Cell, Comparison, compare, rules

EXECUTIONS, STATES = Bounds(executions=100), Bounds(states=1_000)

WHOLE = 0.2
"""The part of the scenarios, on each design, that both engines search to the end within these bounds, at least."""


def contradiction(cell: Comparison) -> str:
    """What cannot be if both engines are right, in words."""
    states, steps = cell.states, cell.steps
    if states.exhaustive and steps.exhaustive:
        measured = () if states.measured == steps.measured else (f"{states.measured} and {steps.measured}",)
        return "; ".join((*cell.by_states.differences(cell.by_steps), *measured))
    if states.exhaustive and not cell.by_steps.violations <= cell.by_states.violations:
        return f"only the search over steps finds {sorted(rules(steps) - rules(states))}"
    if steps.exhaustive and not cell.by_states.violations <= cell.by_steps.violations:
        return f"only the search over states finds {sorted(rules(states) - rules(steps))}"
    return ""


@pytest.mark.parametrize("design", designs.library())
def test_engines_agree_on_each_scenario(design: str) -> None:
    whole = []
    for scenario in scenarios.library():
        comparison = compare(Cell(scenario, design, least=True), EXECUTIONS, STATES)
        assert not contradiction(comparison), f"{scenario} on {design}: {contradiction(comparison)}"
        if comparison.states.exhaustive and comparison.steps.exhaustive:
            whole.append(scenario)
    assert len(whole) >= WHOLE * len(scenarios.library()), f"only {', '.join(whole)} are searched to the end by both"


def test_a_contradiction_is_seen() -> None:
    right = compare(Cell("nx-huge-pages-vs-release", "v5.13", least=True), EXECUTIONS, STATES)
    other = compare(Cell("nx-huge-pages-vs-release", "v6.12", least=True), EXECUTIONS, STATES)
    assert rules(right.states)
    assert not contradiction(right)
    assert contradiction(Comparison(right.states, other.steps, right.by_states, other.by_steps))
    assert contradiction(Comparison(other.states, right.steps, other.by_states, right.by_steps))
