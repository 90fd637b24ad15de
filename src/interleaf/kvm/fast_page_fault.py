"""Faults that need no new mapping, handled without mmu_lock (fast_page_fault; arch/x86/kvm/mmu/mmu.c, v6.12).

An SPTE that has only lost permissions which KVM took away for a time, by write-protecting it for a dirty log or by
access tracking, gets them back by a cmpxchg, in an RCU reader. It must be one that says that KVM may do that
(MMU-writable); the page that it maps stays the same.
"""

from __future__ import annotations

from interleaf.hw import ept
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import checkpoint, routine, say

from .design import rule
from .dirty_log import mark_page_dirty_in_slot
from .kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmVcpu
from .mmu_internal import KvmPageFault, RetPf
from .tdp.entries import cmpxchg_spte
from .tdp.iter import TdpIter
from .tdp.lockless import kvm_tdp_mmu_fast_pf_get_last_sptep
from .tdp.masks import SpteMasks
from .tdp.spte import (
    is_access_track_spte,
    is_executable_pte,
    is_last_spte,
    is_mmu_writable_spte,
    is_shadow_present_pte,
    is_writable_pte,
    restore_acc_track_spte,
)
from .trace import trace_fast_page_fault

FAST_PAGE_FAULT = rule(
    "fast-page-fault",
    "A fault on an SPTE that is write-protected for a dirty log, or access-tracked, is handled without mmu_lock.",
    "6e8eb2060cc7",
)

MAX_RETRIES = 4
"""After as many failed cmpxchgs more than the first, mmu_lock is taken."""


def is_access_allowed(masks: SpteMasks, fault: KvmPageFault, spte: int) -> bool:
    """Does a present leaf allow the access that has faulted?"""
    if fault.exec:
        return is_executable_pte(masks, spte)
    if fault.write:
        return is_writable_pte(spte)
    return bool(spte & masks.user)


def page_fault_can_be_fast(kvm: Kvm, fault: KvmPageFault) -> bool:
    """May the fault be about permissions only? If the hardware has found nothing present, access tracking may have
    done that; if it has, the access must be a write."""
    if fault.rsvd or not kvm.design.obeys(FAST_PAGE_FAULT):
        return False
    return fault.write if fault.present else not kvm.platform.ad_bits


@routine
def fast_page_fault(vcpu: KvmVcpu, fault: KvmPageFault) -> RetPf:
    """Try to handle a fault without mmu_lock: FIXED; SPURIOUS if it would not happen any more; INVALID if it is not of
    that kind. In a reader of `kvm->srcu`, in which `fault.slot` was found."""
    if not page_fault_can_be_fast(vcpu.kvm, fault):
        return RetPf.INVALID
    rcu_read_lock()
    result = _fast_page_fault(vcpu, fault)
    rcu_read_unlock()
    return result


@routine
def _fast_page_fault(vcpu: KvmVcpu, fault: KvmPageFault) -> RetPf:
    kvm = vcpu.kvm
    retries = 0
    while True:
        checkpoint()
        it = kvm_tdp_mmu_fast_pf_get_last_sptep(vcpu, fault.gfn)
        if it is None:
            return RetPf.INVALID
        result, new_spte = _look(kvm, fault, it)
        if result is RetPf.CONTINUE and fast_pf_fix_direct_spte(vcpu, fault, it, new_spte):
            say(f"vCPU{vcpu.index} has fixed its fault on gfn {fault.gfn:#x} without mmu_lock")
            result = RetPf.FIXED
        if result is RetPf.CONTINUE and retries < MAX_RETRIES:
            retries += 1
            del it, result, new_spte
            continue
        if result is RetPf.CONTINUE:
            result = RetPf.INVALID
        shown = new_spte if result is RetPf.FIXED else it.old_spte
        gpa = fault.gfn << ept.PFN_SHIFT
        trace_fast_page_fault(vcpu.index, gpa, fault.error_code, it.old_spte, shown, result, it.sptep)
        return result


@routine
def _look(kvm: Kvm, fault: KvmPageFault, it: TdpIter) -> tuple[RetPf, int]:
    """What is to be done about the entry: CONTINUE with the value to give it, SPURIOUS or INVALID."""
    masks, spte = kvm.masks, it.old_spte
    if not is_shadow_present_pte(spte) or not is_last_spte(spte, it.level):
        return RetPf.INVALID, spte
    if is_access_allowed(masks, fault, spte):
        return RetPf.SPURIOUS, spte
    new_spte = spte
    if not kvm.platform.ad_bits and is_access_track_spte(masks, spte):
        new_spte = restore_acc_track_spte(masks, new_spte)
    if fault.write and is_mmu_writable_spte(masks, spte):
        new_spte |= ept.VMX_EPT_WRITABLE_MASK
        # only one page would be logged: a huge page under logging is to be mapped in small ones instead
        if it.level > PG_LEVEL_4K and fault.slot is not None and fault.slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
            return RetPf.INVALID, spte
    if new_spte == spte or not is_access_allowed(masks, fault, new_spte):
        return RetPf.INVALID, spte
    return RetPf.CONTINUE, new_spte


@routine
def fast_pf_fix_direct_spte(vcpu: KvmVcpu, fault: KvmPageFault, it: TdpIter, new_spte: int) -> bool:
    """Give the entry its permissions back, and log the page if it is writable now; False if the entry has changed. In
    an RCU reader."""
    kvm = vcpu.kvm
    if cmpxchg_spte(kvm, it.root, it.sp, it.gfn, it.level, it.old_spte, new_spte) != it.old_spte:
        return False
    if is_writable_pte(new_spte) and not is_writable_pte(it.old_spte):
        assert fault.slot is not None
        mark_page_dirty_in_slot(kvm, fault.slot, fault.gfn, vcpu)
    return True
