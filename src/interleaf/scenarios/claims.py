"""Scenarios that decide what a patch says about itself: as small as shows it, and not in the matrix.

Each is one event of the patch "Take TDP MMU roots off list when invalidating all roots" beside one or two others. The
VM is not destroyed in the end: what is left of it is the business of other scenarios.
"""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot
from interleaf.kvm.memslots import kvm_delete_memslot
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_reset_context
from interleaf.kvm.tdp.wrprot import kvm_tdp_mmu_wrprot_slot
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.runtime import routine, spawn

from .scenario import scenario
from .stage import FAR_GFN, make_vm, populate


@routine
def _write_protect(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Dirty logging begins: a walk over the valid roots with mmu_lock held for read."""
    read_lock(kvm.mmu_lock)
    kvm_tdp_mmu_wrprot_slot(kvm, slot)
    read_unlock(kvm.mmu_lock)


def _slot(kvm: Kvm) -> KvmMemorySlot:
    """Memslot 0, in the set-up."""
    assert kvm.memslots is not None
    return kvm.memslots.slots[0]


@scenario("Two walks over the roots while the last vCPU's reference on one is put")
def walks_vs_last_put(design: Design, *, pages: int = 2) -> None:
    """Two walks with mmu_lock held for read hold references on the root in turn, and the vCPU puts its own. Whoever
    puts the last one takes the root off the list while another walk may be looking for the root behind it.
    """
    kvm = make_vm(design, pages=pages)
    populate(kvm)
    for name in ("walker", "walker2"):
        spawn(_write_protect, kvm, _slot(kvm), name=name)
    spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")


@scenario("All roots are invalidated while a vCPU puts its reference")
def invalidate_vs_put(design: Design) -> None:
    """The administrator's write to nx_huge_pages invalidates and zaps the root, and a vCPU puts its reference on it:
    before, meanwhile or afterwards. One of them puts the last one.
    """
    kvm = make_vm(design)
    populate(kvm)
    spawn(set_nx_huge_pages, name="nx")
    spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")


@scenario("All roots are invalidated while a vCPU puts its reference on one with memory far up")
def invalidate_vs_put_far(design: Design) -> None:
    """As invalidate-vs-put, with the page at 512 GiB: the zap may give mmu_lock up before the only entry of the root
    that there is, and a root that is being put may be waited for, or not.
    """
    kvm = make_vm(design, base_gfn=FAR_GFN)
    populate(kvm)
    spawn(set_nx_huge_pages, name="nx")
    spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")


@scenario("All roots are invalidated while a walk over them yields")
def invalidate_vs_walk(design: Design, *, pages: int = 2) -> None:
    """A walk with mmu_lock held for read gives it up in the middle of a root, which is invalidated meanwhile."""
    kvm = make_vm(design, pages=pages)
    populate(kvm)
    spawn(set_nx_huge_pages, name="nx")
    spawn(_write_protect, kvm, _slot(kvm), name="walker")


@scenario("All roots are invalidated and a new one is made while a walk over them yields")
def invalidate_vs_walk_and_create(design: Design, *, pages: int = 2) -> None:
    """A walk with mmu_lock held for read gives it up in the middle of a root, which is invalidated meanwhile; another
    vCPU makes a new one, which the walk may find when it starts again.
    """
    kvm = make_vm(design, vcpus=2, pages=pages)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], *(write(gfn) for gfn in kvm.named_gfns))
    spawn(set_nx_huge_pages, name="nx")
    spawn(_write_protect, kvm, _slot(kvm), name="walker")
    spawn(kvm_mmu_reload, kvm.vcpus[1], name="vcpu1")


@scenario("Two vCPUs make their first root during a walk over the roots")
def create_vs_walk(design: Design) -> None:
    """Two vCPUs start at the same time and get their first root, which they share, while a walk looks for roots."""
    kvm = make_vm(design, vcpus=2)
    for index, vcpu in enumerate(kvm.vcpus):
        spawn(kvm_mmu_reload, vcpu, name=f"vcpu{index}")
    spawn(_write_protect, kvm, _slot(kvm), name="walker")


@scenario("All roots are invalidated by two tasks at once")
def invalidate_vs_invalidate(design: Design) -> None:
    """A memslot is deleted while the administrator writes nx_huge_pages: both invalidate all roots and zap them."""
    kvm = make_vm(design, dummies=1)
    populate(kvm)
    spawn(set_nx_huge_pages, name="nx")
    spawn(kvm_delete_memslot, kvm, 1, name="memslot")


@scenario("All roots are invalidated while a vCPU is in the guest")
def invalidate_vs_guest(design: Design) -> None:
    """A vCPU whose TLB and paging-structure cache are filled goes on using its memory while its root is invalidated,
    zapped and freed. It must leave the guest in time, and must not use what it has cached afterwards.
    """
    kvm = make_vm(design)
    populate(kvm)
    spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), read(0), name="vcpu0")
    spawn(set_nx_huge_pages, name="nx")
