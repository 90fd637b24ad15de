"""Scenarios in which a walk over all roots gives mmu_lock up, and finds another world when it goes on."""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_2M, pages_per_entry
from interleaf.kvm.design import Design
from interleaf.kvm.memslots import kvm_delete_memslot
from interleaf.kvm.mmu import kvm_mmu_reload
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import kvm_zap_gfn_range
from interleaf.mm.unmap import munmap
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import FAR_GFN, GUEST_HVA, destroy_after, enter_l2, load_roots, make_vm, populate


@scenario("A walk over the roots yields while they are invalidated and a new one is made")
def yielding_walk_vs_invalidate_and_create(design: Design, *, pages: int = 2) -> None:
    """A range of gfns is zapped in all roots, and the walk gives mmu_lock up in the middle of one. Meanwhile a
    memslot is deleted, so that this root becomes invalid, and a vCPU makes a new one. The walk must neither lose its
    way, nor visit a freed root, nor miss one that was valid all the time.
    """
    kvm = make_vm(design, pages=pages, dummies=1)
    populate(kvm)
    walk = spawn(kvm_zap_gfn_range, kvm, 0, pages, name="zap-range")
    memslot = spawn(kvm_delete_memslot, kvm, 1, name="memslot")
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    destroy_after(kvm, walk, memslot, vcpu)


@scenario("A range is zapped in two roots while the host unmaps a page of it")
def zap_range_vs_unmap_in_two_roots(design: Design) -> None:
    """A range of gfns is zapped, and the walk gives mmu_lock up in the second root, with what it has zapped in the
    first one to be flushed. The notifier of munmap then finds that page not mapped any more, and has nothing to
    flush itself.

    The range goes over the end of the first 512 GiB: the walk may give mmu_lock up in between.
    """
    kvm = make_vm(design, vcpus=2, pages=2, base_gfn=FAR_GFN - 1)
    enter_l2(kvm.vcpus[1])
    kvm_mmu_reload(kvm.vcpus[1])
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(FAR_GFN - 1))
    walk = spawn(kvm_zap_gfn_range, kvm, FAR_GFN - 1, FAR_GFN + 1, name="zap-range")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA, 1, name="munmap")
    destroy_after(kvm, walk, unmap)


@scenario("All that a page table covers is zapped while a vCPU uses the table")
def zap_tables_vs_guest(design: Design, *, pages: int = 2) -> None:
    """A range is zapped that a whole page table covers; kernels up to v5.17 remove the table with it. A vCPU has that
    table in its paging-structure cache, and may read it for as long as its caches are not flushed: the table must not
    be freed before.
    """
    kvm = make_vm(design, pages=pages)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(pages - 1), name="vcpu0")
    walk = spawn(kvm_zap_gfn_range, kvm, 0, pages_per_entry(PG_LEVEL_2M), name="zap-range")
    destroy_after(kvm, walk, vcpu)


@scenario("A range of two pages, of which one is mapped, is zapped while a vCPU faults on the other")
def late_fault_vs_zap_range(design: Design) -> None:
    """The walk gives mmu_lock up behind the page that the vCPU has looked up already, and that must not be mapped from
    this lookup any more.
    """
    kvm = make_vm(design, pages=2)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(1))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    walk = spawn(kvm_zap_gfn_range, kvm, 0, 2, name="zap-range")
    destroy_after(kvm, vcpu, walk)


@scenario("A range is zapped while a vCPU faults on it")
def fault_vs_zap_range(design: Design, *, pages: int = 1) -> None:
    """How a range must be mapped has changed (its memory type, say), and it is zapped. A fault that began before must
    not map it as it was before.
    """
    kvm = make_vm(design, pages=pages)
    load_roots(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], *(read(gfn) for gfn in kvm.named_gfns), name="vcpu0")
    walk = spawn(kvm_zap_gfn_range, kvm, 0, pages, name="zap-range")
    destroy_after(kvm, walk, vcpu)
