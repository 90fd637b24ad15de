"""Scenarios in which the host does to guest memory what it does to any memory: moves, shares, reclaims, ages it."""

from __future__ import annotations

from interleaf.hw.platform import EPT, EPT_NO_AD, EPT_PML, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_get_dirty_log, kvm_vm_set_slot_flags
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.mm.fork import fork
from interleaf.mm.ksm import try_to_merge_two_pages
from interleaf.mm.migrate import migrate_page
from interleaf.mm.mm import Mm
from interleaf.mm.vmscan import madvise_pageout, page_idle_clear_pte_refs, shrink_list
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import GUEST_HVA, destroy_after, make_vm, populate


def _clean_page(design: Design, *, pages: int = 1, platform: Platform = EPT) -> Kvm:
    """A VM whose first page has been on the swap, and is mapped for reading: it is clean."""
    kvm = make_vm(design, pages=pages, platform=platform)
    madvise_pageout(kvm.mm, GUEST_HVA, 1)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], *(read(gfn) for gfn in range(pages)))
    return kvm


@scenario("The host migrates a page while a vCPU writes to it")
def write_vs_migrate(design: Design) -> None:
    """The contents of a page are copied to another one, to which the guest's memory is mapped then. What a vCPU writes
    must get into the copy: while the page is copied nothing maps it.
    """
    kvm = _clean_page(design)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    host = spawn(migrate_page, kvm.mm, GUEST_HVA, name="migrate")
    destroy_after(kvm, vcpu, host)


@scenario("The host merges two equal pages while a vCPU writes to one")
def write_vs_merge(design: Design) -> None:
    """KSM makes two pages read-only, compares them, and makes them one. Old kernels tell KVM of the new PTE
    (change_pte) instead of leaving the page to the next fault.
    """
    kvm = _clean_page(design, pages=2)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    host = spawn(try_to_merge_two_pages, kvm.mm, GUEST_HVA, GUEST_HVA + 1, name="ksm")
    destroy_after(kvm, vcpu, host)


@scenario("The process forks while a vCPU writes")
def write_vs_fork(design: Design) -> None:
    """All memory of the process becomes read-only, to be copied when somebody writes: the vCPU, too, may write to a
    page only after it has got one of its own.
    """
    kvm = _clean_page(design)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    host = spawn(fork, kvm.mm, name="fork")
    destroy_after(kvm, vcpu, host)


@scenario("The host reclaims a page while a vCPU writes to it")
def write_vs_reclaim(design: Design) -> None:
    """A page goes to the swap, if it is dirty, or is just dropped if it is clean. Whether it is dirty is known only
    when nothing maps it any more: a write that comes to the host's knowledge later is lost.
    """
    kvm = _clean_page(design)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    host = spawn(madvise_pageout, kvm.mm, GUEST_HVA, 1, name="reclaim")
    destroy_after(kvm, vcpu, host)


def _age_and_shrink(mm: Mm) -> None:
    page_idle_clear_pte_refs(mm, GUEST_HVA)
    shrink_list(mm, GUEST_HVA, 1)


@scenario("The host ages a page and reclaims it while a vCPU writes to it")
def write_vs_aging(design: Design) -> None:
    """The accessed bit of an SPTE is cleared to see whether the page is used, and then the page is reclaimed if it is
    not. Clearing one bit must not lose the dirty bit that the processor sets beside it.
    """
    kvm = _clean_page(design)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    host = spawn(_age_and_shrink, kvm.mm, name="reclaim")
    destroy_after(kvm, vcpu, host)


@scenario("The host ages a page and reclaims it, on a processor without A/D bits")
def write_vs_aging_without_ad_bits(design: Design) -> None:
    """As write-vs-aging where an SPTE has no accessed bit: it is made to fault (it is access-tracked) without a flush,
    and the fault that makes it usable again is handled without mmu_lock.
    """
    kvm = _clean_page(design, platform=EPT_NO_AD)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    host = spawn(_age_and_shrink, kvm.mm, name="reclaim")
    destroy_after(kvm, vcpu, host)


def _enable_and_collect(kvm: Kvm) -> None:
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    kvm_get_dirty_log(kvm, 0)
    kvm_get_dirty_log(kvm, 0)


@scenario("Dirty logging is enabled after a page has been aged, on a processor without A/D bits")
def dirty_log_enable_vs_aging(design: Design) -> None:
    """Aging makes SPTEs unusable without a flush, and a vCPU goes on writing through its TLB. Enabling dirty logging
    then finds nothing writable; still it must see to it that each later write is told of.
    """
    kvm = make_vm(design, platform=EPT_NO_AD)
    populate(kvm)
    host = spawn(page_idle_clear_pte_refs, kvm.mm, GUEST_HVA, name="aging")
    log = spawn(_enable_and_collect, kvm, name="dirty-log")
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    destroy_after(kvm, host, log, vcpu)


@scenario("A page is aged while a vCPU writes to it, and the processor logs the writes")
def write_vs_aging_with_pml(design: Design) -> None:
    """Dirty logging has made the page clean, and the processor sets its dirty bit, while the host clears the accessed
    bit of the same SPTE: the one must not be lost by the other.
    """
    kvm = make_vm(design, platform=EPT_PML)
    populate(kvm)
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    host = spawn(page_idle_clear_pte_refs, kvm.mm, GUEST_HVA, name="aging")
    destroy_after(kvm, vcpu, host)
