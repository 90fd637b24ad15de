"""Scenarios in which a vCPU changes its mode, is prefaulted for, or has met many invalidations before."""

from __future__ import annotations

from interleaf.hw.access import PFERR_WRITE_MASK
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmParams, KvmVcpu
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot
from interleaf.kvm.page_fault import kvm_mmu_do_page_fault
from interleaf.kvm.prefault import kvm_vcpu_pre_fault_memory
from interleaf.kvm.trace import trace_kvm_page_fault
from interleaf.kvm.vcpu import enter_l2, exit_l2, kvm_arch_vcpu_ioctl_run, read, toggle_cr0_wp, write
from interleaf.kvm.zap import kvm_zap_gfn_range, set_nx_huge_pages
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.mm.mm import mmap
from interleaf.mm.unmap import madvise_dontneed, munmap
from interleaf.runtime import routine, spawn

from .scenario import scenario
from .stage import DUMMY_GFN, DUMMY_HVA, GUEST_HVA, destroy_after, load_roots, make_vm, populate


@scenario("A vCPU enters and leaves its guest while all roots are invalidated")
def nested_switch_vs_nx_huge_pages(design: Design) -> None:
    """A vCPU that runs a nested guest keeps the root that it leaves, with a reference, to come back to. When all roots
    are invalidated, it must give those that it keeps back, too, and never come back to one.
    """
    kvm = make_vm(design)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0), enter_l2(), write(0))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], exit_l2(), read(0), name="vcpu0")
    nx = spawn(set_nx_huge_pages, name="nx")
    destroy_after(kvm, vcpu, nx)


@scenario("A vCPU in its guest uses a page that the host unmaps")
def nested_switch_vs_unmap(design: Design) -> None:
    """A page is mapped in the root of a vCPU and in that of its nested guest, between which it goes to and fro: the
    notifier must find both.
    """
    kvm = make_vm(design)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0), enter_l2(), write(0))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), exit_l2(), write(0), name="vcpu0")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA, 1, name="munmap")
    destroy_after(kvm, vcpu, unmap)


@scenario("vCPUs reset their MMUs while the host takes half of their memory")
def max_guest_memory(design: Design) -> None:
    """All memory is mapped; the guest toggles CR0.WP, which makes some kernels put the root and tear everything down;
    it writes everything again, while the host unmaps a part.
    """
    kvm = make_vm(design, pages=2)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], toggle_cr0_wp(), write(0), write(1), name="vcpu0")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA + 1, 1, name="munmap")
    destroy_after(kvm, vcpu, unmap)


def _prefault(vcpu: KvmVcpu) -> None:
    kvm_vcpu_pre_fault_memory(vcpu, 0, 1)


def _invalidate_and_prefault(vcpu: KvmVcpu) -> None:
    set_nx_huge_pages()
    _prefault(vcpu)


@scenario("Memory is prefaulted for a vCPU whose root is obsolete, while the host unmaps a part")
def prefault_with_obsolete_root(design: Design) -> None:
    """KVM_PRE_FAULT_MEMORY maps a range for a vCPU that is not in KVM_RUN, and so does not take requests: its root has
    become invalid since it last ran, and it must get another one all the same. Kernels without that call do nothing.
    """
    kvm = make_vm(design)
    load_roots(kvm)
    vcpu = spawn(_invalidate_and_prefault, kvm.vcpus[0], name="vcpu0")
    unmap = spawn(madvise_dontneed, kvm.mm, GUEST_HVA, 1, name="dontneed")
    destroy_after(kvm, vcpu, unmap)


@scenario("Memory is prefaulted while its memslot is deleted")
def prefault_vs_memslot_delete(design: Design) -> None:
    """The prefault meets the memslot while it is marked invalid. The deletion, which leaves the roots as they are,
    waits until nobody reads the old memslots: if the prefault waited for the deletion, both would wait for ever.
    """
    kvm = make_vm(design, params=KvmParams(slot_zap_all=False))
    load_roots(kvm)
    vcpu = spawn(_prefault, kvm.vcpus[0], name="vcpu0")
    memslot = spawn(kvm_delete_memslot, kvm, 0, name="memslot")
    destroy_after(kvm, vcpu, memslot)


@scenario("A memslot comes to be where a vCPU does MMIO")
def mmio_vs_memslot_create(design: Design) -> None:
    """A vCPU accesses a gfn without memory, which KVM remembers in an SPTE, while a memslot is created there: when that
    has returned, each access is one to the memory.
    """
    kvm = make_vm(design, spare_gfns=1)
    mmap(kvm.mm, DUMMY_HVA, 1)
    load_roots(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(1), write(1), name="vcpu0")
    memslot = spawn(kvm_create_memslot, kvm, 1, 1, 1, DUMMY_HVA, name="memslot")
    destroy_after(kvm, vcpu, memslot)


def _create_two(kvm: Kvm) -> None:
    kvm_create_memslot(kvm, 1, 1, 1, DUMMY_HVA)
    kvm_create_memslot(kvm, 2, DUMMY_GFN, 1, DUMMY_HVA)


@scenario("So many memslots are created that their generation is one that it was before, while a vCPU does MMIO")
def mmio_vs_many_memslots(design: Design) -> None:
    """The entry for a gfn without memory keeps a part of the generation of the memslots, which comes again after many
    changes (the model keeps fewer bits): it must not count again when the gfn has memory by then.
    """
    kvm = make_vm(design, spare_gfns=1, params=KvmParams(mmio_gen_bits=2))
    mmap(kvm.mm, DUMMY_HVA, 1)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(1))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(1), name="vcpu0")
    memslots = spawn(_create_two, kvm, name="memslots")
    destroy_after(kvm, vcpu, memslots)


def _delete_and_unmap(kvm: Kvm) -> None:
    kvm_delete_memslot(kvm, 0)
    munmap(kvm.mm, GUEST_HVA, 1)


@routine
def _handle_fault(vcpu: KvmVcpu) -> None:
    """The vCPU has left the guest because gfn 0 was not mapped, but it is by now."""
    trace_kvm_page_fault(vcpu.index, 0, PFERR_WRITE_MASK)
    srcu = srcu_read_lock(vcpu.kvm.srcu)
    kvm_mmu_do_page_fault(vcpu, 0, PFERR_WRITE_MASK)
    srcu_read_unlock(vcpu.kvm.srcu, srcu)


@scenario("A vCPU handles a fault that another one was quicker to handle while the memslot is deleted")
def late_fault_vs_memslot_delete(design: Design) -> None:
    """One vCPU has mapped a page and uses it. Another one has faulted on it, too, when its memslot is marked invalid:
    the access is neither to memory nor MMIO then, and the SPTE is to be zapped, and flushed, by the deletion alone.
    """
    kvm = make_vm(design, vcpus=2, params=KvmParams(slot_zap_all=False))
    populate(kvm)
    first = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    second = spawn(_handle_fault, kvm.vcpus[1], name="vcpu1")
    memslot = spawn(_delete_and_unmap, kvm, name="memslot")
    destroy_after(kvm, first, second, memslot)


@scenario("A vCPU faults after so many invalidations that their number does not fit into an int")
def fault_after_many_invalidations(design: Design) -> None:
    """The number of invalidations, which a fault compares with what it was before, has become as large as it gets in a
    VM that runs for months (the model counts with fewer bits).
    """
    kvm = make_vm(design, params=KvmParams(mmu_seq_bits=4))
    for _ in range(2):
        kvm_zap_gfn_range(kvm, 0, 1)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    walk = spawn(kvm_zap_gfn_range, kvm, 0, 1, name="zap-range")
    destroy_after(kvm, vcpu, walk)
