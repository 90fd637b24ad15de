"""Zapping a range with the tables inside it, and what used it up to v5.17 (kernel tdp_mmu.c, v5.16).

v5.18 split it into zapping roots and zapping leafs.
"""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange, KvmMmuPage
from interleaf.kvm.tdp.changed import tdp_mmu_iter_set_spte, tdp_mmu_zap_spte_atomic
from interleaf.kvm.tdp.iter import tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.references import root_zapped
from interleaf.kvm.tdp.spte import is_last_spte, is_shadow_present_pte
from interleaf.kvm.tdp.tdp_mmu import tdp_mmu_next_root, tdp_mmu_next_root_of
from interleaf.kvm.tdp.unmap import carried
from interleaf.kvm.tdp.zap import FLUSH_IN_RCU, tdp_mmu_iter_cond_resched, tdp_mmu_max_gfn_exclusive
from interleaf.kvm.tlb import kvm_flush_remote_tlbs
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import checkpoint, routine

ZAP_ALL_WHOLE = rule(
    "zap-all-ignores-end",
    "Whoever zaps everything zaps every entry of the root, even one that reaches beyond the largest gfn.",
    "524a1e4e381f",
)


@routine
def zap_gfn_range(kvm: Kvm, root: KvmMmuPage, start: int, end: int, can_yield: bool, flush: bool, shared: bool) -> bool:
    """Zap what maps gfns start <= gfn < end, and the tables that cover nothing else.

    For all gfns it zaps the entries of the root only, each with everything below. `flush`: a TLB flush is pending
    already. Returns whether one is pending afterwards; an atomic zap flushes by itself, and a design that flushes in
    RCU readers does so before this returns. mmu_lock held: for read if `shared`, else for write.
    """
    max_gfn = tdp_mmu_max_gfn_exclusive(kvm)
    zap_all, end = start == 0 and end >= max_gfn, min(end, max_gfn)
    whole = zap_all and kvm.design.obeys(ZAP_ALL_WHOLE)
    nonpresent = kvm.masks.nonpresent
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, kvm.platform.levels if zap_all else PG_LEVEL_4K, start)
    while it is not None and it.gfn < end:
        checkpoint()
        if can_yield:
            it = tdp_mmu_iter_cond_resched(kvm, it, flush, shared)
        inside = whole or (start <= it.gfn and it.end <= end)
        if it.yielded:
            flush = False
        elif is_shadow_present_pte(it.old_spte) and (inside or is_last_spte(it.old_spte, it.level)):
            if not shared:
                tdp_mmu_iter_set_spte(kvm, it, nonpresent)
                flush = True
            else:
                found = tdp_mmu_zap_spte_atomic(kvm, it)
                if found is not None:
                    it = it._replace(old_spte=found)
                    del found, inside
                    continue
                del found
        del inside
        it = tdp_iter_next(kvm, it)
    if zap_all:
        root_zapped(kvm, root)
    if flush and kvm.design.obeys(FLUSH_IN_RCU):
        kvm_flush_remote_tlbs(kvm)
        flush = False
    rcu_read_unlock()
    return flush


@routine
def zap_whole_root(kvm: Kvm, root: KvmMmuPage, can_yield: bool, shared: bool) -> bool:
    """Zap everything under a root; returns whether a TLB flush is pending."""
    return zap_gfn_range(kvm, root, 0, tdp_mmu_max_gfn_exclusive(kvm), can_yield, False, shared)


@routine
def kvm_tdp_mmu_unmap_gfn_range(kvm: Kvm, range_: KvmGfnRange, flush: bool) -> bool:
    """Zap the range in all roots on which a reference can be taken (7533377215b6)."""
    as_id = range_.slot.as_id
    root = tdp_mmu_next_root_of(kvm, None, as_id, False, False)
    while root is not None:
        checkpoint()
        handed, kept = carried(kvm, flush)
        flush = zap_gfn_range(kvm, root, range_.start, range_.end, range_.may_block, handed, False) or kept
        del handed, kept
        root = tdp_mmu_next_root_of(kvm, root, as_id, False, False)
    return flush


@routine
def kvm_tdp_mmu_zap_leafs(kvm: Kvm, start: int, end: int, flush: bool) -> bool:
    """Zap the range in all roots on which a reference can be taken (kvm_tdp_mmu_zap_gfn_range)."""
    root = tdp_mmu_next_root(kvm, None, False, False)
    while root is not None:
        checkpoint()
        handed, kept = carried(kvm, flush)
        flush = zap_gfn_range(kvm, root, start, end, True, handed, False) or kept
        del handed, kept
        root = tdp_mmu_next_root(kvm, root, False, False)
    return flush


@routine
def kvm_tdp_mmu_zap_all(kvm: Kvm) -> None:
    """Zap all roots on which a reference can be taken, and flush."""
    if kvm_tdp_mmu_zap_leafs(kvm, 0, tdp_mmu_max_gfn_exclusive(kvm), False):
        kvm_flush_remote_tlbs(kvm)
