"""EPT violations: finding the page and mapping it (direct_page_fault, kvm_tdp_page_fault; v6.12).

The pfn is looked up without mmu_lock, because that may sleep; under the lock the fault then makes sure that
nothing has happened meanwhile that would make what it found wrong (is_page_fault_stale), and starts again if so.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from interleaf.hw.access import PFERR_FETCH_MASK, PFERR_WRITE_MASK
from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.linux.srcu import srcu_dereference
from interleaf.mm.mm import get_user_page
from interleaf.runtime import routine, say

from .design import rule
from .invalidate import mmu_invalidate_retry_gfn
from .kvm_host import KVM_MEM_READONLY, KVM_MEMSLOT_INVALID, Kvm, KvmMmuPage, KvmPageFault, KvmVcpu, RetPf
from .memslots import gfn_to_memslot
from .pfn import kvm_release_pfn_clean
from .tdp.map import kvm_tdp_mmu_map

STALE_ROOT_CHECK = rule(
    "stale-root-check",
    "A page fault that finds its root invalid once it holds mmu_lock maps nothing and tries again with a new root.",
    "a955cad84cda",
)
NOTIFIER_RETRY = rule(
    "notifier-retry",
    "A page fault maps nothing and tries again if an MMU notifier ran, or is running, since it looked up its pfn.",
    "e930bffe95e1",
)
INVALID_SLOT_RETRY = rule(
    "invalid-slot-retry",
    "A page fault that finds its memslot marked INVALID maps nothing and tries again until the slot is gone.",
    "e0c378684b65",
)


@routine
def is_obsolete_sp(sp: KvmMmuPage) -> bool:
    """Has a root been invalidated? mmu_lock held."""
    return sp.role.invalid


@routine
def is_page_fault_stale(vcpu: KvmVcpu, fault: KvmPageFault) -> bool:
    """Must the fault start again, because its root or its pfn may be out of date? mmu_lock held."""
    kvm = vcpu.kvm
    lockdep_assert_held(kvm.mmu_lock)
    root = vcpu.mmu_root
    if kvm.design.obeys(STALE_ROOT_CHECK) and root is not None and is_obsolete_sp(root):
        return True
    if fault.slot is None or not kvm.design.obeys(NOTIFIER_RETRY):
        return False
    return mmu_invalidate_retry_gfn(kvm, fault.mmu_seq, fault.gfn)


@routine
def kvm_faultin_pfn(vcpu: KvmVcpu, fault: KvmPageFault) -> KvmPageFault | RetPf | int:
    """Find the memslot of the fault and the page behind it.

    Returns the fault with slot and pfn, on which it has a reference; or RETRY for a slot that is being deleted,
    EMULATE for a gfn without a slot (MMIO) and for a write to a read-only one, -EFAULT if the slot's memory is not
    mapped. In a reader of `kvm->srcu`. May sleep.
    """
    kvm: Kvm = vcpu.kvm
    fault = replace(fault, mmu_seq=READ_ONCE(kvm, Kvm.mmu_invalidate_seq))
    slots = srcu_dereference(kvm, Kvm.memslots, kvm.srcu)
    assert slots is not None
    slot = gfn_to_memslot(slots, fault.gfn, vcpu.root_role.as_id)
    if slot is None:
        return RetPf.EMULATE
    if slot.flags & KVM_MEMSLOT_INVALID and kvm.design.obeys(INVALID_SLOT_RETRY):
        say(f"gfn {fault.gfn:#x} is in a memslot that is being deleted: tries again")
        return RetPf.RETRY
    if fault.write and slot.flags & KVM_MEM_READONLY:
        return RetPf.EMULATE
    page = get_user_page(kvm.mm, slot.userspace_addr + fault.gfn - slot.base_gfn, fault.write)
    if page is None:
        return -errno.EFAULT
    writable = page.writable and not slot.flags & KVM_MEM_READONLY
    return replace(fault, slot=slot, pfn=page.pfn, map_writable=writable)


@routine
def direct_page_fault(vcpu: KvmVcpu, fault: KvmPageFault) -> RetPf | int:
    """Handle a fault on a gfn that is translated by the TDP MMU alone. Returns RET_PF_* or a negative errno.

    In a reader of `kvm->srcu`, the vCPU has a root. May sleep.
    """
    found = kvm_faultin_pfn(vcpu, fault)
    if not isinstance(found, KvmPageFault):
        return found
    kvm: Kvm = vcpu.kvm
    assert found.pfn is not None
    read_lock(kvm.mmu_lock)
    if is_page_fault_stale(vcpu, found):
        say(f"the fault on gfn {fault.gfn:#x} is stale: tries again")
        result = RetPf.RETRY
    else:
        result = kvm_tdp_mmu_map(vcpu, found)
    read_unlock(kvm.mmu_lock)
    kvm_release_pfn_clean(found.pfn)
    return result


@routine
def kvm_tdp_page_fault(vcpu: KvmVcpu, gfn: int, write: bool, exec: bool) -> RetPf | int:
    """Handle an EPT violation of the guest at `gfn`. Returns RET_PF_* or a negative errno."""
    error_code = (PFERR_WRITE_MASK if write else 0) | (PFERR_FETCH_MASK if exec else 0)
    return direct_page_fault(vcpu, KvmPageFault(gfn, error_code))
