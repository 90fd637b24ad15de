"""A vCPU's root: getting one, giving it back, and noticing that it is obsolete (arch/x86/kvm/mmu/mmu.c, v6.12)."""

from __future__ import annotations

from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.runtime import routine, say

from .kvm_host import Kvm, KvmMmuPage, KvmVcpu
from .tdp import tdp_mmu
from .tdp.roots import ROOTS_UNDER_READ_LOCK
from .tlb import kvm_flush_tlb_current


def _lock(kvm: Kvm) -> bool:
    """Take mmu_lock as the design needs it to get and put a vCPU's root; returns whether for read."""
    shared = kvm.design.obeys(ROOTS_UNDER_READ_LOCK)
    if shared:
        read_lock(kvm.mmu_lock)
    else:
        write_lock(kvm.mmu_lock)
    return shared


def _unlock(kvm: Kvm, shared: bool) -> None:
    if shared:
        read_unlock(kvm.mmu_lock)
    else:
        write_unlock(kvm.mmu_lock)


@routine
def kvm_mmu_load(vcpu: KvmVcpu) -> None:
    """Get a root, with a reference, and flush the vCPU's TLB, which may have entries of a root at the same place.

    The vCPU has none. No mmu_lock held; sleeps.
    """
    kvm = vcpu.kvm
    shared = _lock(kvm)
    root = tdp_mmu.kvm_tdp_mmu_get_vcpu_root_hpa(vcpu)
    _unlock(kvm, shared)
    vcpu.mmu_root = root
    kvm_flush_tlb_current(vcpu)
    say(f"vCPU{vcpu.index} loads {root.name}")


@routine
def kvm_mmu_reload(vcpu: KvmVcpu) -> None:
    """Get a root if the vCPU has none."""
    if vcpu.mmu_root is None:
        kvm_mmu_load(vcpu)


@routine
def kvm_mmu_unload(vcpu: KvmVcpu) -> None:
    """Give the vCPU's root back, if it has one (kvm_mmu_free_roots). No mmu_lock held."""
    root = vcpu.mmu_root
    if root is None:
        return
    kvm = vcpu.kvm
    shared = _lock(kvm)
    # cleared first, though the kernel clears it last: from here on the vCPU flushes before it enters the guest
    vcpu.mmu_root = None
    tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, shared)
    _unlock(kvm, shared)
    say(f"vCPU{vcpu.index} has put {root.name}")


@routine
def kvm_mmu_reset_context(vcpu: KvmVcpu) -> None:
    """The guest has changed its paging mode (CR0, CR4, EFER): start over with a new root. The vCPU is not in the
    guest."""
    kvm_mmu_unload(vcpu)


@routine
def is_obsolete_root(root: KvmMmuPage) -> bool:
    """Has the root been invalidated? Without mmu_lock: the answer may be old, but whoever invalidates a root makes
    a request afterwards."""
    return READ_ONCE(root, KvmMmuPage.role).invalid


@routine
def kvm_mmu_free_obsolete_roots(vcpu: KvmVcpu) -> None:
    """Give the vCPU's root back if it is obsolete."""
    root = vcpu.mmu_root
    if root is not None and is_obsolete_root(root):
        kvm_mmu_unload(vcpu)
