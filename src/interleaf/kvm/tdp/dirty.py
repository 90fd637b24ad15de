"""Clearing the dirty state of SPTEs, by which dirty logging sees the next write (kernel tdp_mmu.c, v6.12).

With page-modification logging (PML) the processor logs a write when it sets the D bit, so clearing D is enough. In
all other cases W is taken, and the next write faults.
"""

from __future__ import annotations

from interleaf.hw.ept import VMX_EPT_WRITABLE_MASK
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot, KvmMmuPage
from interleaf.kvm.pfn import kvm_set_pfn_dirty
from interleaf.kvm.trace import trace_kvm_tdp_mmu_spte_changed
from interleaf.linux.lockdep import lockdep_assert_held_read, lockdep_assert_held_write
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import checkpoint, routine

from .changed import tdp_mmu_clear_spte_bits, tdp_mmu_iter_set_spte, tdp_mmu_set_spte_atomic
from .iter import TdpIter, tdp_iter_next, tdp_iter_start
from .spte import ad_need_write_protect, is_present_leaf, spte_to_pfn
from .tdp_mmu import tdp_mmu_next_root_of
from .wrprot import roots_to_protect
from .zap import tdp_mmu_iter_cond_resched

BITS_PER_LONG = 64
"""Pages whose dirty state is one word of a dirty bitmap."""

CLEAR_DIRTY_BY_ROOT = rule(
    "clear-dirty-by-root",
    "Whether W or D is taken from the SPTEs of a root is asked of the root, because PML does not log what a nested "
    "guest writes.",
    "2673dfb591a3",
)
CLEAR_DIRTY_ATOMIC = rule(
    "clear-dirty-atomic",
    "Getting or clearing the dirty log takes the W or D bit of an SPTE by an atomic AND, instead of writing the whole "
    "entry, so that no bit is lost that the processor sets.",
    "v6.4",
)


def tdp_mmu_need_write_protect(kvm: Kvm, root: KvmMmuPage) -> bool:
    """Must dirty logging take W from the SPTEs of this root, because their D bits (if any) are not logged?"""
    by_root = root.role.ad_disabled or ad_need_write_protect(kvm, root.role)
    return not kvm.masks.dirty or (by_root and kvm.design.obeys(CLEAR_DIRTY_BY_ROOT))


@routine
def clear_dirty_gfn_range(kvm: Kvm, root: KvmMmuPage, start: int, end: int) -> bool:
    """Clear the dirty state of what maps gfns start <= gfn < end; was there any? mmu_lock held for read; given up on
    the way."""
    dbit = VMX_EPT_WRITABLE_MASK if tdp_mmu_need_write_protect(kvm, root) else kvm.masks.dirty
    changed = False
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, start)
    while it is not None and it.gfn < end:
        checkpoint()
        it = tdp_mmu_iter_cond_resched(kvm, it, False, True)
        if not it.yielded and is_present_leaf(it.old_spte, it.level) and it.old_spte & dbit:
            found = tdp_mmu_set_spte_atomic(kvm, it, it.old_spte & ~dbit)
            if found is not None:
                it = it._replace(old_spte=found)
                del found
                continue
            changed = True
            del found
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    return changed


@routine
def kvm_tdp_mmu_clear_dirty_slot(kvm: Kvm, slot: KvmMemorySlot) -> bool:
    """Clear the dirty state of everything that maps the slot, in all valid roots. Returns whether a TLB flush is
    needed, which may wait until after mmu_lock is released. mmu_lock held for read; given up on the way."""
    lockdep_assert_held_read(kvm.mmu_lock)
    changed = False
    start, end, as_id = slot.base_gfn, slot.base_gfn + slot.npages, slot.as_id
    root = tdp_mmu_next_root_of(kvm, None, as_id, True, True)
    while root is not None:
        checkpoint()
        changed = clear_dirty_gfn_range(kvm, root, start, end) or changed
        root = tdp_mmu_next_root_of(kvm, root, as_id, True, True)
    return changed


@routine
def clear_dirty_pt_masked(kvm: Kvm, root: KvmMmuPage, gfn: int, mask: int, wrprot: bool) -> None:
    """Clear the dirty state of the 4 KiB pages gfn + n for the bits n of `mask`, or, if `wrprot`, take W from them.
    mmu_lock held for write."""
    dbit = VMX_EPT_WRITABLE_MASK if wrprot or tdp_mmu_need_write_protect(kvm, root) else kvm.masks.dirty
    atomic = kvm.design.obeys(CLEAR_DIRTY_ATOMIC)
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, gfn + (mask & -mask).bit_length() - 1)
    while mask and it is not None and it.gfn < gfn + BITS_PER_LONG:
        checkpoint()
        if it.level == PG_LEVEL_4K and mask >> it.gfn - gfn & 1 and is_present_leaf(it.old_spte, it.level):
            mask &= ~(1 << it.gfn - gfn)
            if it.old_spte & dbit and atomic:
                _clear_bit(kvm, it, dbit)
            elif it.old_spte & dbit:
                tdp_mmu_iter_set_spte(kvm, it, it.old_spte & ~dbit)
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()


@routine
def _clear_bit(kvm: Kvm, it: TdpIter, dbit: int) -> None:
    old_spte = tdp_mmu_clear_spte_bits(kvm, it, dbit)
    trace_kvm_tdp_mmu_spte_changed(it.root.role.as_id, it.gfn, it.level, old_spte, old_spte & ~dbit)
    kvm_set_pfn_dirty(spte_to_pfn(old_spte))


@routine
def kvm_tdp_mmu_clear_dirty_pt_masked(kvm: Kvm, slot: KvmMemorySlot, gfn: int, mask: int, wrprot: bool) -> None:
    """Do so in the roots of the slot's address space. TLBs must be flushed before userspace learns that the pages'
    bits were cleared. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in roots_to_protect(kvm, slot):
        clear_dirty_pt_masked(kvm, root, gfn, mask, wrprot)
