"""Each bug of the catalogue is found where it is put back, and nothing is found where it is not."""

from __future__ import annotations

import functools

import pytest

from interleaf import bugs, scenarios
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


@pytest.mark.parametrize("bug", CATALOGUE, ids=lambda bug: bug.id)
def test_an_entry_is_complete(bug: Bug) -> None:
    assert bug.text.endswith(".")
    assert bug.fix
    assert bug.kind
    assert bug.scenarios
    assert set(bug.scenarios) <= set(scenarios.library())
    assert bug.put_back(bug.base()).name == f"{bug.base().name} bug {bug.id}"


def test_most_are_found_by_the_properties_that_every_check_reports_on() -> None:
    """The others by what the building blocks check in any model: no bug is found by a rule made for it."""
    of_the_blocks = {"use-after-free", "livelock", "deadlock", "list-corruption"}
    for bug in CATALOGUE:
        assert set(bug.rules) <= {*NAMES, *of_the_blocks}, bug.id


def test_a_design_may_be_named_with_a_bug() -> None:
    known = bugs.load("v6.12 bug B21")
    assert known.rules == V6_12.rules - {"flush-across-roots"}
    assert bugs.load(known.name) == known
    with pytest.raises(ModelError, match="there is no bug 'B99'"):
        bugs.load("v6.12 bug B99")


def test_a_bug_that_a_design_has_already_cannot_be_put_back() -> None:
    with pytest.raises(ModelError, match="does not follow the rule 'iter-yielded'"):
        bugs.load("off-list bug B06")
