"""Write-protecting a memslot, for dirty logging (kernel tdp_mmu.c, v6.12)."""

from __future__ import annotations

from interleaf.hw import ept
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot, KvmMmuPage
from interleaf.linux.lockdep import lockdep_assert_held_read
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import checkpoint, routine

from .changed import tdp_mmu_set_spte_atomic
from .iter import tdp_iter_next, tdp_iter_start
from .spte import is_present_leaf, is_writable_pte
from .tdp_mmu import tdp_mmu_next_root_of
from .zap import tdp_mmu_iter_cond_resched


@routine
def wrprot_gfn_range(kvm: Kvm, root: KvmMmuPage, start: int, end: int) -> bool:
    """Make what maps gfns start <= gfn < end read-only; was anything writable? mmu_lock held for read; given up on
    the way."""
    changed = False
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, start)
    while it is not None and it.gfn < end:
        checkpoint()
        it = tdp_mmu_iter_cond_resched(kvm, it, False, True)
        if not it.yielded and is_present_leaf(it.old_spte, it.level) and is_writable_pte(it.old_spte):
            found = tdp_mmu_set_spte_atomic(kvm, it, it.old_spte & ~ept.VMX_EPT_WRITABLE_MASK)
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
def kvm_tdp_mmu_wrprot_slot(kvm: Kvm, slot: KvmMemorySlot) -> bool:
    """Make everything that maps the slot read-only, in all valid roots. Returns whether a TLB flush is needed, which
    may wait until after mmu_lock is released. mmu_lock held for read; given up on the way."""
    lockdep_assert_held_read(kvm.mmu_lock)
    changed = False
    start, end, as_id = slot.base_gfn, slot.base_gfn + slot.npages, slot.as_id
    root = tdp_mmu_next_root_of(kvm, None, as_id, True, True)
    while root is not None:
        checkpoint()
        changed = wrprot_gfn_range(kvm, root, start, end) or changed
        root = tdp_mmu_next_root_of(kvm, root, as_id, True, True)
    return changed
