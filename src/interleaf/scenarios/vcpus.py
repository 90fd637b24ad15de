"""Scenarios in which vCPUs race with each other."""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmVcpu
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_reset_context
from interleaf.kvm.vcpu import GuestAccess, kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import destroy_after, make_vm, populate


@scenario("vCPUs fault on different pages at the same time", vcpus=2)
def two_vcpus_fault_different_pages(design: Design, *, vcpus: int = 2) -> None:
    """vCPUs start, so they get their first root at the same time, and fault on neighbouring pages: they build the
    same tables on the way, and each must use what the other one has put there first.
    """
    kvm = make_vm(design, vcpus=vcpus, pages=vcpus)
    tasks = [
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[index], write(index), name=f"vcpu{index}") for index in range(vcpus)
    ]
    destroy_after(kvm, *tasks)


@scenario("vCPUs fault on the same page at the same time", vcpus=2)
def two_vcpus_fault_same_page(design: Design, *, vcpus: int = 2) -> None:
    """vCPUs that have a root fault on the same page: one of them maps it, and the other one finds it mapped, or being
    mapped, and goes on.
    """
    kvm = make_vm(design, vcpus=vcpus)
    for vcpu in kvm.vcpus:
        kvm_mmu_reload(vcpu)
    tasks = [spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[index], write(0), name=f"vcpu{index}") for index in range(vcpus)]
    destroy_after(kvm, *tasks)


@scenario("vCPUs put their roots and load new ones again and again")
def unload_reload_storm(design: Design, *, vcpus: int = 2, rounds: int = 1) -> None:
    """vCPUs that share a root reset their MMUs and run again; the first one then writes to memory. A root whose last
    reference is put by one vCPU may be looked up by another one at that moment: it must get a reference in time, or
    make a new root.
    """
    kvm = make_vm(design, vcpus=vcpus)
    populate(kvm)
    tasks = [
        spawn(_storm, vcpu, rounds, (write(0),) if vcpu.index == 0 else (), name=f"vcpu{vcpu.index}")
        for vcpu in kvm.vcpus
    ]
    destroy_after(kvm, *tasks)


def _storm(vcpu: KvmVcpu, rounds: int, accesses: tuple[GuestAccess, ...]) -> None:
    for _ in range(rounds):
        kvm_mmu_reset_context(vcpu)
        kvm_mmu_reload(vcpu)
        kvm_arch_vcpu_ioctl_run(vcpu, *accesses)


@scenario("A vCPU puts its root while the administrator writes nx_huge_pages")
def reset_vs_nx_huge_pages(design: Design) -> None:
    """All roots are invalidated and zapped, and a vCPU puts its reference on its root: before, meanwhile or afterwards.
    One of the two puts the last one; none may be lost, and none put twice.
    """
    kvm = make_vm(design)
    populate(kvm)
    nx = spawn(set_nx_huge_pages, name="nx")
    vcpu = spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")
    destroy_after(kvm, nx, vcpu)
