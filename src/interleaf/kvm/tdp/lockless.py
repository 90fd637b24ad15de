"""Walks of the page tables without mmu_lock (kernel tdp_mmu.c, v6.12).

RCU keeps the tables that such a walk is in from being freed, and nothing keeps them from being changed: whoever wants
to change an entry that it has found must do so with a cmpxchg, and only if the rest of the entry stays as it is.
"""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.kvm_host import KvmVcpu
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import routine

from .iter import TdpIter, tdp_iter_next, tdp_iter_start
from .spte import is_last_spte, is_shadow_present_pte


@routine
def kvm_tdp_mmu_fast_pf_get_last_sptep(vcpu: KvmVcpu, gfn: int) -> TdpIter | None:
    """The last entry on the way to `gfn`; None if the VM was not made for it. In an RCU reader, the vCPU has a root."""
    kvm, root = vcpu.kvm, vcpu.mmu_root
    assert root is not None
    found = None
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, gfn)
    while it is not None and it.gfn <= gfn:
        found = it
        if not is_shadow_present_pte(it.old_spte) or is_last_spte(it.old_spte, it.level):
            break
        # a table that is zapped before the walk has come into it ends the walk at the entry that led there
        it = tdp_iter_next(kvm, it)
    return found


@routine
def kvm_tdp_mmu_get_walk(vcpu: KvmVcpu, gfn: int) -> tuple[int, int]:
    """The last SPTE on the way to `gfn`, and its level; 0 and 0 if the VM was not made for it."""
    rcu_read_lock()
    found = kvm_tdp_mmu_fast_pf_get_last_sptep(vcpu, gfn)
    rcu_read_unlock()
    return (0, 0) if found is None else (found.old_spte, found.level)
