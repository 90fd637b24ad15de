"""Scenarios in which userspace asks which pages the guest has written, as it does to migrate a VM."""

from __future__ import annotations

from interleaf.hw.platform import EPT_NO_AD, EPT_PML
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_clear_dirty_log, kvm_get_dirty_log, kvm_vm_set_slot_flags
from interleaf.kvm.dirty_ring import dirty_ring_collect, kvm_vm_ioctl_reset_dirty_pages
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmParams
from interleaf.kvm.memslots import kvm_delete_memslot
from interleaf.kvm.page_track import kvm_write_track_add_gfn
from interleaf.kvm.vcpu import enter_l2, kvm_arch_vcpu_ioctl_run, read, write
from interleaf.mm.unmap import madvise_dontneed
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import GUEST_HVA, destroy_after, make_vm, populate


def _enable(kvm: Kvm) -> None:
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)


def _collect(kvm: Kvm, times: int) -> None:
    for _ in range(times):
        kvm_get_dirty_log(kvm, 0)


@scenario("The dirty log is read while a vCPU writes")
def dirty_log_get_vs_write(design: Design, *, times: int = 2) -> None:
    """Userspace reads the dirty log of a memslot again and again, which protects the pages again, and a vCPU writes
    to a page meanwhile. A write that one reading does not tell of must be told of by the next one.
    """
    kvm = make_vm(design)
    _enable(kvm)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    log = spawn(_collect, kvm, times, name="dirty-log")
    destroy_after(kvm, vcpu, log)


def _enable_and_collect(kvm: Kvm, times: int) -> None:
    _enable(kvm)
    _collect(kvm, times)


@scenario("Dirty logging is enabled while a vCPU writes")
def dirty_log_enable_vs_write(design: Design, *, times: int = 2) -> None:
    """A vCPU writes to a page that it has written to before, through its TLB, while dirty logging is enabled and the
    log is read: once enabling has returned, each write is told of.
    """
    kvm = make_vm(design)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    log = spawn(_enable_and_collect, kvm, times, name="dirty-log")
    destroy_after(kvm, vcpu, log)


@scenario("Dirty logging is enabled while a vCPU writes, and the processor logs the writes")
def dirty_log_pml_vs_write(design: Design, *, times: int = 2) -> None:
    """As dirty-log-enable-vs-write on a processor that notes the pages whose dirty bit it sets (PML): pages are not
    write-protected but made clean, and what the processor has noted comes to the log when the vCPU leaves the guest.
    """
    kvm = make_vm(design, platform=EPT_PML)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    log = spawn(_enable_and_collect, kvm, times, name="dirty-log")
    destroy_after(kvm, vcpu, log)


@scenario("Dirty logging is enabled while a nested guest writes, and the processor logs the writes of others")
def dirty_log_pml_vs_nested_write(design: Design, *, times: int = 2) -> None:
    """As dirty-log-pml-vs-write, but the vCPU is in its guest, whose writes the processor does not note: in this root
    pages must be write-protected.
    """
    kvm = make_vm(design, platform=EPT_PML)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], enter_l2(), write(0))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    log = spawn(_enable_and_collect, kvm, times, name="dirty-log")
    destroy_after(kvm, vcpu, log)


@scenario("Dirty logging is enabled while a vCPU writes, on a processor without A/D bits")
def dirty_log_without_ad_bits(design: Design, *, times: int = 2) -> None:
    """As dirty-log-enable-vs-write on a processor that has no accessed and dirty bits: everything rests on write
    protection.
    """
    kvm = make_vm(design, platform=EPT_NO_AD)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    log = spawn(_enable_and_collect, kvm, times, name="dirty-log")
    destroy_after(kvm, vcpu, log)


@scenario("Writes to a page come to be tracked while a vCPU writes to it, and its dirty pages are logged")
def write_tracking_vs_write(design: Design) -> None:
    """A page is write-protected for the dirty log, so that a fault may make it writable without mmu_lock; from now on
    each write to it must be seen, because it is a page table of the guest that KVM shadows, say.
    """
    kvm = make_vm(design)
    _enable(kvm)
    populate(kvm)
    kvm_get_dirty_log(kvm, 0)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    tracking = spawn(kvm_write_track_add_gfn, kvm, 0, name="write-tracking")
    destroy_after(kvm, vcpu, tracking)


