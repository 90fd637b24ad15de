"""Scenarios in which the VM is destroyed while others can still reach it."""

from __future__ import annotations

from dataclasses import replace

from interleaf.hw.platform import EPT
from interleaf.kvm.design import Design
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.mm.unmap import mmput, munmap
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import FAR_GFN, GUEST_HVA, destroy_after, make_vm, populate


@scenario("The VM is destroyed while the host unmaps its memory")
def vm_destroy_vs_unmap(design: Design, *, pages: int = 1) -> None:
    """The last reference on the VM is put while munmap runs, so between the start and the end of its notifier, too.
    Unregistering the notifier must wait for the callbacks, and the VM must cope with a start that has no end.
    """
    kvm = make_vm(design, pages=pages)
    populate(kvm)
    spawn(munmap, kvm.mm, GUEST_HVA, pages, name="munmap")
    destroy_after(kvm)


@scenario("The VM has memory above what the host takes for the largest address, and all is zapped")
def memory_above_maxphyaddr(design: Design) -> None:
    """Under another hypervisor the processor may say that its addresses are narrower than they are. What the guest
    has there must be zapped like everything else.
    """
    kvm = make_vm(design, base_gfn=FAR_GFN, platform=replace(EPT, name="EPT, 36 bits", maxphyaddr=36))
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(FAR_GFN), name="vcpu0")
    nx = spawn(set_nx_huge_pages, name="nx")
    destroy_after(kvm, vcpu, nx)


@scenario("The VM is destroyed while its address space goes away")
def vm_destroy_vs_release(design: Design) -> None:
    """The VM's file is held by another process, which closes it while the VM's own process exits: both zap
    everything and unregister the notifier.
    """
    kvm = make_vm(design)
    populate(kvm)
    spawn(mmput, kvm.mm, name="mm-release")
    destroy_after(kvm)


@scenario("The VM is destroyed while the administrator writes nx_huge_pages")
def vm_destroy_vs_nx_huge_pages(design: Design) -> None:
    """set_nx_huge_pages() goes over all VMs. One that is being destroyed must stay until it is done with it, and must
    not be found any more after that.
    """
    kvm = make_vm(design)
    populate(kvm)
    spawn(set_nx_huge_pages, name="nx")
    destroy_after(kvm)
