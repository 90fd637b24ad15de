"""Scenarios of huge pages: mapped, split for execution or for dirty logging, and put together again."""

from __future__ import annotations

from interleaf.kvm.attributes import KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_vm_set_mem_attributes
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_vm_set_slot_flags
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmModule, KvmParams
from interleaf.kvm.nx_recovery import kvm_recover_nx_huge_pages
from interleaf.kvm.page_track import kvm_write_track_add_gfn, kvm_write_track_remove_gfn
from interleaf.kvm.vcpu import execute, kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import kvm_zap_gfn_range
from interleaf.mm.unmap import madvise_dontneed
from interleaf.runtime import spawn, the

from .scenario import scenario
from .stage import HUGE_HVA, destroy_after, load_roots, make_vm


def _nx_vm(design: Design) -> Kvm:
    """A VM with a huge page that must not be executable as such."""
    kvm = make_vm(design, pages=2, huge=True)
    the(KvmModule).nx_huge_pages = True
    return kvm


@scenario("A split huge page is recovered while vCPUs use it")
def nx_recovery_vs_fault(design: Design) -> None:
    """The table that was made for execution is zapped, to map the huge page again. Vcpus have it in their caches, and
    fault below it: it must not be freed before the former are flushed, nor filled again by the latter.
    """
    kvm = _nx_vm(design)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], execute(0))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(1), execute(0), name="vcpu0")
    nx = spawn(kvm_recover_nx_huge_pages, kvm, name="nx-recovery")
    destroy_after(kvm, vcpu, nx)


@scenario("A split huge page is recovered while the host unmaps the memory")
def nx_recovery_vs_dontneed(design: Design) -> None:
    """Both zap the same SPTEs: the recovery from the table upwards, the notifier from the root down."""
    kvm = _nx_vm(design)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], execute(0))
    nx = spawn(kvm_recover_nx_huge_pages, kvm, name="nx-recovery")
    dontneed = spawn(madvise_dontneed, kvm.mm, HUGE_HVA, 1, name="dontneed")
    destroy_after(kvm, nx, dontneed)


def _stop_logging_and_recover(kvm: Kvm) -> None:
    kvm_vm_set_slot_flags(kvm, 0, 0)
    kvm_recover_nx_huge_pages(kvm)


@scenario("A page is executed for the first time when dirty logging ends, and then recovered")
def execute_vs_dirty_log_disable(design: Design) -> None:
    """A fault makes a table for execution, while the end of dirty logging puts huge pages in the place of tables with
    mmu_lock held for read: it may remove the table before the fault has put it on the list of those to recover.
    """
    kvm = _nx_vm(design)
    load_roots(kvm)
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    log = spawn(_stop_logging_and_recover, kvm, name="dirty-log")
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], execute(0), name="vcpu0")
    destroy_after(kvm, log, vcpu)


@scenario("A fault goes down to a table that is removed under its feet")
def fault_below_dirty_log_disable(design: Design) -> None:
    """A fault is on its way through the tables when the end of dirty logging replaces one of them. It must not map a
    small page in the place of a table.
    """
    kvm = _nx_vm(design)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    kvm_zap_gfn_range(kvm, 1, 2)
    log = spawn(kvm_vm_set_slot_flags, kvm, 0, 0, name="dirty-log")
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], execute(1), name="vcpu0")
    destroy_after(kvm, log, vcpu)


@scenario("A fault maps a huge page in the place of a table that another vCPU uses")
def huge_page_replaces_table(design: Design, *, vcpus: int = 2) -> None:
    """Writes to a page were tracked, so that it could not be part of a huge page. They are not any more, and the next
    fault maps the huge page, where a table of small pages is that another vCPU may have cached.
    """
    kvm = make_vm(design, vcpus=vcpus, pages=2, huge=True)
    kvm_write_track_add_gfn(kvm, 0)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
    kvm_write_track_remove_gfn(kvm, 0)
    tasks = [spawn(kvm_arch_vcpu_ioctl_run, vcpu, read(1), name=f"vcpu{vcpu.index}") for vcpu in kvm.vcpus]
    destroy_after(kvm, *tasks)


@scenario("A page becomes private while a vCPU faults on its neighbour")
def private_conversion_vs_fault(design: Design) -> None:
    """Userspace makes one page of a huge page private to the guest. A fault on another one must not map the huge page,
    which covers both, by what was true before.
    """
    kvm = make_vm(design, pages=2, huge=True, params=KvmParams(private_mem=True))
    load_roots(kvm)
    convert = spawn(kvm_vm_set_mem_attributes, kvm, 1, 2, KVM_MEMORY_ATTRIBUTE_PRIVATE, name="attributes")
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), read(1), name="vcpu0")
    destroy_after(kvm, convert, vcpu)
