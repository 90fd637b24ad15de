"""Mapping a page for a fault."""

from __future__ import annotations

import pytest

from interleaf.designs import V6_12
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.mmu import kvm_mmu_reload
from interleaf.kvm.mmu_internal import KvmPageFault, RetPf
from interleaf.kvm.tdp.entries import write_spte
from interleaf.kvm.tdp.map import kvm_tdp_mmu_map
from interleaf.kvm.tdp.spte import REMADE_SPTE_CLEAN
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.mm.page import alloc_page
from interleaf.runtime import ModelError, spawn

from .stage import Stage, make_vm, run_alone

GFN = 8


def _map(kvm: Kvm, fault: KvmPageFault) -> RetPf:
    read_lock(kvm.mmu_lock)
    result, _level = kvm_tdp_mmu_map(kvm.vcpus[0], fault)
    read_unlock(kvm.mmu_lock)
    return result


def _vm(design: Design = V6_12) -> tuple[Kvm, KvmMmuPage]:
    kvm = make_vm(design, (GFN,), vcpus=2)
    for vcpu in kvm.vcpus:
        kvm_mmu_reload(vcpu)
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    return kvm, root


def _again(design: Design) -> tuple[RetPf, ...]:
    kvm, _ = _vm(design)
    fault = KvmPageFault(GFN, pfn=alloc_page().pfn)
    read_only = KvmPageFault(GFN, pfn=fault.pfn, map_writable=False)
    once = _map(kvm, read_only), _map(kvm, read_only), _map(kvm, fault)
    return *once, _map(kvm, fault), _map(kvm, fault)


def test_a_fault_is_fixed_once_and_spurious_after_that() -> None:
    results, _ = run_alone(_again, V6_12.without(REMADE_SPTE_CLEAN.name))
    assert results == (RetPf.FIXED, RetPf.SPURIOUS, RetPf.FIXED, RetPf.SPURIOUS, RetPf.SPURIOUS)


def test_a_leaf_that_is_writable_already_is_made_again_without_dirty_bit() -> None:
    results, _ = run_alone(_again, V6_12)
    assert results == (RetPf.FIXED, RetPf.SPURIOUS, RetPf.FIXED, RetPf.FIXED, RetPf.SPURIOUS)


def _frozen() -> RetPf:
    kvm, root = _vm()
    write_spte(kvm, root, root, 0, 4, V6_12.removed_spte)
    return _map(kvm, KvmPageFault(GFN, pfn=alloc_page().pfn))


def test_a_fault_that_meets_a_frozen_entry_tries_again() -> None:
    result, _ = run_alone(_frozen)
    assert result is RetPf.RETRY


def test_a_gfn_that_the_vm_was_not_made_for_is_an_error_of_the_scenario() -> None:
    def setup() -> None:
        kvm, _ = _vm()
        _map(kvm, KvmPageFault(GFN + 1, pfn=alloc_page().pfn))

    with pytest.raises(ModelError, match=r"gfn 0x9 is to be mapped.*0x8.*Add it to Kvm\.gfns"):
        Stage(setup)


def _fault(kvm: Kvm, vcpu: int, fault: KvmPageFault) -> None:
    read_lock(kvm.mmu_lock)
    kvm_tdp_mmu_map(kvm.vcpus[vcpu], fault)
    read_unlock(kvm.mmu_lock)


def test_the_loser_of_a_race_for_a_table_frees_its_own_and_tries_again() -> None:
    def setup() -> None:
        kvm, _ = _vm()
        fault = KvmPageFault(GFN, pfn=alloc_page().pfn)
        for index in range(2):
            spawn(_fault, kvm, index, fault, name=f"vcpu{index}")

    stage = Stage(setup)
    assert stage.until("vcpu0", "kvm_tdp_mmu_read_spte", "_seek")
    stage.finish("vcpu1")
    stage.finish("vcpu0")
    assert not stage.violations
    lost = [line for line in stage.story if line.startswith("vcpu0 ") and "it does not become" in line]
    assert len(lost) == 1
    freed = [line for line in stage.story if line.startswith("vcpu0 free")]
    assert len(freed) == 1
