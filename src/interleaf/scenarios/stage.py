"""The stage on which scenarios play: an address space, a VM in it with memslot 0, and vCPUs.

Guest memory is in memslot 0, at the gfns from 0 on unless the scenario says otherwise. Dummy memslots of one page
each are above it; they are there to be deleted, which invalidates all roots, and are never accessed.
"""

from __future__ import annotations

from dataclasses import replace

from interleaf.hw.page_table import PG_LEVEL_2M, pages_per_entry
from interleaf.hw.platform import EPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import DEFAULT_PARAMS, Kvm, KvmParams, KvmVcpu
from interleaf.kvm.memslots import kvm_create_memslot
from interleaf.kvm.mmu import kvm_init_mmu, kvm_mmu_reload
from interleaf.kvm.mmu_notifier import mm_kernel
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.vm import kvm_create_vm, kvm_put_kvm, kvm_vm_ioctl_create_vcpu
from interleaf.mm.mm import Kind, mm_alloc, mmap
from interleaf.runtime import Task, join, spawn

GUEST_HVA = 0x100
"""Where memslot 0 is in the address space, in pages: gfn base_gfn + n is at hva GUEST_HVA + n."""

HUGE_HVA = 0x400
"""Where it is instead if it is a huge page."""

DUMMY_GFN = 0x1000
DUMMY_HVA = 0x200

FAR_GFN = 1 << 27
"""512 GiB, where the second entry of a root begins: a walk over the entries of a root may yield before it, but not
before the first entry, because it has not made any progress by then."""


def make_vm(
    design: Design,
    *,
    vcpus: int = 1,
    pages: int = 1,
    dummies: int = 0,
    threads: int = 1,
    base_gfn: int = 0,
    spare_gfns: int = 0,
    huge: bool = False,
    platform: Platform = EPT,
    params: KvmParams = DEFAULT_PARAMS,
) -> Kvm:
    """A VM with `vcpus` vCPUs, `pages` pages of guest memory in memslot 0, and the memslots 1 … `dummies`.

    The guest memory is at the gfns from `base_gfn` on, which are then `kvm.gfns`. With `huge` they are the first ones
    of a huge page of 2 MiB, which the memslot consists of, and which is at HUGE_HVA. `spare_gfns` behind them are in no
    memslot yet. `threads` is how many threads the process has; each must leave by mmput() before the address space
    goes away.
    """
    mm = mm_alloc(threads, mm_kernel(design))
    hva, npages = (HUGE_HVA, pages_per_entry(PG_LEVEL_2M)) if huge else (GUEST_HVA, pages)
    if huge:
        mmap(mm, hva, npages, Kind.ANONYMOUS, level=PG_LEVEL_2M, hvas=tuple(range(hva, hva + pages)))
    else:
        mmap(mm, hva, npages)
    kvm = kvm_create_vm(design, mm, tuple(range(base_gfn, base_gfn + pages + spare_gfns)), platform, params)
    for _ in range(vcpus):
        kvm_vm_ioctl_create_vcpu(kvm)
    kvm_create_memslot(kvm, 0, base_gfn, npages, hva)
    for dummy in range(dummies):
        mmap(mm, DUMMY_HVA + dummy, 1)
        kvm_create_memslot(kvm, 1 + dummy, DUMMY_GFN + dummy, 1, DUMMY_HVA + dummy)
    return kvm


def enter_l2(vcpu: KvmVcpu) -> None:
    """The vCPU runs a nested guest (whose hypervisor does not use two-dimensional paging): it needs a root of its own
    role. In the set-up, before it has a root."""
    vcpu.root_role = replace(vcpu.root_role, guest_mode=True)


def enter_nested(vcpu: KvmVcpu, levels: int) -> None:
    """The vCPU runs a nested guest whose hypervisor translates for it by tables of so many levels (3: those of a 32-bit
    one), for which KVM keeps shadow pages. In the set-up, before it has a root."""
    vcpu.nested_levels = levels
    kvm_init_mmu(vcpu)


def load_roots(kvm: Kvm) -> None:
    """Every vCPU has run, so that it has its root, but the guest has not accessed its memory yet."""
    for vcpu in kvm.vcpus:
        kvm_mmu_reload(vcpu)


def populate(kvm: Kvm) -> None:
    """Every vCPU has run, and written all guest memory, before anything else happens."""
    for vcpu in kvm.vcpus:
        kvm_arch_vcpu_ioctl_run(vcpu, *(write(gfn) for gfn in kvm.named_gfns))


def destroy_after(kvm: Kvm, *tasks: Task) -> None:
    """In a task "destroy": when `tasks` have ended, the last reference on the VM is put."""
    spawn(_destroy, kvm, *tasks, name="destroy")


def _destroy(kvm: Kvm, *tasks: Task) -> None:
    join(*tasks)
    kvm_put_kvm(kvm)
