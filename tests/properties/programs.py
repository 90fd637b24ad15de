"""The smallest programs in which each property can fail."""

from __future__ import annotations

from interleaf.designs import OFF_LIST, V6_12
from interleaf.hw.access import PFERR_USER_MASK
from interleaf.kvm.design import Design
from interleaf.kvm.invalidate import kvm_mmu_invalidate_begin, kvm_mmu_invalidate_end, kvm_mmu_invalidate_range_add
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot, KvmMmuPage, KvmVcpu
from interleaf.kvm.page_fault import kvm_mmu_do_page_fault
from interleaf.kvm.tdp.entries import write_spte
from interleaf.kvm.tdp.wrprot import kvm_tdp_mmu_wrprot_slot
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import kvm_mmu_zap_all, kvm_zap_gfn_range, set_nx_huge_pages
from interleaf.linux.rcu import synchronize_rcu
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.mm.unmap import madvise_dontneed
from interleaf.runtime import routine, spawn
from interleaf.scenarios import GUEST_HVA, destroy_after, load_roots, make_vm, populate


def never_taken_down(design: Design) -> None:
    """A VM with a page mapped is destroyed."""
    kvm = make_vm(design)
    populate(kvm)
    destroy_after(kvm)


def invalidate_vs_fault(design: Design) -> None:
    """A vCPU faults while all roots are invalidated and zapped."""
    kvm = make_vm(design)
    load_roots(kvm)
    spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    spawn(set_nx_huge_pages, name="nx")


def zap_tables_vs_guest(design: Design) -> None:
    """A page table is zapped that a vCPU has in its paging-structure cache."""
    kvm = make_vm(design, pages=2)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
    spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(1), name="vcpu0")
    spawn(kvm_zap_gfn_range, kvm, 0, 512, name="zap-range")


def replace_vs_fault(design: Design) -> None:
    """The host replaces a page, which one vCPU then maps, while another is in a fault on it."""
    kvm = make_vm(design, vcpus=2)
    load_roots(kvm)
    spawn(_fault, kvm.vcpus[0], name="vcpu0")
    spawn(_replace_and_fault, kvm, name="dontneed")


@routine
def _fault(vcpu: KvmVcpu) -> None:
    srcu = srcu_read_lock(vcpu.kvm.srcu)
    kvm_mmu_do_page_fault(vcpu, 0, PFERR_USER_MASK)
    srcu_read_unlock(vcpu.kvm.srcu, srcu)


@routine
def _replace_and_fault(kvm: Kvm) -> None:
    madvise_dontneed(kvm.mm, GUEST_HVA, 1)
    _fault(kvm.vcpus[1])


def write_protect_vs_fault(design: Design) -> None:
    """A page is write-protected while a vCPU faults on it, and makes it writable again."""
    kvm = make_vm(design)
    populate(kvm)
    assert kvm.memslots is not None
    spawn(_write_protect, kvm, kvm.memslots.slots[0], name="walker")
    spawn(_fault, kvm.vcpus[0], name="vcpu0")


@routine
def _write_protect(kvm: Kvm, slot: KvmMemorySlot) -> None:
    read_lock(kvm.mmu_lock)
    kvm_tdp_mmu_wrprot_slot(kvm, slot)
    read_unlock(kvm.mmu_lock)


def invalidate_alone(design: Design) -> None:
    """All roots are invalidated and zapped atomically."""
    kvm = make_vm(design)
    populate(kvm)
    spawn(set_nx_huge_pages, name="nx")


def zap_vs_careless(design: Design) -> None:
    """A root is zapped atomically, and somebody else writes its entry without looking."""
    kvm = make_vm(design)
    populate(kvm)
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    spawn(set_nx_huge_pages, name="nx")
    spawn(_write, kvm, root, name="careless")


@routine
def _write(kvm: Kvm, root: KvmMmuPage) -> None:
    read_lock(kvm.mmu_lock)
    write_spte(kvm, root, root, 0, 4, kvm.design.shadow_nonpresent_value)
    read_unlock(kvm.mmu_lock)


def fault_vs_invalidation(design: Design) -> None:
    """A vCPU faults while an invalidation is in progress, which ends."""
    _fault_during(design, True)


def fault_vs_endless_invalidation(design: Design) -> None:
    """A vCPU faults while an invalidation is in progress, which never ends."""
    _fault_during(design, False)


def _fault_during(design: Design, ends: bool) -> None:
    kvm = make_vm(design)
    load_roots(kvm)
    spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    spawn(_invalidate, kvm, ends, name="invalidation")


@routine
def _invalidate(kvm: Kvm, ends: bool) -> None:
    write_lock(kvm.mmu_lock)
    kvm_mmu_invalidate_begin(kvm)
    kvm_mmu_invalidate_range_add(kvm, 0, 1)
    write_unlock(kvm.mmu_lock)
    if ends:
        write_lock(kvm.mmu_lock)
        kvm_mmu_invalidate_end(kvm)
        write_unlock(kvm.mmu_lock)


def zap_all(design: Design) -> None:
    """Everything is zapped with mmu_lock held for write."""
    kvm = make_vm(design)
    populate(kvm)
    spawn(kvm_mmu_zap_all, kvm, name="exit")


@routine
def _sleep_and_zap(kvm: Kvm) -> None:
    synchronize_rcu()
    V6_12.kvm_tdp_mmu_zap_all(kvm)


def _forget(kvm: Kvm) -> None:
    pass


SLEEPS = V6_12.derive("sleeps", "Waits for readers with mmu_lock held.", ("none",), kvm_tdp_mmu_zap_all=_sleep_and_zap)
FORGETS = V6_12.derive("forgets", "Leaves everything when the VM goes.", ("none",), kvm_mmu_uninit_tdp_mmu=_forget)
NO_TABLE_FLUSH = OFF_LIST.without("removed-pt-flushes")
