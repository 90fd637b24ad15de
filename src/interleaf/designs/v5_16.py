"""v5.16 (from 5.16-rc4) and v5.17: the unmap notifier walks with references, and so skips invalid roots."""

from __future__ import annotations

from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.tdp.change_pte import CHANGE_PTE_BATCHES
from interleaf.kvm.tdp.changed import LEAF_REPLACES_TABLE, tdp_mmu_free_sp_rcu_callback
from interleaf.kvm.tdp.handle_gfn import RCU_PER_ROOT
from interleaf.kvm.tdp.iter import ITER_YIELDED
from interleaf.linux.list import list_del_rcu
from interleaf.linux.rcu import call_rcu
from interleaf.linux.refcount import refcount_dec_and_test
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import routine

from .series_v1 import SERIES_V1
from .zap_gfn_range import zap_whole_root


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Put a reference; with the last one the root leaves the list, is zapped without yielding, and freed after a
    grace period."""
    if not refcount_dec_and_test(root.tdp_mmu_root_count):
        return
    spin_lock(kvm.tdp_mmu_pages_lock)
    list_del_rcu(root.link)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    # No flush: each vCPU flushes when it loads another root.
    zap_whole_root(kvm, root, False, shared)
    call_rcu(tdp_mmu_free_sp_rcu_callback, root)


V5_16 = SERIES_V1.derive(
    "v5.16",
    "The last put of a root zaps it without yielding; notifiers skip invalid roots.",
    ("7533377215b6", "a955cad84cda", "18c841e1f411", "574c3c55e969", "4b85c921cd39", "3a0f64de479c"),
    obeys=(ITER_YIELDED,),
    drops=(
        CHANGE_PTE_BATCHES,
        LEAF_REPLACES_TABLE,
        RCU_PER_ROOT,
    ),
    kvm_tdp_mmu_put_root=kvm_tdp_mmu_put_root,
)
