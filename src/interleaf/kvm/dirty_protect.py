"""Protecting pages so that dirty logging sees the next write to them (arch/x86/kvm/x86.c, mmu/mmu.c, v6.12).

By write protection, or, where the processor logs the pages whose D bit it sets (PML), by clearing D. Huge pages are
split first, because the log is of 4 KiB pages: here if `eager_page_split` says so, else by the faults. Without
logging they are put together again.
"""

from __future__ import annotations

from interleaf.hw.page_table import ENTRIES_PER_TABLE, PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.linux.lockdep import lockdep_assert_held, lockdep_assert_held_write
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.runtime import routine

from .design import rule
from .kvm_host import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Kvm, KvmMemorySlot
from .tdp.collapse import kvm_tdp_mmu_zap_collapsible_sptes
from .tdp.dirty import kvm_tdp_mmu_clear_dirty_pt_masked, kvm_tdp_mmu_clear_dirty_slot
from .tdp.split import EAGER_SPLIT, kvm_tdp_mmu_try_split_huge_pages
from .tdp.wrprot import kvm_tdp_mmu_write_protect_gfn, kvm_tdp_mmu_wrprot_slot
from .tlb import kvm_flush_remote_tlbs_range

ENABLE_LOG_FLUSHES = rule(
    "enable-log-always-flushes",
    "Enabling dirty logging flushes all TLBs, even if no SPTE had to be changed: some may have been made read-only, or "
    "access-tracked, without a flush.",
    "b64d740ea7dd",
)
CLEAR_SPLITS_LAST = rule(
    "clear-splits-last-page",
    "Clearing the dirty log splits the huge page of the last gfn that is cleared, too.",
    "v6.8",
)


@routine
def kvm_flush_remote_tlbs_memslot(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Flush the gfns of a slot from all TLBs. slots_lock held, so that nobody lets userspace believe that pages are
    protected before this has returned."""
    lockdep_assert_held(kvm.slots_lock)
    kvm_flush_remote_tlbs_range(kvm, slot.base_gfn, slot.npages)


@routine
def kvm_arch_mmu_enable_log_dirty_pt_masked(kvm: Kvm, slot: KvmMemorySlot, gfn_offset: int, mask: int) -> None:
    """Protect the pages at gfn_offset + n in the slot, for the bits n of `mask`, so that the next write to them is
    logged. mmu_lock held for write; may be given up where huge pages are split."""
    lockdep_assert_held_write(kvm.mmu_lock)
    gfn = slot.base_gfn + gfn_offset
    if kvm.params.initially_all_set:
        # huge pages were left as they are when logging began, so that they are split, or seen, now
        start, end = gfn + (mask & -mask).bit_length() - 1, gfn + mask.bit_length() - 1
        if kvm.params.eager_page_split and kvm.design.obeys(EAGER_SPLIT):
            behind = end + 1 if kvm.design.obeys(CLEAR_SPLITS_LAST) else end
            kvm_tdp_mmu_try_split_huge_pages(kvm, slot, start, behind, PG_LEVEL_4K, False)
        kvm_tdp_mmu_write_protect_gfn(kvm, slot, start, PG_LEVEL_2M)
        if -(-start // ENTRIES_PER_TABLE) != -(-end // ENTRIES_PER_TABLE):
            kvm_tdp_mmu_write_protect_gfn(kvm, slot, end, PG_LEVEL_2M)
    kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot, gfn, mask, not kvm.platform.pml)


@routine
def kvm_mmu_slot_apply_flags(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """The flag KVM_MEM_LOG_DIRTY_PAGES of the slot has changed: protect its pages, or map them by huge pages again.

    When it returns, each write to the slot is logged, if it is to be. slots_lock held. Sleeps.
    """
    lockdep_assert_held(kvm.slots_lock)
    if slot.flags & KVM_MEM_READONLY:
        return
    if not slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        read_lock(kvm.mmu_lock)
        kvm_tdp_mmu_zap_collapsible_sptes(kvm, slot)
        read_unlock(kvm.mmu_lock)
        return
    if kvm.params.initially_all_set:
        # all pages are dirty, so nothing needs to be seen until userspace clears some
        return
    if kvm.params.eager_page_split and kvm.design.obeys(EAGER_SPLIT):
        read_lock(kvm.mmu_lock)
        start = slot.base_gfn
        kvm_tdp_mmu_try_split_huge_pages(kvm, slot, start, start + slot.npages, PG_LEVEL_4K, True)
        read_unlock(kvm.mmu_lock)
    flush = kvm.design.obeys(ENABLE_LOG_FLUSHES)
    if kvm.platform.pml:
        read_lock(kvm.mmu_lock)
        flush = kvm_tdp_mmu_clear_dirty_slot(kvm, slot) or flush
        read_unlock(kvm.mmu_lock)
    read_lock(kvm.mmu_lock)
    flush = kvm_tdp_mmu_wrprot_slot(kvm, slot, PG_LEVEL_2M if kvm.platform.pml else PG_LEVEL_4K) or flush
    read_unlock(kvm.mmu_lock)
    if flush:
        kvm_flush_remote_tlbs_memslot(kvm, slot)
