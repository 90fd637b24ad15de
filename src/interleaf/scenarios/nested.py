"""Scenarios of nested guests whose hypervisor has tables for them, for which KVM keeps shadow pages."""

from __future__ import annotations

from interleaf.hw.platform import EPT_5_LEVEL, NPT
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmParams
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_unload
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.mm.unmap import munmap
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import GUEST_HVA, destroy_after, enter_nested, load_roots, make_vm


@scenario("vCPUs fault while as many shadow pages are used as may be", vcpus=2)
def faults_at_shadow_page_quota(design: Design, *, vcpus: int = 2) -> None:
    """A nested guest has used its shadow pages up. Other vCPUs, whose faults the TDP MMU handles with mmu_lock held for
    read, need none: if they recycled some nevertheless, they would do so at the same time.
    """
    kvm = make_vm(design, vcpus=1 + vcpus, pages=2, platform=NPT, params=KvmParams(n_max_mmu_pages=6))
    enter_nested(kvm.vcpus[-1], 3)
    for vcpu in (kvm.vcpus[0], kvm.vcpus[-1]):
        kvm_arch_vcpu_ioctl_run(vcpu, write(1))
    load_roots(kvm)
    tasks = [spawn(kvm_arch_vcpu_ioctl_run, vcpu, read(0), name=f"vcpu{vcpu.index}") for vcpu in kvm.vcpus[:-1]]
    destroy_after(kvm, *tasks)


@scenario("A nested guest faults, and its own root is recycled for that")
def nested_fault_recycles_root(design: Design) -> None:
    """The tables of one nested guest are a part of those of another one, with five levels, which is not run any more.
    When that one's root is recycled, because as many shadow pages are used as may be, so is what it alone leads to: the
    root of the first, for which the fault is.
    """
    kvm = make_vm(design, vcpus=2, pages=2, platform=EPT_5_LEVEL, params=KvmParams(n_max_mmu_pages=9))
    enter_nested(kvm.vcpus[0], 4)
    enter_nested(kvm.vcpus[1], 5)
    kvm_mmu_reload(kvm.vcpus[0])
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[1], read(0))
    kvm_mmu_unload(kvm.vcpus[1])
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(1), name="vcpu0")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA + 1, 1, name="munmap")
    destroy_after(kvm, vcpu, unmap)


@scenario("The guest of a 32-bit hypervisor faults while all roots are invalidated")
def nested_pae_fault_vs_nx_huge_pages(design: Design) -> None:
    """The root for the guest of a 32-bit hypervisor is no shadow page, and does not say whether it is invalid: a fault
    must not look for that there, and must not map anything in what an invalidation has left of it.
    """
    kvm = make_vm(design, platform=NPT)
    enter_nested(kvm.vcpus[0], 3)
    load_roots(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    nx = spawn(set_nx_huge_pages, name="nx")
    destroy_after(kvm, vcpu, nx)
