"""Scenarios in which a memslot is deleted, and with it (in most designs) every root invalidated."""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmParams, KvmVcpu
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot, kvm_move_memslot
from interleaf.kvm.mmu import kvm_mmu_reset_context
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.mm.mm import mmap
from interleaf.mm.unmap import munmap
from interleaf.runtime import spawn

from .scenario import scenario
from .stage import DUMMY_GFN, DUMMY_HVA, FAR_GFN, GUEST_HVA, destroy_after, load_roots, make_vm, populate


@scenario("A memslot is deleted while the host unmaps its memory")
def memslot_delete_vs_unmap(design: Design, *, pages: int = 1) -> None:
    """A memslot is deleted, which invalidates the roots and zaps them with mmu_lock given up now and then. Meanwhile
    munmap takes the same pages away, and its MMU notifier finds the memslot, but must also find the SPTEs that are
    still there under invalid roots: when it returns, the pages are freed, and whoever zaps such an SPTE afterwards
    writes dirty and accessed state to a page that is not KVM's any more.

    This is what ended "Take TDP MMU roots off list when invalidating all roots" (14 Dec 2021).
    """
    kvm = make_vm(design, pages=pages)
    populate(kvm)
    memslot = spawn(kvm_delete_memslot, kvm, 0, name="memslot")
    unmap = spawn(munmap, kvm.mm, GUEST_HVA, pages, name="munmap")
    destroy_after(kvm, memslot, unmap)


@scenario("A vCPU faults on a memslot that is being deleted, and whose memory is unmapped then")
def fault_vs_memslot_delete(design: Design, *, pages: int = 1) -> None:
    """A vCPU faults on memory whose memslot is deleted at the same time. Until the slot is marked invalid the fault
    may map the page, and the zap must find what it has mapped; from then on it must retry; when the slot is gone,
    the access is MMIO. The memory is unmapped from the host at last: a mapping that was missed is out of the reach
    of its MMU notifier, because there is no memslot any more.
    """
    kvm = make_vm(design, pages=pages)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], *(write(gfn) for gfn in kvm.named_gfns), name="vcpu0")
    memslot = spawn(_delete_and_unmap, kvm, pages, name="memslot")
    destroy_after(kvm, vcpu, memslot)


def _delete_and_unmap(kvm: Kvm, pages: int) -> None:
    kvm_delete_memslot(kvm, 0)
    munmap(kvm.mm, GUEST_HVA, pages)


@scenario("A vCPU faults while another memslot is deleted")
def fault_vs_other_memslot_delete(design: Design, *, pages: int = 1) -> None:
    """A vCPU that has its root faults on memslot 0 while memslot 1 is deleted. Nothing but the check for a stale
    root keeps the fault from mapping the page in a root that has been invalidated, and maybe zapped, in between.
    """
    kvm = make_vm(design, pages=pages, dummies=1)
    load_roots(kvm)
    accesses = tuple(read(gfn) for gfn in kvm.named_gfns)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], *accesses, name="vcpu0")
    memslot = spawn(kvm_delete_memslot, kvm, 1, name="memslot")
    destroy_after(kvm, vcpu, memslot)


@scenario("A vCPU puts the root that it has just made while another memslot is deleted")
def reset_vs_other_memslot_delete(design: Design) -> None:
    """A memslot is deleted, and while the roots that were there are zapped a vCPU makes a new one, maps a page in it,
    and puts it again (the guest has changed CR0, say). If the last put makes a root invalid, whoever zaps the
    invalidated roots meets one that it has not invalidated, and has no reference on.

    The page is at 512 GiB, so that the zap of a root may give mmu_lock up before it.
    """
    kvm = make_vm(design, dummies=1, base_gfn=FAR_GFN)
    populate(kvm)
    vcpu = spawn(_write_and_reset, kvm.vcpus[0], name="vcpu0")
    memslot = spawn(kvm_delete_memslot, kvm, 1, name="memslot")
    destroy_after(kvm, vcpu, memslot)


def _write_and_reset(vcpu: KvmVcpu) -> None:
    kvm_arch_vcpu_ioctl_run(vcpu, write(FAR_GFN))
    kvm_mmu_reset_context(vcpu)


@scenario("A memslot is deleted while the administrator writes nx_huge_pages")
def memslot_delete_vs_nx_huge_pages(design: Design) -> None:
    """Two tasks invalidate all roots and zap them, and neither must take the work of the other for its own, or return
    before it is done.
    """
    kvm = make_vm(design, dummies=1)
    populate(kvm)
    memslot = spawn(kvm_delete_memslot, kvm, 1, name="memslot")
    nx = spawn(set_nx_huge_pages, name="nx")
    destroy_after(kvm, memslot, nx)


