"""Each two activities of the MMU race in a scenario, or it is said why they cannot."""

from __future__ import annotations

import functools
import itertools

import pytest

from interleaf.designs import V6_4, V6_12
from interleaf.explore.outcome import Bounds
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import Design
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run
from interleaf.runtime import Execution, World, spawn
from interleaf.scenarios import Scenario, load, of_pairs
from interleaf.scenarios.pairs import ACTIVITIES, Activity, cannot_race, make_vm

PAIRS = of_pairs()

STATES = 50_000
"""No search of two activities needs more."""

MARKS = {
    "fault": "tdp_mmu_map_handle_target_level",
    "fast-fault": "fast_pf_fix_direct_spte",
    "prefault": "tdp_mmu_map_handle_target_level",
    "mmio-fault": "vcpu_cache_mmio_info",
    "smi": "kvm_mmu_load",
    "rsm": "kvm_mmu_load",
    "unload": "kvm_mmu_free_roots",
    "pml": "vmx_flush_pml_buffer",
    "unmap": "tdp_mmu_zap_leafs",
    "age": "tdp_mmu_clear_spte_bits",
    "change-pte": "kvm_mmu_notifier_change_pte",
    "khugepaged": "tdp_mmu_zap_leafs",
    "release": "tdp_mmu_zap_root",
    "zap-range": "tdp_mmu_zap_leafs",
    "create-slot": "kvm_swap_active_memslots",
    "delete-slot": "tdp_mmu_zap_root",
    "move-slot": "tdp_mmu_zap_root",
    "enable-log": "tdp_mmu_set_spte_atomic",
    "get-log": "tdp_mmu_clear_spte_bits",
    "clear-log": "tdp_mmu_clear_spte_bits",
    "reset-ring": "kvm_reset_dirty_gfn",
    "eager-split": "tdp_mmu_split_huge_page",
    "collapse": "tdp_mmu_zap_spte_atomic",
    "attributes": "tdp_mmu_zap_leafs",
    "page-track": "write_protect_gfn",
    "nx-recovery": "handle_removed_pt",
    "zap-all": "tdp_mmu_zap_root",
    "teardown": "tdp_mmu_zap_root",
}
"""A function that does what the activity is about, and does nothing if there is nothing to do."""

KNOWN = {
    "prefault-with-delete-slot": ("livelock", "3ccbf6f47098"),
    "prefault-with-move-slot": ("livelock", "3ccbf6f47098"),
    "prefault-with-zap-all": ("livelock", "20a6cff3b283"),
}
"""The bugs of v6.12 that two activities show, with their fixes."""


def _design(name: str) -> Design:
    """The newest design in which all that the name tells of can happen."""
    return V6_4 if "change-pte" in name else V6_12


def test_each_two_activities_have_a_scenario_or_a_reason() -> None:
    for one, other in itertools.combinations_with_replacement(ACTIVITIES, 2):
        assert bool(cannot_race(one, other)) is (f"{one.name}-with-{other.name}" not in PAIRS)


def test_a_scenario_of_two_can_be_loaded_by_its_name() -> None:
    assert load("unmap-with-age").name == "unmap-with-age"


@pytest.mark.parametrize("activity", ACTIVITIES, ids=lambda activity: activity.name)
def test_an_activity_does_what_it_is_called(activity: Activity) -> None:
    def alone() -> None:
        kvm = make_vm(_design(activity.name), activity.needs)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], *activity.before)
        spawn(activity.run, kvm, kvm.vcpus[0], name="it")

    run = Execution(World(), alone, narrate=True)
    functions, said = set(), set()
    try:
        while run.unfinished:
            steps = (run.step(task, itertools.repeat(0)) for task in run.unfinished)
            events = next(step for step in steps if step is not None).events
            functions |= {event.site[2] for event in events}
            said |= {event.text for event in events}
    finally:
        run.close()
    assert MARKS[activity.name] in functions
    assert not activity.slots_lock or any("slots_lock" in text for text in said)


@pytest.mark.parametrize("scenario", PAIRS.values(), ids=lambda scenario: scenario.name)
def test_two_activities_do_no_harm_to_each_other(scenario: Scenario) -> None:
    setup = functools.partial(scenario.setup, _design(scenario.name))
    search = StateSearch(setup, bounds=Bounds(states=STATES))
    try:
        outcome = search.run()
        done = {(node.task.name, node.op.site[2]) for node in search.machine.automata.nodes.values()}
    finally:
        search.close()
    assert outcome.exhaustive
    expected = {KNOWN[scenario.name][0]} if scenario.name in KNOWN else set()
    assert {found.violation.rule for found in outcome.found} == expected
    one, other = scenario.name.split("-with-")
    for name, its in ((one, other), (other, one)):
        # a worker may do it for the task, but not the other task
        assert {task for task, function in done if function == MARKS[name]} - {its if its != name else ""}, name