def _get_and_clear(kvm: Kvm, times: int) -> None:
    for _ in range(times):
        kvm_clear_dirty_log(kvm, 0, kvm_get_dirty_log(kvm, 0))
    kvm_get_dirty_log(kvm, 0)


@scenario("The dirty log is read and then cleared while a vCPU writes")
def dirty_log_clear_vs_write(design: Design, *, times: int = 1) -> None:
    """Userspace has chosen to clear the log itself (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE): reading it protects nothing,
    clearing the pages that it has read of does. A write in between is told of by the copy that is made after the
    clearing, a later one by the next reading.
    """
    kvm = make_vm(design, params=KvmParams(manual_protect=True))
    _enable(kvm)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    log = spawn(_get_and_clear, kvm, times, name="dirty-log")
    destroy_after(kvm, vcpu, log)


def _reset(kvm: Kvm, times: int) -> None:
    for _ in range(times):
        for vcpu in kvm.vcpus:
            dirty_ring_collect(vcpu)
        kvm_vm_ioctl_reset_dirty_pages(kvm)


@scenario("The dirty ring is reset while a vCPU writes")
def dirty_ring_reset_vs_write(design: Design, *, times: int = 2) -> None:
    """Dirty pages are logged in a ring of the vCPU, from which userspace takes them; resetting the ring protects them
    again.
    """
    kvm = make_vm(design, params=KvmParams(dirty_ring_size=4))
    _enable(kvm)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), write(0), name="vcpu0")
    log = spawn(_reset, kvm, times, name="dirty-ring")
    destroy_after(kvm, vcpu, log)


@scenario("Dirty logging is enabled for a huge page while a vCPU writes to it")
def dirty_log_enable_vs_huge_page(design: Design, *, pages: int = 2) -> None:
    """A huge page is split when dirty logging begins, so that the log tells of 4 KiB pages, while a vCPU uses it: each
    must find the table that the other one puts there, and no write may be lost.
    """
    kvm = make_vm(design, pages=pages, huge=True)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(pages - 1), name="vcpu0")
    log = spawn(_enable_and_collect, kvm, 1, name="dirty-log")
    destroy_after(kvm, vcpu, log)


@scenario("Dirty logging is disabled, and small pages become a huge one, while vCPUs use them")
def dirty_log_disable_vs_fault(design: Design, *, vcpus: int = 2) -> None:
    """When dirty logging ends, the small pages that it needed are mapped by a huge one again: their table is zapped, or
    replaced in place, while vCPUs use what it maps, and fault on what it does not map yet.
    """
    kvm = make_vm(design, vcpus=vcpus, pages=2, huge=True)
    _enable(kvm)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
    tasks = [
        spawn(kvm_arch_vcpu_ioctl_run, vcpu, write(0) if vcpu.index else read(1), name=f"vcpu{vcpu.index}")
        for vcpu in kvm.vcpus
    ]
    log = spawn(kvm_vm_set_slot_flags, kvm, 0, 0, name="dirty-log")
    destroy_after(kvm, *tasks, log)


@scenario("The dirty log is read while the host replaces the page")
def dirty_log_get_vs_dontneed(design: Design) -> None:
    """The dirty log of a memslot is read while MADV_DONTNEED takes the page away: the protection must not bring a
    mapping back that the notifier has zapped.
    """
    kvm = make_vm(design)
    _enable(kvm)
    populate(kvm)
    log = spawn(kvm_get_dirty_log, kvm, 0, name="dirty-log")
    dontneed = spawn(madvise_dontneed, kvm.mm, GUEST_HVA, 1, name="dontneed")
    destroy_after(kvm, log, dontneed)


@scenario("Dirty logging is enabled while another memslot is deleted")
def dirty_log_enable_vs_memslot_delete(design: Design) -> None:
    """Enabling walks the roots with mmu_lock held for read, and a vCPU makes new ones after the deletion of another
    memslot has invalidated the old: what is mapped in these must be protected, too, or be mapped read-only.
    """
    kvm = make_vm(design, dummies=1)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    log = spawn(_enable_and_collect, kvm, 1, name="dirty-log")
    memslot = spawn(kvm_delete_memslot, kvm, 1, name="memslot")
    destroy_after(kvm, vcpu, log, memslot)
