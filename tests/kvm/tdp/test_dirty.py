"""Clearing dirty state: which bit, how, and what is told to the host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interleaf.designs import V5_16, V6_1, V6_12
from interleaf.hw.ept import VMX_EPT_DIRTY_BIT
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.hw.platform import EPT, EPT_NO_AD, EPT_PML, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.memslots import kvm_memslots
from interleaf.kvm.tdp.dirty import kvm_tdp_mmu_clear_dirty_pt_masked, kvm_tdp_mmu_clear_dirty_slot
from interleaf.kvm.tdp.spte import is_dirty_spte, is_writable_pte
from interleaf.kvm.tlb import kvm_flush_remote_tlbs
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.mm.page import Page
from interleaf.runtime import routine, spawn
from interleaf.scenarios.stage import make_vm, populate
from tests.kvm.huge import entry

from .stage import Stage, run_alone


def _vm(design: Design, platform: Platform, nested: bool = False) -> Kvm:
    kvm = make_vm(design, pages=3, platform=platform)
    if nested:
        for vcpu in kvm.vcpus:
            vcpu.root_role = replace(vcpu.root_role, guest_mode=True)
    populate(kvm)
    return kvm


@routine
def _state(kvm: Kvm, gfn: int) -> tuple[bool, bool]:
    spte = entry(kvm, gfn, PG_LEVEL_4K)
    return is_writable_pte(spte), is_dirty_spte(kvm.masks, spte)


def _clear_slot(design: Design, platform: Platform, nested: bool) -> tuple[bool, tuple[bool, bool], bool]:
    kvm = _vm(design, platform, nested)
    slot = kvm_memslots(kvm).slots[0]
    read_lock(kvm.mmu_lock)
    changed = kvm_tdp_mmu_clear_dirty_slot(kvm, slot)
    again = kvm_tdp_mmu_clear_dirty_slot(kvm, slot)
    read_unlock(kvm.mmu_lock)
    return changed, _state(kvm, 1), again


@pytest.mark.parametrize(
    ("design", "platform", "nested", "state"),
    [
        (V6_12, EPT_PML, False, (True, False)),
        (V6_12, EPT_PML, True, (False, True)),
        (V6_12.without("clear-dirty-by-root"), EPT_PML, True, (True, False)),
        (V6_12, EPT_NO_AD, False, (False, False)),
        (V6_12, NPT, False, (True, False)),
    ],
    ids=["PML", "nested guest", "nested guest without the rule", "no A/D bits", "NPT"],
)
def test_d_is_cleared_where_it_is_logged_and_w_elsewhere(
    design: Design, platform: Platform, nested: bool, state: tuple[bool, bool]
) -> None:
    assert run_alone(_clear_slot, design, platform, nested)[0] == (True, state, False)


def _clear_masked(design: Design, platform: Platform, wrprot: bool) -> tuple[tuple[bool, bool], ...]:
    kvm = _vm(design, platform)
    slot = kvm_memslots(kvm).slots[0]
    write_lock(kvm.mmu_lock)
    kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, 0, 0b101, wrprot)
    write_unlock(kvm.mmu_lock)
    return tuple(_state(kvm, gfn) for gfn in range(3))


@pytest.mark.parametrize("design", [V6_1, V6_12], ids=lambda design: design.name)
def test_the_pages_of_the_mask_are_cleared_and_no_others(design: Design) -> None:
    protected, cleared, untouched = (False, True), (True, False), (True, True)
    assert run_alone(_clear_masked, design, EPT, True)[0] == (protected, untouched, protected)
    assert run_alone(_clear_masked, design, EPT_PML, False)[0] == (cleared, untouched, cleared)


@pytest.mark.parametrize(
    ("design", "dirty", "rules"),
    [(V6_12, True, set()), (V6_1, False, set()), (V5_16, None, {"I11"})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_processor_sets_d_while_w_is_taken(design: Design, dirty: bool | None, rules: set[str]) -> None:
    """The entry is writable and clean when the dirty log looks at it. An AND leaves the D bit where it is; an exchange
    finds it, so that the host is told; a plain write loses it (B35)."""

    def setup() -> None:
        kvm = _vm(design, EPT)
        read_lock(kvm.mmu_lock)
        kvm_tdp_mmu_clear_dirty_slot(kvm, kvm_memslots(kvm).slots[0])
        read_unlock(kvm.mmu_lock)
        kvm_flush_remote_tlbs(kvm)
        spawn(_protect, kvm, name="log")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")

    stage = Stage(setup)
    while not any("log KvmMmuPage3: SPTE of gfn 0x0, level 1, is pfn" in line for line in stage.story):
        assert stage.until("log", "kvm_tdp_mmu_read_spte", "_seek")
    stage.finish("vcpu0")
    stage.finish("log")
    assert stage.rules == rules
    if dirty is not None:
        table = stage.execution.world.serials[KvmMmuPage, 3]
        assert bool(stage.element(table, KvmMmuPage.spt, 0) & VMX_EPT_DIRTY_BIT) is dirty
        assert stage.peek(stage.execution.world.serials[Page, 0], Page.dirty)


@routine
def _protect(kvm: Kvm) -> None:
    slot = kvm_memslots(kvm).slots[0]
    write_lock(kvm.mmu_lock)
    kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, 0, 1, True)
    write_unlock(kvm.mmu_lock)
