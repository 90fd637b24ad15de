"""Scenarios in which a walk over all roots gives mmu_lock up, and finds another world when it goes on."""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.memslots import kvm_delete_memslot
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read
from interleaf.kvm.zap import kvm_zap_gfn_range
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import destroy_after, make_vm, populate


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
