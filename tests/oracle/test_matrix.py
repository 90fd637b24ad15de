"""Both engines agree on every cell of the matrix, at the least size of each scenario.

`python -m tests.oracle.matrix` does the same at the default sizes, for as long as it takes.
"""

from __future__ import annotations

import pytest

from interleaf import designs, scenarios
from interleaf.explore.outcome import Bounds

from .matrix import Cell, compare, rules

WHOLE = Bounds(executions=900)
"""Enough for the search over steps to come to its end, but where it is named below."""

LARGE = {
    "fault-vs-memslot-delete",
    "fault-vs-other-memslot-delete",
    "reset-vs-other-memslot-delete",
    "two-deletes-while-vcpu-holds-root",
    "two-vcpus-fault-different-pages",
    "two-vcpus-fault-same-page",
    "yielding-walk-vs-invalidate-and-create",
}
"""Scenarios in which neither search is run to its end here: none must have found anything when it stops."""

SOME_STATES, SOME_EXECUTIONS = Bounds(states=500), Bounds(executions=50)

LARGE_CELLS = {("last-put-vs-unmap", "v5.18"), ("last-put-vs-unmap", "v6.12")}
"""Single cells of that kind."""

VIOLATED = {
    ("fault-vs-other-memslot-delete", "v5.13"): 1_300,
    ("reset-vs-other-memslot-delete", "v5.13"): 60,
    ("reset-vs-other-memslot-delete", "series-v1"): 60,
    ("reset-vs-other-memslot-delete", "off-list"): 60,
    ("yielding-walk-vs-invalidate-and-create", "v5.13"): 600,
}
"""Such cells in which a rule is violated: the search over states is run to its end, and the search over steps must
have found a violation of each rule that it has found violated after so many executions, and nothing else."""

MISSED = {
    ("reset-vs-other-memslot-delete", "series-v3"),
}
"""Such cells in which the search over steps takes too long to find what the search over states does find; what it has
found when it stops must be among that."""

WHOLE_THERE = {
    ("two-deletes-while-vcpu-holds-root", "series-v3"),
    ("two-deletes-while-vcpu-holds-root", "v6.1"),
}
"""Cells of the large scenarios that are searched to their end by both all the same."""

MATRIX = [(scenario, design) for scenario in scenarios.library() for design in designs.library()]


@pytest.mark.parametrize(("scenario", "design"), MATRIX)
def test_engines_agree_on_a_cell(scenario: str, design: str) -> None:
    cell = Cell(scenario, design, least=True)
    key = (scenario, design)
    if key in VIOLATED:
        comparison = compare(cell, Bounds(executions=VIOLATED[key]))
        assert rules(comparison.states)
        assert not comparison.disagreement()
        return
    if key in MISSED:
        comparison = compare(cell, SOME_EXECUTIONS)
        assert rules(comparison.steps) < rules(comparison.states), "nothing is missed: list it as violated"
        assert comparison.by_steps.violations <= comparison.by_states.violations
        return
    if key in LARGE_CELLS or (scenario in LARGE and key not in WHOLE_THERE):
        comparison = compare(cell, SOME_EXECUTIONS, SOME_STATES)
        assert not comparison.states.exhaustive or not comparison.steps.exhaustive, (
            "it is not large: take it off the list"
        )
        assert not rules(comparison.states), "it is violated: list it as such"
        assert not rules(comparison.steps), "it is violated: list it as such"
        return
    comparison = compare(cell, WHOLE)
    assert comparison.steps.exhaustive, "it has become large: list it as such"
    assert not comparison.disagreement()


def test_the_lists_are_of_cells_of_the_matrix() -> None:
    assert scenarios.library().keys() >= LARGE
    assert {*LARGE_CELLS, *VIOLATED, *MISSED, *WHOLE_THERE} <= {*MATRIX}
    lists = [LARGE_CELLS, {*VIOLATED}, MISSED, WHOLE_THERE]
    assert sum(map(len, lists)) == len(set.union(*lists)), "a cell is on two lists"
