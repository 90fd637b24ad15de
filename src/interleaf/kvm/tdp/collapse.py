"""Mapping by huge pages again what was mapped by small ones, when dirty logging ends (kernel tdp_mmu.c, v6.12).

Up to v6.12 the tables are zapped, and faults map the huge pages; from v6.13 on the entry that points to the table is
made to map the huge page in place. The entries of the table may be read-only, or clean, which the faults put right.
"""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.kvm.design import rule
from interleaf.kvm.hugepage import kvm_mmu_max_mapping_level
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot, KvmMmuPage
from interleaf.kvm.tlb import kvm_flush_remote_tlbs_range
from interleaf.linux.lockdep import lockdep_assert_held_read
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import checkpoint, routine

from .changed import tdp_mmu_set_spte_atomic, tdp_mmu_zap_spte_atomic
from .iter import TdpIter, tdp_iter_next, tdp_iter_start
from .spte import is_last_spte, is_present_leaf, is_shadow_present_pte, make_huge_spte
from .tdp_mmu import tdp_mmu_next_root_of
from .zap import tdp_mmu_iter_cond_resched

COLLAPSE_PARENTS = rule(
    "collapse-zaps-parents",
    "Small pages that could be a huge one are zapped by zapping the entry that points to their table, instead of one "
    "by one.",
    "85f44f8cc07b",
    removed="v6.13",
)
COLLAPSE_LEAFS = rule(
    "collapse-zaps-leafs",
    "Of entries that are zapped one by one because they could be a huge page, it is the leafs that are zapped.",
    "87aa9ec939ec",
    removed="v6.13",
)
RECOVER_IN_PLACE = rule(
    "recover-huge-pages-in-place",
    "Small pages become a huge one by one write to the entry that points to their table, without a fault.",
    "v6.13",
)


@routine
def _could_be_huge(kvm: Kvm, slot: KvmMemorySlot, it: TdpIter) -> bool:
    """Does the entry point to a table, in the place of which a huge page could be mapped?"""
    if it.level > PG_LEVEL_1G or not is_shadow_present_pte(it.old_spte) or is_last_spte(it.old_spte, it.level):
        return False
    if not slot.base_gfn <= it.gfn < slot.base_gfn + slot.npages:
        return False
    return kvm_mmu_max_mapping_level(kvm, slot, it.gfn, PG_LEVEL_1G, False) >= it.level


@routine
def _is_part_of_huge(kvm: Kvm, slot: KvmMemorySlot, it: TdpIter) -> bool:
    """Does the entry map a page that could be mapped by a larger one?"""
    if not is_shadow_present_pte(it.old_spte):
        return False
    if is_last_spte(it.old_spte, it.level) is not kvm.design.obeys(COLLAPSE_LEAFS):
        return False
    return it.level < kvm_mmu_max_mapping_level(kvm, slot, it.gfn, PG_LEVEL_1G, False)


@routine
def zap_collapsible_spte_range(kvm: Kvm, root: KvmMmuPage, slot: KvmMemorySlot) -> None:
    """Zap what could be mapped by huge pages. mmu_lock held for read; given up on the way."""
    parents = kvm.design.obeys(COLLAPSE_PARENTS)
    end = slot.base_gfn + slot.npages
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_2M if parents else PG_LEVEL_4K, slot.base_gfn)
    while it is not None and it.gfn < end:
        checkpoint()
        it = tdp_mmu_iter_cond_resched(kvm, it, False, True)
        if not it.yielded and (_could_be_huge(kvm, slot, it) if parents else _is_part_of_huge(kvm, slot, it)):
            # vCPUs are using it: the zap flushes before it lets others fill the entry
            found = tdp_mmu_zap_spte_atomic(kvm, it)
            if found is not None:
                it = it._replace(old_spte=found)
                del found
                continue
            del found
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()


@routine
def tdp_mmu_make_huge_spte(kvm: Kvm, parent: TdpIter) -> int | None:
    """The huge page in the place of the table that `parent` points to, made from the first page that is mapped in the
    table; None if there is none. In an RCU reader, mmu_lock held for read."""
    it = tdp_iter_start(kvm, parent.root, PG_LEVEL_4K, parent.gfn)
    while it is not None and it.gfn < parent.end:
        checkpoint()
        if it.level < parent.level and is_present_leaf(it.old_spte, it.level):
            return make_huge_spte(kvm, it.old_spte, parent.level)
        it = tdp_iter_next(kvm, it)
    return None


@routine
def recover_huge_pages_range(kvm: Kvm, root: KvmMmuPage, slot: KvmMemorySlot) -> None:
    """Replace tables by the huge pages that could be mapped in their place, and flush. mmu_lock held for read; given
    up on the way."""
    end, flush = slot.base_gfn + slot.npages, False
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_2M, slot.base_gfn)
    while it is not None and it.gfn < end:
        checkpoint()
        it = tdp_mmu_iter_cond_resched(kvm, it, flush, True)
        if it.yielded:
            flush = False
        elif _could_be_huge(kvm, slot, it):
            huge_spte = tdp_mmu_make_huge_spte(kvm, it)
            found = None if huge_spte is None else tdp_mmu_set_spte_atomic(kvm, it, huge_spte)
            if found is not None:
                it = it._replace(old_spte=found)
                del found, huge_spte
                continue
            flush = flush or huge_spte is not None
            del found, huge_spte
        it = tdp_iter_next(kvm, it)
    if flush:
        # before the RCU reader is left: the tables are on their way to be freed
        kvm_flush_remote_tlbs_range(kvm, slot.base_gfn, slot.npages)
    rcu_read_unlock()


@routine
def kvm_tdp_mmu_zap_collapsible_sptes(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Let the slot be mapped by huge pages where the host has some, in all valid roots (from v6.13 on
    kvm_tdp_mmu_recover_huge_pages). mmu_lock held for read; given up on the way."""
    lockdep_assert_held_read(kvm.mmu_lock)
    in_place, as_id = kvm.design.obeys(RECOVER_IN_PLACE), slot.as_id
    root = tdp_mmu_next_root_of(kvm, None, as_id, True, True)
    while root is not None:
        checkpoint()
        if in_place:
            recover_huge_pages_range(kvm, root, slot)
        else:
            zap_collapsible_spte_range(kvm, root, slot)
        root = tdp_mmu_next_root_of(kvm, root, as_id, True, True)
