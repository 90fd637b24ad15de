"""Mapping a page for a fault: from the root down to the leaf, with new tables on the way (tdp_mmu.c, v6.12)."""

from __future__ import annotations

from interleaf.hw.page_table import index_of
from interleaf.kvm.kvm_host import ACC_ALL, Kvm, KvmMmuPage, KvmPageFault, KvmVcpu, RetPf
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.slab import kmem_cache_free
from interleaf.runtime import ModelError, routine, warn

from .changed import tdp_mmu_set_spte_atomic
from .iter import TdpIter, tdp_iter_next, tdp_iter_start
from .link import tdp_mmu_alloc_sp, tdp_mmu_link_sp
from .spte import is_removed_spte, is_shadow_present_pte, make_spte


@routine
def kvm_tdp_mmu_map(vcpu: KvmVcpu, fault: KvmPageFault) -> RetPf:
    """Map `fault.gfn` to `fault.pfn` in the vCPU's root.

    RETRY if another task got in the way; the fault will come again if it still has to. mmu_lock held for read,
    and the fault found not to be stale under it.
    """
    kvm, root = vcpu.kvm, vcpu.mmu_root
    if fault.gfn not in kvm.gfns:
        raise ModelError(
            f"gfn {fault.gfn:#x} is to be mapped, but the VM was made for the gfns {', '.join(map(hex, kvm.gfns))}. "
            "Add it to Kvm.gfns."
        )
    if root is None or fault.pfn is None:
        raise ModelError(f"{vcpu.name} maps gfn {fault.gfn:#x} without a root or a pfn.")
    rcu_read_lock()
    result = _map(vcpu, kvm, root, fault)
    rcu_read_unlock()
    return result


@routine
def _map(vcpu: KvmVcpu, kvm: Kvm, root: KvmMmuPage, fault: KvmPageFault) -> RetPf:
    it = tdp_iter_start(kvm, root, fault.goal_level, fault.gfn)
    while it is not None and it.gfn <= fault.gfn:
        if is_removed_spte(kvm.masks, it.old_spte):
            # whoever has frozen the entry is removing what it mapped, and will let it go again
            return RetPf.RETRY
        if it.level == fault.goal_level:
            return tdp_mmu_map_handle_target_level(kvm, fault, it)
        if not is_shadow_present_pte(it.old_spte) and not _add_table(kvm, it):
            return RetPf.RETRY
        it = tdp_iter_next(kvm, it)
    # The walk ended above the goal: somebody has zapped a table on the way.
    return RetPf.RETRY


@routine
def tdp_mmu_map_handle_target_level(kvm: Kvm, fault: KvmPageFault, it: TdpIter) -> RetPf:
    """Install the leaf at `it`. In an RCU reader, mmu_lock held for read."""
    role = it.sp.role
    level = role.level
    if warn(
        "map-at-wrong-level",
        level != fault.goal_level,
        f"gfn {fault.gfn:#x} is to be mapped at level {fault.goal_level}, but {it.sp.name} is of level {level}",
    ):
        return RetPf.RETRY
    assert fault.pfn is not None
    new_spte, _wrprot = make_spte(
        kvm, role, fault.slot, ACC_ALL, it.gfn, fault.pfn, it.old_spte, False, fault.map_writable, level
    )
    if new_spte == it.old_spte:
        return RetPf.SPURIOUS
    if tdp_mmu_set_spte_atomic(kvm, it, new_spte) is not None:
        return RetPf.RETRY
    return RetPf.FIXED


@routine
def _add_table(kvm: Kvm, it: TdpIter) -> bool:
    """Put a new, empty table where `it` found nothing; False if another task was quicker with whatever it did."""
    sp = tdp_mmu_alloc_sp(kvm, it.gfn, it.sp.role.child(), (it.sp, index_of(it.gfn, it.level)))
    if tdp_mmu_link_sp(kvm, it, sp):
        return True
    kmem_cache_free(sp)
    return False
