"""Each bug of the catalogue is found where it is put back, and nothing is found where it is not."""

from __future__ import annotations

import functools

import pytest

from interleaf import bugs, designs, scenarios
from interleaf.bugs import Bug
from interleaf.designs import V6_12, load
from interleaf.explore.bounded import BoundedSearch
from interleaf.explore.outcome import Bounds, Outcome
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import Design
from interleaf.properties import NAMES
from interleaf.runtime import ModelError

STATES = 100_000
"""No search of the catalogue needs more."""

CATALOGUE = list(bugs.library().values())

shown = [pytest.param(bug, scenario, id=f"{bug.id}-{scenario}") for bug in CATALOGUE for scenario in bug.scenarios]


def search(scenario: str, design: Design, preemptions: int | None) -> Outcome:
    """All interleavings, or all with so many preemptions."""
    setup = functools.partial(scenarios.load(scenario).setup, design)
    engine = (
        StateSearch(setup, bounds=Bounds(states=STATES))
        if preemptions is None
        else BoundedSearch(setup, Bounds(preemptions=preemptions))
    )
    try:
        return engine.run()
    finally:
        engine.close()


@functools.cache
def without(scenario: str, design: str, preemptions: int | None) -> Outcome:
    return search(scenario, load(design), preemptions)


@pytest.mark.parametrize(("bug", "scenario"), shown)
def test_a_bug_that_is_put_back_is_found(bug: Bug, scenario: str) -> None:
    outcome = search(scenario, bug.put_back(bug.base()), bug.preemptions)
    assert {found.violation.rule for found in outcome.found} & set(bug.rules)


@pytest.mark.parametrize(("bug", "scenario"), shown)
def test_nothing_is_found_without_the_bug(bug: Bug, scenario: str) -> None:
    outcome = without(scenario, bug.design, bug.preemptions)
    assert not outcome.found
    assert outcome.exhaustive or bug.preemptions is not None


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("B21", {"series-v3"}),
        ("B45", {"v6.4"}),
        ("B48", {"v5.13", "v5.16", "series-v1", "off-list", "series-v3", "v5.18"}),
        ("B57", {"v6.4"}),
    ],
)
def test_a_bug_is_found_in_the_kernels_from_what_brought_it_to_what_fixed_it(name: str, kernels: set[str]) -> None:
    """B21 was in the series only; B45 came with v6.4 and went with v6.9; B48 was there up to v6.0; B57 does harm from
    v6.0 on, and v6.1, v6.12 and v6.18 are meant as they are maintained, with its fix."""
    bug = bugs.library()[name]
    found = set()
    for design in designs.library().values():
        [scenario] = bug.scenarios
        engine = StateSearch(functools.partial(scenarios.load(scenario).setup, design), stop_at_first=True)
        try:
            outcome = engine.run()
        finally:
            engine.close()
        assert outcome.exhaustive or outcome.found
        if {violated.violation.rule for violated in outcome.found} & set(bug.rules):
            found.add(design.name)
    assert found == kernels


@pytest.mark.parametrize("bug", CATALOGUE, ids=lambda bug: bug.id)
def test_an_entry_is_complete(bug: Bug) -> None:
    assert bug.text.endswith(".")
    assert bug.fix
    assert bug.kind
    assert bug.scenarios
    assert set(bug.scenarios) <= set(scenarios.library())
    assert bug.put_back(bug.base()).name == f"{bug.base().name} bug {bug.id}"


KERNELS_OWN = {"BUG", "WARN", "map-at-wrong-level"}
"""What the kernel itself warns of, or stops at."""

BLOCKS_OWN = {"use-after-free", "livelock", "list-corruption", "data-race"}
"""What is checked in any model."""

OTHERS = {
    "memory-attributes": {"B56"},
    "obsolete-root-kept": {"B18"},
    "stale-mmio": {"B60"},
    "stale-range": {"B49", "B50"},
    "write-tracking": {"B32"},
}
"""What is checked beyond that, and for which bugs."""


def test_no_bug_is_found_by_a_rule_that_only_it_can_break_but_where_that_is_said() -> None:
    general = {*NAMES, *KERNELS_OWN, *BLOCKS_OWN}
    for bug in CATALOGUE:
        for rule in set(bug.rules) - general:
            assert bug.id in OTHERS[rule]


def test_a_design_may_be_named_with_a_bug() -> None:
    known = bugs.load("v6.12 bug B21")
    assert known.rules == V6_12.rules - {"flush-across-roots"}
    assert bugs.load(known.name) == known
    with pytest.raises(ModelError, match="there is no bug 'B99'"):
        bugs.load("v6.12 bug B99")


def test_a_bug_that_a_design_has_already_cannot_be_put_back() -> None:
    with pytest.raises(ModelError, match="does not follow the rule 'iter-yielded'"):
        bugs.load("off-list bug B06")
