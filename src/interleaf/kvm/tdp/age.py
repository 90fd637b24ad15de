"""Aging: has the guest used a page since somebody last asked (kernel tdp_mmu.c, v6.12; without mmu_lock v6.15)?

With A bits, asking clears them. Without them, the permissions of the SPTE are put aside (access tracking), so that
the next use faults. TLBs are not flushed for it, or only by the caller: a use that goes unnoticed does no harm, but
what must not go unnoticed is that the page was written to.
"""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange, KvmMmuPage
from interleaf.kvm.pfn import kvm_set_pfn_dirty
from interleaf.kvm.trace import trace_kvm_tdp_mmu_spte_changed
from interleaf.linux.list import list_for_each_entry_rcu
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import checkpoint, routine

from .changed import kvm_tdp_mmu_write_spte, tdp_mmu_clear_spte_bits
from .entries import cmpxchg_spte
from .handle_gfn import kvm_tdp_mmu_handle_gfn
from .iter import TdpIter, tdp_iter_next, tdp_iter_start
from .spte import (
    is_accessed_spte,
    is_present_leaf,
    is_writable_pte,
    mark_spte_for_access_track,
    spte_ad_enabled,
    spte_to_pfn,
)

AGE_LOCKLESS = rule(
    "age-without-mmu-lock",
    "Pages are aged in an RCU reader instead of under mmu_lock, and an SPTE that somebody else changes meanwhile is "
    "left as it is.",
    "b146a9b34aed",
)
AGE_CLEARS_ACCESSED = rule(
    "age-clears-accessed-bit",
    "Aging clears the A bit of an SPTE by an atomic AND, instead of writing the whole entry.",
    "v6.4",
    removed="v6.15",
)
AGE_KEEPS_DIRTY = rule(
    "age-keeps-dirty",
    "When aging takes the permissions of a writable SPTE without A and D bits, the host is told that the page is "
    "dirty: the SPTE does not say so any more.",
    "v5.10",
)


@routine
def kvm_tdp_mmu_age_gfn_range(kvm: Kvm, range_: KvmGfnRange) -> bool:
    """Was any page of the range used since this was last asked? From now on that counts anew.

    mmu_lock held for write; not held if the design follows "age-without-mmu-lock".
    """
    return _age_roots(kvm, range_, False)


@routine
def kvm_tdp_mmu_test_age_gfn(kvm: Kvm, range_: KvmGfnRange) -> bool:
    """Was the page of the range used since kvm_tdp_mmu_age_gfn_range() last asked? Locks as there."""
    return _age_roots(kvm, range_, True)


@routine
def _age_roots(kvm: Kvm, range_: KvmGfnRange, test_only: bool) -> bool:
    """Visit all roots of the slot's address space, without yielding and without references on them: mmu_lock, or the
    RCU reader, keeps them from being freed."""
    if not kvm.design.obeys(AGE_LOCKLESS):
        return kvm_tdp_mmu_handle_gfn(kvm, range_, _age_root, test_only)
    young = False
    rcu_read_lock()
    for root in list_for_each_entry_rcu(kvm.tdp_mmu_roots, KvmMmuPage):
        if root.role.as_id == range_.slot.as_id:
            young = _age_root(kvm, root, range_, test_only) or young
    rcu_read_unlock()
    return young


@routine
def _age_root(kvm: Kvm, root: KvmMmuPage, range_: KvmGfnRange, test_only: bool) -> bool:
    """In an RCU reader."""
    masks = kvm.masks
    young = False
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, range_.start)
    while it is not None and it.gfn < range_.end:
        checkpoint()
        if is_present_leaf(it.old_spte, it.level) and is_accessed_spte(masks, it.old_spte):
            young = True
            if not test_only:
                age_spte(kvm, it)
        it = tdp_iter_next(kvm, it)
    return young


@routine
def age_spte(kvm: Kvm, it: TdpIter) -> None:
    """Make an accessed leaf not accessed (age_gfn_range; kvm_tdp_mmu_age_spte from v6.15). In an RCU reader."""
    masks, design = kvm.masks, kvm.design
    new_spte = mark_spte_for_access_track(masks, it.old_spte)
    old_spte = it.old_spte
    if design.obeys(AGE_LOCKLESS):
        if cmpxchg_spte(kvm, it.root, it.sp, it.gfn, it.level, old_spte, new_spte) != old_spte:
            return
    elif spte_ad_enabled(masks, old_spte) and design.obeys(AGE_CLEARS_ACCESSED):
        old_spte = tdp_mmu_clear_spte_bits(kvm, it, masks.accessed)
        new_spte = old_spte & ~masks.accessed
    else:
        old_spte = kvm_tdp_mmu_write_spte(kvm, it.root, it.sp, it.gfn, it.level, old_spte, new_spte)
    if not spte_ad_enabled(masks, old_spte) and is_writable_pte(old_spte) and design.obeys(AGE_KEEPS_DIRTY):
        kvm_set_pfn_dirty(spte_to_pfn(old_spte))
    trace_kvm_tdp_mmu_spte_changed(it.as_id, it.gfn, it.level, old_spte, new_spte)