@scenario("Two memslots are deleted, one after the other, while a vCPU still holds its old root")
def two_deletes_while_vcpu_holds_root(design: Design, *, dummies: int = 2) -> None:
    """A vCPU holds a reference on its root. The first deletion invalidates the root and zaps it, but the root stays
    until the vCPU puts it; the second deletion finds it on the list again, invalid. References that are taken for
    each invalidation, or put for each zap, come out wrong here.
    """
    kvm = make_vm(design, dummies=dummies)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    memslot = spawn(_delete_all, kvm, dummies, name="memslot")
    destroy_after(kvm, vcpu, memslot)


def _delete_all(kvm: Kvm, dummies: int) -> None:
    for dummy in range(dummies):
        kvm_delete_memslot(kvm, 1 + dummy)


@scenario("A memslot is moved by a page and back while a vCPU reads it")
def memslot_move_vs_read(design: Design) -> None:
    """The memory of a memslot comes to other gfns and back again while a vCPU reads at the old place: it sees the
    memory, or nothing (MMIO), and never what is not in the memslot there.
    """
    kvm = make_vm(design, spare_gfns=1)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    memslot = spawn(_move_and_back, kvm, name="memslot")
    destroy_after(kvm, vcpu, memslot)


def _move_and_back(kvm: Kvm) -> None:
    kvm_move_memslot(kvm, 0, 1)
    kvm_move_memslot(kvm, 0, 0)


@scenario("A memslot is deleted and created again while a vCPU faults on it")
def memslot_delete_and_create_vs_fault(design: Design) -> None:
    """The memory behind a gfn goes away and comes back. In between, accesses are MMIO, and nothing that was learnt of
    that may be believed afterwards.
    """
    kvm = make_vm(design)
    load_roots(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), read(0), name="vcpu0")
    memslot = spawn(_delete_and_create, kvm, name="memslot")
    destroy_after(kvm, vcpu, memslot)


def _delete_and_create(kvm: Kvm) -> None:
    kvm_delete_memslot(kvm, 0)
    kvm_create_memslot(kvm, 0, 0, 1, GUEST_HVA)


@scenario("A memslot is created while the host unmaps the memory that it is for")
def memslot_create_vs_unmap(design: Design) -> None:
    """munmap takes pages that no memslot is backed by when its notifier begins, and that one is backed by when it ends:
    if both are not to see the same memslots, an invalidation ends that never began.
    """
    kvm = make_vm(design, spare_gfns=1)
    mmap(kvm.mm, DUMMY_HVA, 1)
    unmap = spawn(munmap, kvm.mm, DUMMY_HVA, 1, name="munmap")
    memslot = spawn(kvm_create_memslot, kvm, 1, 1, 1, DUMMY_HVA, name="memslot")
    destroy_after(kvm, unmap, memslot)


@scenario("A memslot is deleted, and only what it maps zapped, while a vCPU faults on it")
def fault_vs_memslot_delete_alone(design: Design, *, pages: int = 1) -> None:
    """Userspace has asked (KVM_X86_QUIRK_SLOT_ZAP_ALL disabled) that the roots stay when a memslot is deleted. Nothing
    but the invalid memslot keeps a fault from mapping what has been zapped. Kernels that do not know this zap all.
    """
    kvm = make_vm(design, pages=pages, params=KvmParams(slot_zap_all=False))
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], *(write(gfn) for gfn in kvm.named_gfns), name="vcpu0")
    memslot = spawn(_delete_and_unmap, kvm, pages, name="memslot")
    destroy_after(kvm, vcpu, memslot)


@scenario("A memslot is deleted and created while vCPUs use another one")
def memslot_modification_stress(design: Design, *, rounds: int = 1) -> None:
    """A memslot that nobody uses comes and goes again and again, and each time all roots are invalidated and made
    again by a vCPU that goes on using its memory.
    """
    kvm = make_vm(design, dummies=1)
    populate(kvm)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    memslot = spawn(_delete_and_create_dummy, kvm, rounds, name="memslot")
    destroy_after(kvm, vcpu, memslot)


def _delete_and_create_dummy(kvm: Kvm, rounds: int) -> None:
    for _ in range(rounds):
        kvm_delete_memslot(kvm, 1)
        kvm_create_memslot(kvm, 1, DUMMY_GFN, 1, DUMMY_HVA)
