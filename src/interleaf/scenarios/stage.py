"""The stage on which scenarios play: an address space, a VM in it with memslot 0, and vCPUs.

Guest memory is at the gfns from 0 on, in memslot 0. Dummy memslots of one page each are far above it; they are
there to be deleted, which invalidates all roots, and are never accessed.
"""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.memslots import kvm_create_memslot
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.vm import kvm_create_vm, kvm_put_kvm, kvm_vm_ioctl_create_vcpu
from interleaf.mm.mm import mm_alloc, mmap
from interleaf.runtime import Task, join, spawn

GUEST_HVA = 0x100
"""Where memslot 0 is in the address space, in pages: gfn n is at hva GUEST_HVA + n."""

DUMMY_GFN = 0x1000
DUMMY_HVA = 0x200


def make_vm(design: Design, *, vcpus: int = 1, pages: int = 1, dummies: int = 0, threads: int = 1) -> Kvm:
    """A VM with `vcpus` vCPUs, `pages` pages of guest memory in memslot 0, and the memslots 1 … `dummies`.

    `threads` is how many threads its process has (each must leave by mmput() before the address space goes away).
    """
    mm = mm_alloc(threads)
    mmap(mm, GUEST_HVA, pages)
    kvm = kvm_create_vm(design, mm, tuple(range(pages)))
    for _ in range(vcpus):
        kvm_vm_ioctl_create_vcpu(kvm)
    kvm_create_memslot(kvm, 0, 0, pages, GUEST_HVA)
    for dummy in range(dummies):
        mmap(mm, DUMMY_HVA + dummy, 1)
        kvm_create_memslot(kvm, 1 + dummy, DUMMY_GFN + dummy, 1, DUMMY_HVA + dummy)
    return kvm


def populate(kvm: Kvm, pages: int = 1) -> None:
    """Every vCPU has run, and written the gfns 0 … pages - 1, before anything else happens."""
    for vcpu in kvm.vcpus:
        kvm_arch_vcpu_ioctl_run(vcpu, *(write(gfn) for gfn in range(pages)))


def destroy_after(kvm: Kvm, *tasks: Task) -> None:
    """In a task "destroy": when `tasks` have ended, the last reference on the VM is put."""
    spawn(_destroy, kvm, *tasks, name="destroy")


def _destroy(kvm: Kvm, *tasks: Task) -> None:
    for task in tasks:
        join(task)
    kvm_put_kvm(kvm)
