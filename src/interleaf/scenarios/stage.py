"""The stage on which scenarios play: an address space, a VM in it with memslot 0, and vCPUs.

Guest memory is in memslot 0, at the gfns from 0 on unless the scenario says otherwise. Dummy memslots of one page
each are above it; they are there to be deleted, which invalidates all roots, and are never accessed.
"""

from __future__ import annotations

from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.memslots import kvm_create_memslot
from interleaf.kvm.mmu import kvm_mmu_reload
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.vm import kvm_create_vm, kvm_put_kvm, kvm_vm_ioctl_create_vcpu
from interleaf.mm.mm import mm_alloc, mmap
from interleaf.runtime import Task, join, spawn

GUEST_HVA = 0x100
"""Where memslot 0 is in the address space, in pages: gfn base_gfn + n is at hva GUEST_HVA + n."""

DUMMY_GFN = 0x1000
DUMMY_HVA = 0x200

FAR_GFN = 1 << 27
"""512 GiB, where the second entry of a root begins: a walk over the entries of a root may yield before it, but not
before the first entry, because it has not made any progress by then."""


def make_vm(
    design: Design, *, vcpus: int = 1, pages: int = 1, dummies: int = 0, threads: int = 1, base_gfn: int = 0
) -> Kvm:
    """A VM with `vcpus` vCPUs, `pages` pages of guest memory in memslot 0, and the memslots 1 … `dummies`.

    The guest memory is at the gfns from `base_gfn` on, which are then `kvm.gfns`. `threads` is how many threads the
    process has; each must leave by mmput() before the address space goes away.
    """
    mm = mm_alloc(threads)
    mmap(mm, GUEST_HVA, pages)
    kvm = kvm_create_vm(design, mm, tuple(range(base_gfn, base_gfn + pages)))
    for _ in range(vcpus):
        kvm_vm_ioctl_create_vcpu(kvm)
    kvm_create_memslot(kvm, 0, base_gfn, pages, GUEST_HVA)
    for dummy in range(dummies):
        mmap(mm, DUMMY_HVA + dummy, 1)
        kvm_create_memslot(kvm, 1 + dummy, DUMMY_GFN + dummy, 1, DUMMY_HVA + dummy)
    return kvm


def load_roots(kvm: Kvm) -> None:
    """Every vCPU has run, so that it has its root, but the guest has not accessed its memory yet."""
    for vcpu in kvm.vcpus:
        kvm_mmu_reload(vcpu)


def populate(kvm: Kvm) -> None:
    """Every vCPU has run, and written all guest memory, before anything else happens."""
    for vcpu in kvm.vcpus:
        kvm_arch_vcpu_ioctl_run(vcpu, *(write(gfn) for gfn in kvm.gfns))


def destroy_after(kvm: Kvm, *tasks: Task) -> None:
    """In a task "destroy": when `tasks` have ended, the last reference on the VM is put."""
    spawn(_destroy, kvm, *tasks, name="destroy")


def _destroy(kvm: Kvm, *tasks: Task) -> None:
    join(*tasks)
    kvm_put_kvm(kvm)
