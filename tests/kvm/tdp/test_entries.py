"""Reading and writing entries: each write is what it says, and none escapes the checks."""

from __future__ import annotations

from interleaf.designs import V5_18, V6_12
from interleaf.hw.platform import NPT
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import ACC_ALL, Kvm, KvmMmuPage, KvmMmuPageRole
from interleaf.kvm.tdp.entries import (
    clear_spte_bits,
    cmpxchg_spte,
    kvm_tdp_mmu_read_spte,
    write_spte,
    xchg_spte,
)
from interleaf.kvm.tdp.link import tdp_mmu_alloc_sp
from interleaf.kvm.tdp.spte import make_spte
from interleaf.mm.page import alloc_page, page_at
from interleaf.runtime import Value

from .stage import make_vm, run_alone

ROLE = KvmMmuPageRole(level=1)
GFN = 8


def _table(design: Design) -> tuple[Kvm, KvmMmuPage, int]:
    """A VM, a new table, and an SPTE that could be in it."""
    kvm = make_vm(design, (GFN,), platform=NPT)
    leaf, _ = make_spte(kvm, ROLE, None, ACC_ALL, GFN, alloc_page().pfn, 0)
    return kvm, tdp_mmu_alloc_sp(kvm, 0, ROLE), leaf


def _empty(design: Design) -> tuple[Value, ...]:
    kvm, table, leaf = _table(design)
    fresh = kvm_tdp_mmu_read_spte(kvm, table, GFN, 1)
    lost = cmpxchg_spte(kvm, None, table, GFN, 1, leaf, 0)
    won = cmpxchg_spte(kvm, None, table, GFN, 1, fresh, leaf)
    replaced = xchg_spte(kvm, None, table, GFN, 1, kvm.masks.nonpresent)
    return fresh, lost, won, replaced, leaf, table.spt[GFN], kvm_tdp_mmu_read_spte(kvm, table, GFN, 1)


def test_an_entry_that_maps_nothing_has_the_value_that_the_kernel_gives_it() -> None:
    for design in (V5_18, V6_12):
        empty = design.shadow_nonpresent_value
        (fresh, lost, won, replaced, leaf, stored, left), _ = run_alone(_empty, design)
        assert (fresh, lost, won, left) == (empty,) * 4
        assert replaced == leaf
        assert stored == 0, "as in a table that was never written"


def _mapped(design: Design) -> tuple[Value, ...]:
    kvm, table, leaf = _table(design)
    page = page_at(leaf >> 12)
    write_spte(kvm, None, table, GFN, 1, leaf)
    mapped = page.spteps
    cleared = clear_spte_bits(kvm, None, table, GFN, 1, kvm.masks.dirty)
    kept = page.spteps
    write_spte(kvm, None, table, GFN, 1, kvm.masks.frozen)
    return mapped == {(table, GFN)}, cleared == leaf, kept == mapped, page.spteps


def test_the_page_knows_by_which_entry_it_is_mapped() -> None:
    result, _ = run_alone(_mapped, V6_12)
    assert result == (True, True, True, frozenset())
