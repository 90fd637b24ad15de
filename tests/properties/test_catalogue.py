"""Each property can fail, and can hold without being vacuous: by searches, judged as the command judges them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from interleaf.designs import OFF_LIST, V5_18, V6_12
from interleaf.explore.outcome import Bounds
from interleaf.explore.states import StateSearch
from interleaf.explore.verdict import Status, Subject, judge
from interleaf.kvm.design import Design
from interleaf.kvm.tdp.spte import REMADE_SPTE_CLEAN
from interleaf.properties import MADE_OF, NAMES, PROPERTIES, Property, property_of
from interleaf.scenarios import load

from . import programs
from .programs import FORGETS, NO_TABLE_FLUSH, SLEEPS

Program = tuple[Callable[..., None], Design]


def of(name: str) -> Callable[..., None]:
    """The set-up of a scenario."""
    return load(name).setup


@functools.cache
def statuses(program: Program) -> dict[str, Status]:
    """What a search of all interleavings says of each property."""
    setup, design = program
    search = StateSearch(functools.partial(setup, design))
    try:
        outcome = search.run()
    finally:
        search.close()
    assert outcome.exhaustive, outcome.stopped
    return dict(judge(Subject("", "", ""), [outcome], NAMES, Bounds(), 1, MADE_OF).properties)


HOLDS: dict[str, Program] = {
    "I1": (of("fault-vs-unmap"), V6_12),
    "I2": (programs.zap_tables_vs_guest, OFF_LIST),
    "I3": (programs.write_protect_vs_fault, V6_12),
    "I4": (programs.invalidate_alone, OFF_LIST),
    "I5": (of("invalidate-vs-walk"), OFF_LIST),
    "I6": (of("create-vs-walk"), OFF_LIST),
    "I7": (of("invalidate-vs-put"), OFF_LIST),
    "I8": (programs.invalidate_vs_fault, OFF_LIST),
    "I9": (of("invalidate-vs-guest"), OFF_LIST),
    "I10": (of("dirty-log-enable-vs-aging"), V6_12),
    "I11": (of("write-vs-aging-with-pml"), V5_18),
    "I12": (programs.never_taken_down, V6_12),
    "I13": (programs.fault_vs_invalidation, V6_12),
    "I14": (of("memslot-delete-vs-unmap"), V6_12),
    "I15": (of("execute-vs-dirty-log-disable"), V6_12),
}

FAILS: dict[str, Program] = {
    "I1": (of("fault-vs-unmap"), V6_12.without("notifier-retry")),
    "I2": (programs.zap_tables_vs_guest, NO_TABLE_FLUSH),
    "I3": (programs.replace_vs_fault, V6_12.without("notifier-retry")),
    "I4": (programs.zap_vs_careless, OFF_LIST),
    "I5": (of("invalidate-vs-walk"), OFF_LIST.without("invalidate-under-write-lock")),
    "I6": (of("create-vs-walk"), OFF_LIST.adding("roots-under-read-lock")),
    "I7": (of("invalidate-vs-invalidate"), OFF_LIST.without("zap-all-takes-slots-lock")),
    "I8": (programs.invalidate_vs_fault, OFF_LIST.without("stale-root-check")),
    "I9": (of("invalidate-vs-guest"), V6_12.without("invalidate-requests-reload")),
    "I10": (of("dirty-log-enable-vs-aging"), V6_12.without("enable-log-always-flushes")),
    "I11": (of("write-vs-aging-with-pml"), V5_18.without("xchg-volatile-sptes")),
    "I12": (programs.never_taken_down, FORGETS),
    "I13": (programs.fault_vs_endless_invalidation, V6_12),
    "I14": (programs.zap_all, SLEEPS),
    "I15": (of("execute-vs-dirty-log-disable"), V6_12.without("nx-track-recheck")),
}


def test_the_tables_are_complete() -> None:
    assert tuple(HOLDS) == tuple(FAILS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_property_holds_where_it_is_exercised(name: str) -> None:
    assert statuses(HOLDS[name])[name] is Status.HOLDS


@pytest.mark.parametrize("name", NAMES)
def test_a_property_is_violated_where_the_design_is_broken(name: str) -> None:
    assert statuses(FAILS[name])[name] is Status.VIOLATED


@pytest.mark.parametrize("name", [name for name in NAMES if HOLDS[name][0] is FAILS[name][0]])
def test_the_program_is_innocent(name: str) -> None:
    """Where the two programs differ in the design only, nothing at all is wrong with the good one."""
    assert Status.VIOLATED not in statuses(HOLDS[name]).values()


def test_i14_is_about_sleeping_and_about_work_without_bound() -> None:
    reset = of("last-put-beyond-1g-vs-unmap")
    for design in (V5_18, V6_12):
        assert statuses((reset, design))["I14"] is Status.HOLDS
        broken = statuses((reset, design.without("zap-1g-first")))
        assert broken["I14"] is Status.VIOLATED
        assert broken["sleeping-while-atomic"] is Status.HOLDS
    assert statuses((programs.zap_all, SLEEPS))["sleeping-while-atomic"] is Status.VIOLATED


def test_a_fault_alone_never_replaces_a_leaf_so_that_i3_is_vacuous() -> None:
    assert statuses((of("fault-vs-unmap"), V6_12))["I3"] is Status.VACUOUS
    dirty = V6_12.without(REMADE_SPTE_CLEAN.name)
    assert statuses((programs.replace_vs_fault, dirty))["I3"] is Status.VACUOUS


@pytest.mark.parametrize("known", PROPERTIES.values(), ids=lambda known: known.name)
def test_a_property_says_what_must_hold_why_and_where_that_is_written(known: Property) -> None:
    assert known.text.endswith(".")
    assert known.reason.endswith(".")
    assert known.source
    assert property_of(known.name) is known


def test_a_rule_leads_to_the_property_that_consists_of_it() -> None:
    assert property_of("livelock") is property_of("deadlock") is PROPERTIES["I13"]
    assert property_of("sleeping-while-atomic") is PROPERTIES["I14"]
    assert property_of("list-corruption") is None


def test_what_only_the_set_up_does_is_no_test() -> None:
    known = statuses((of("memslot-delete-vs-unmap"), V6_12))
    assert known["I8"] is Status.VACUOUS, "the vCPU faults in the set-up, and never again"
    assert known["I12"] is Status.HOLDS
