"""Scenarios in which the host takes pages back, and KVM hears of it through its MMU notifier."""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_1G, pages_per_entry
from interleaf.kvm.design import Design
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_reset_context
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.mm.unmap import madvise_dontneed, mmput, munmap
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import FAR_GFN, GUEST_HVA, destroy_after, enter_l2, make_vm, populate


@scenario("The host unmaps a page while a vCPU faults on it")
def fault_vs_unmap(design: Design, *, pages: int = 1) -> None:
    """A vCPU faults on a page that munmap takes away. The fault looks the page up before it takes mmu_lock, so the
    notifier may run in between: then the fault must notice it and start again, or it maps a page that is freed.
    """
    kvm = make_vm(design, pages=pages)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA, pages, name="munmap")
    destroy_after(kvm, vcpu, unmap)


@scenario("The host replaces a page while a vCPU uses it")
def access_vs_dontneed(design: Design) -> None:
    """A vCPU reads and writes a page that MADV_DONTNEED gives back. Its next fault brings another page: the SPTE
    goes from one pfn to another, with a zap and a flush of all TLBs in between, or the vCPU goes on with the old
    page.
    """
    kvm = make_vm(design)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), write(0), name="vcpu0")
    dontneed = spawn(madvise_dontneed, kvm.mm, GUEST_HVA, 1, name="dontneed")
    destroy_after(kvm, vcpu, dontneed)


@scenario("The last reference on a root is put while the host unmaps a page")
def last_put_vs_unmap(design: Design, *, pages: int = 2) -> None:
    """A vCPU resets its MMU (the guest has changed CR0, say) and puts the only vCPU's reference on the root. If that
    tears the root down, with mmu_lock given up now and then, the root must be visible to the notifier of munmap
    until nothing is mapped in it. And the notifier may give mmu_lock up between two pages: the root in which it
    stands must not go away meanwhile. No memslot is involved.

    The pages are at 512 GiB, in the second entry of the root, before which the tear-down may give mmu_lock up.
    """
    kvm = make_vm(design, pages=pages, base_gfn=FAR_GFN)
    populate(kvm)
    vcpu = spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA, pages, name="munmap")
    destroy_after(kvm, vcpu, unmap)


@scenario("The last reference on a root with memory on both sides of 1 GiB is put while the host unmaps a page")
def last_put_beyond_1g_vs_unmap(design: Design) -> None:
    """As last-put-vs-unmap, but the two pages are the last one below 1 GiB and the first one above it, in one entry of
    the root. Whoever tears the root down holds mmu_lock meanwhile, and must offer to give it up between the two: there
    could be 512 GiB in that entry, and more in others.
    """
    kvm = make_vm(design, pages=2, base_gfn=pages_per_entry(PG_LEVEL_1G) - 1)
    populate(kvm)
    vcpu = spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA, 1, name="munmap")
    destroy_after(kvm, vcpu, unmap)


@scenario("The host unmaps a page that one of two roots maps while a vCPU uses it")
def unmap_in_two_roots(design: Design) -> None:
    """Two vCPUs have roots of different roles (one of them runs a nested guest), and only one has the page mapped. The
    notifier walks both roots, the newest first, and what it has zapped there must be flushed although there is nothing
    to zap in the other one.
    """
    kvm = make_vm(design, vcpus=2)
    enter_l2(kvm.vcpus[1])
    kvm_mmu_reload(kvm.vcpus[1])
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA, 1, name="munmap")
    destroy_after(kvm, vcpu, unmap)


@scenario("The administrator writes nx_huge_pages while the process exits")
def nx_huge_pages_vs_release(design: Design, *, pages: int = 1) -> None:
    """set_nx_huge_pages() invalidates and zaps the roots of every VM without holding on to its address space. When
    the last thread of the process exits meanwhile, the release notifier must leave nothing mapped, wherever the
    other zap stands: all pages are freed when it returns.
    """
    kvm = make_vm(design, pages=pages)
    populate(kvm)
    nx = spawn(set_nx_huge_pages, name="nx")
    release = spawn(mmput, kvm.mm, name="mm-release")
    destroy_after(kvm, nx, release)
