"""v5.13 to 5.16-rc3: the unmap notifier walks all roots without references, although it may yield."""

from __future__ import annotations

from interleaf.kvm.fast_page_fault import FAST_PAGE_FAULT
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange, KvmMmuPage
from interleaf.kvm.page_fault import FULL_MMU_SEQ, SPECIAL_ROOT_CHECK, STALE_ROOT_CHECK
from interleaf.kvm.tdp.changed import REMOVED_PT_FLUSH_START
from interleaf.kvm.tdp.iter import ITER_YIELDED
from interleaf.kvm.tdp.unmap import carried
from interleaf.linux.list import list_for_each_entry
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.runtime import routine

from .v5_16 import V5_16
from .zap_gfn_range import zap_gfn_range


@routine
def kvm_tdp_mmu_unmap_gfn_range(kvm: Kvm, range_: KvmGfnRange, flush: bool) -> bool:
    """Zap the range in all roots on the list, valid or not (for_each_tdp_mmu_root)."""
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if root.role.as_id == range_.slot.as_id:
            handed, kept = carried(kvm, flush)
            flush = zap_gfn_range(kvm, root, range_.start, range_.end, range_.may_block, handed, False) or kept
            del handed, kept
    return flush


V5_13 = V5_16.derive(
    "v5.13",
    "Notifiers see all roots, but take no references on those in which they yield; faults do not look whether their "
    "root is still valid.",
    ("b7cccd397f31", "4c6654bd160d", "c0e64238ac53", "2bdb3d84ce06"),
    obeys=(FULL_MMU_SEQ,),
    drops=(
        FAST_PAGE_FAULT,
        ITER_YIELDED,
        REMOVED_PT_FLUSH_START,
        SPECIAL_ROOT_CHECK,
        STALE_ROOT_CHECK,
    ),
    kvm_tdp_mmu_unmap_gfn_range=kvm_tdp_mmu_unmap_gfn_range,
)
