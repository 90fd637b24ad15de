"""Write-protecting: a memslot, for dirty logging, or one gfn, for good (kernel tdp_mmu.c, v6.12).

Dirty logging takes the W bit only: the entry stays MMU-writable, so that fast_page_fault() may give W back without
mmu_lock, having logged the write. Whoever must see every write takes MMU-writable, too.
"""

from __future__ import annotations

from interleaf.hw.ept import VMX_EPT_WRITABLE_MASK
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot, KvmMmuPage
from interleaf.linux.list import list_for_each_entry
from interleaf.linux.lockdep import lockdep_assert_held_read, lockdep_assert_held_write
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import checkpoint, routine

from .changed import tdp_mmu_iter_set_spte, tdp_mmu_set_spte_atomic
from .iter import tdp_iter_next, tdp_iter_start
from .spte import is_present_leaf, is_writable_pte
from .tdp_mmu import tdp_mmu_next_root_of
from .zap import tdp_mmu_iter_cond_resched

WRPROT_VALID_ROOTS = rule(
    "write-protect-valid-roots",
    "Write-protecting a gfn, and clearing its dirty state, leaves invalid roots out, because no vCPU uses them.",
    "d746182337c2",
)
WRPROT_MMU_WRITABLE = rule(
    "write-protect-mmu-writable",
    "Write-protecting a gfn changes, and flushes, each entry that is MMU-writable, even if it is not writable: "
    "dirty logging may have taken W and not flushed yet, and a fast page fault may give it back.",
    "7c8a4742c4ab",
)


@routine
def wrprot_gfn_range(kvm: Kvm, root: KvmMmuPage, start: int, end: int, min_level: int) -> bool:
    """Take W from what maps gfns start <= gfn < end in pages of `min_level` or larger; was there any? mmu_lock held
    for read; given up on the way."""
    changed = False
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, min_level, start)
    while it is not None and it.gfn < end:
        checkpoint()
        it = tdp_mmu_iter_cond_resched(kvm, it, False, True)
        if not it.yielded and is_present_leaf(it.old_spte, it.level) and is_writable_pte(it.old_spte):
            found = tdp_mmu_set_spte_atomic(kvm, it, it.old_spte & ~VMX_EPT_WRITABLE_MASK)
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
def kvm_tdp_mmu_wrprot_slot(kvm: Kvm, slot: KvmMemorySlot, min_level: int = PG_LEVEL_4K) -> bool:
    """Take W from everything that maps the slot in pages of `min_level` or larger, in all valid roots. Returns whether
    a TLB flush is needed, which may wait until after mmu_lock is released. mmu_lock held for read; given up on the
    way."""
    lockdep_assert_held_read(kvm.mmu_lock)
    changed = False
    start, end, as_id = slot.base_gfn, slot.base_gfn + slot.npages, slot.as_id
    root = tdp_mmu_next_root_of(kvm, None, as_id, True, True)
    while root is not None:
        checkpoint()
        changed = wrprot_gfn_range(kvm, root, start, end, min_level) or changed
        root = tdp_mmu_next_root_of(kvm, root, as_id, True, True)
    return changed


@routine
def write_protect_gfn(kvm: Kvm, root: KvmMmuPage, gfn: int, min_level: int) -> bool:
    """Make what maps `gfn` in a page of `min_level` or larger read-only, and let no fast page fault change that; is a
    flush needed? mmu_lock held for write."""
    changed = False
    taken = VMX_EPT_WRITABLE_MASK | kvm.masks.mmu_writable
    decides = taken if kvm.design.obeys(WRPROT_MMU_WRITABLE) else VMX_EPT_WRITABLE_MASK
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, min_level, gfn)
    while it is not None and it.gfn <= gfn:
        checkpoint()
        if is_present_leaf(it.old_spte, it.level):
            if not it.old_spte & decides:
                break
            tdp_mmu_iter_set_spte(kvm, it, it.old_spte & ~taken)
            changed = True
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    return changed


@routine
def kvm_tdp_mmu_write_protect_gfn(kvm: Kvm, slot: KvmMemorySlot, gfn: int, min_level: int) -> bool:
    """Make `gfn` read-only in the roots of the slot's address space. If it returns True, TLBs must be flushed before
    mmu_lock is released. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    changed = False
    for root in roots_to_protect(kvm, slot):
        changed = write_protect_gfn(kvm, root, gfn, min_level) or changed
    return changed


@routine
def roots_to_protect(kvm: Kvm, slot: KvmMemorySlot) -> tuple[KvmMmuPage, ...]:
    """The roots in which a walk that does not yield protects pages of the slot. mmu_lock held for write."""
    only_valid, as_id = kvm.design.obeys(WRPROT_VALID_ROOTS), slot.as_id
    return tuple(
        root
        for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage)
        if root.role.as_id == as_id and not (only_valid and root.role.invalid)
    )
