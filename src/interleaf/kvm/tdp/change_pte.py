"""The host replaces a page by another one, and tells KVM what the new one is (kernel tdp_mmu.c, v5.10 to v6.9).

The host only does so inside an invalidation of the address, whose start has zapped what mapped it: there never is
anything left to change, which is why v6.10 dropped it.
"""

from __future__ import annotations

from interleaf.hw.ept import PFN_MASK, PFN_SHIFT, VMX_EPT_WRITABLE_MASK
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange, KvmMmuPage
from interleaf.kvm.tlb import kvm_flush_remote_tlbs_range
from interleaf.mm.mm import Pte
from interleaf.runtime import checkpoint, routine

from .changed import tdp_mmu_iter_set_spte
from .handle_gfn import kvm_tdp_mmu_handle_gfn
from .iter import tdp_iter_next, tdp_iter_start
from .masks import SpteMasks
from .spte import is_shadow_present_pte, mark_spte_for_access_track

CHANGE_PTE = rule(
    "change-pte",
    "KVM takes part in the host's replacing of PTEs, and maps the new page at once if it may only be read.",
    "v5.10",
    removed="v6.10",
)
ZAP_BEFORE_CHANGE = rule(
    "zap-before-change",
    "An SPTE is zapped before it is made to map the page that the host has put in place of the old one, because a "
    "present SPTE never changes its frame.",
    "v5.10",
    removed="v6.10",
)
CHANGE_PTE_BATCHES = rule(
    "change-pte-batches-flush",
    "The TLB flush for changed PTEs is left to the caller, who makes one for all.",
    "93fa50f644e0",
    removed="v6.10",
)


def kvm_mmu_changed_pte_notifier_make_spte(masks: SpteMasks, old_spte: int, pfn: int) -> int:
    """`old_spte` with another frame, which nobody may write to, and which has not been accessed yet."""
    kept = old_spte & ~(PFN_MASK | VMX_EPT_WRITABLE_MASK | masks.host_writable | masks.mmu_writable)
    return mark_spte_for_access_track(masks, kept | pfn << PFN_SHIFT)


@routine
def kvm_tdp_mmu_set_spte_gfn(kvm: Kvm, range_: KvmGfnRange, entry: Pte) -> bool:
    """The host's PTE behind the gfn of the range is `entry` now: change what maps the old page. Returns whether a TLB
    flush is needed. mmu_lock held for write."""
    flush = kvm_tdp_mmu_handle_gfn(kvm, range_, set_spte_gfn, entry)
    if flush and not kvm.design.obeys(CHANGE_PTE_BATCHES):
        kvm_flush_remote_tlbs_range(kvm, range_.start, 1)
        return False
    return flush


@routine
def set_spte_gfn(kvm: Kvm, root: KvmMmuPage, range_: KvmGfnRange, entry: Pte) -> bool:
    """The same in one root. In an RCU reader, mmu_lock held for write."""
    flush = False
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, range_.start)
    while it is not None and it.gfn < range_.end:
        checkpoint()
        if it.level == PG_LEVEL_4K and is_shadow_present_pte(it.old_spte):
            old_spte = it.old_spte
            if entry.writable or kvm.design.obeys(ZAP_BEFORE_CHANGE):
                tdp_mmu_iter_set_spte(kvm, it, kvm.masks.nonpresent)
                it = it._replace(old_spte=kvm.masks.nonpresent)
            if not entry.writable:
                # a page that may be written is left to the next fault, which knows whether it is to be
                new_spte = kvm_mmu_changed_pte_notifier_make_spte(kvm.masks, old_spte, entry.pfn)
                tdp_mmu_iter_set_spte(kvm, it, new_spte)
                del new_spte
            flush = True
            del old_spte
        it = tdp_iter_next(kvm, it)
    return flush
