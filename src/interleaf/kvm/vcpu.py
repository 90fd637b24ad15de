"""KVM_RUN: enter the guest, let it access memory, handle what made it stop, and again (arch/x86/kvm/x86.c, v6.12).

A guest is the sequence of its accesses to memory. Each access is one operation of the vCPU's processor: it leaves
the guest if a request is pending, and else translates the gfn with what the processor has cached or by a walk.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from interleaf.hw.frames import is_allocated
from interleaf.hw.walk import Access, Fault, starts_from_cache, translate
from interleaf.linux.bug import BUG_ON
from interleaf.linux.lockdep import lock
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.mm.page import pfn_to_page
from interleaf.runtime import Memory, Violation, checkpoint, choose, operation, routine, say

from .dirty_log import vmx_flush_pml_buffer
from .kvm_host import KvmMmuPage, KvmRequest, KvmVcpu, RetPf
from .logged import note_access
from .mmu import kvm_mmu_free_obsolete_roots, kvm_mmu_reload, kvm_mmu_unload
from .page_fault import kvm_tdp_page_fault
from .request import kvm_check_requests


class GuestAccess(NamedTuple):
    """One access by guest code."""

    gfn: int
    access: Access


class Exit(enum.Enum):
    """Why a vCPU is not in the guest (any more)."""

    NONE = "it has not left the guest"
    REQUEST = "a request is pending"
    EPT_VIOLATION = "EPT violation"
    EPT_MISCONFIG = "EPT misconfiguration"
    CACHED_TABLE = "it is not in the TLB"
    """Not an exit: the processor has cached tables on the way, and where the walk starts is to be chosen first."""


def read(gfn: int) -> GuestAccess:
    """The guest reads a page."""
    return GuestAccess(gfn, Access.READ)


def write(gfn: int) -> GuestAccess:
    """The guest writes a page."""
    return GuestAccess(gfn, Access.WRITE)


def execute(gfn: int) -> GuestAccess:
    """The guest executes code in a page."""
    return GuestAccess(gfn, Access.EXEC)


def _words(vcpu: KvmVcpu, what: GuestAccess, outcome: Exit | None) -> str:
    wanted = f"vCPU{vcpu.index} {what.access.verb} gfn {what.gfn:#x}"
    if outcome is None or outcome is Exit.NONE:
        return wanted
    if outcome is Exit.REQUEST:
        return f"vCPU{vcpu.index} leaves the guest: {outcome.value}"
    return f"{wanted}: {outcome.value}"


@operation(words=_words)
def _guest_access(memory: Memory, vcpu: KvmVcpu, what: GuestAccess) -> Exit:
    """The vCPU is in the guest and is about to make an access."""
    memory.order(vcpu, acquire=True)
    if memory.load(vcpu, KvmVcpu.requests):
        return Exit.REQUEST
    root = memory.load(vcpu, KvmVcpu.mmu_root)
    if starts_from_cache(memory, vcpu.cpu, root, what.gfn, what.access):
        return Exit.CACHED_TABLE
    return _access(memory, vcpu, root, what, False)


@operation(words=lambda vcpu, what, from_root, outcome: _words(vcpu, what, outcome))
def _guest_walk(memory: Memory, vcpu: KvmVcpu, what: GuestAccess, from_root: bool) -> Exit:
    """As `_guest_access`, with the start of the walk decided."""
    memory.order(vcpu, acquire=True)
    if memory.load(vcpu, KvmVcpu.requests):
        return Exit.REQUEST
    return _access(memory, vcpu, memory.load(vcpu, KvmVcpu.mmu_root), what, from_root)


def _access(memory: Memory, vcpu: KvmVcpu, root: KvmMmuPage, what: GuestAccess, from_root: bool) -> Exit:
    _expect_usable(memory, vcpu, root)
    found = translate(memory, vcpu.cpu, root, what.gfn, what.access, from_root)
    memory.order(vcpu.cpu, release=True)
    note_access(memory, vcpu, root, what.gfn, what.access is Access.WRITE, found)
    if found.pfn is None:
        return Exit.EPT_MISCONFIG if found.fault is Fault.MISCONFIG else Exit.EPT_VIOLATION
    page = pfn_to_page(memory, found.pfn)
    memory.exercise("I1")
    if not is_allocated(memory, page):
        through = "its TLB" if found.from_tlb else "its page tables"
        message = (
            f"vCPU{vcpu.index} {what.access.verb} gfn {what.gfn:#x}, which {through} translates to pfn {found.pfn:#x}, "
            f"but the host has freed {page.name} there"
        )
        memory.violate(Violation("I1", message, object=page.name))
    return Exit.NONE


def _expect_usable(memory: Memory, vcpu: KvmVcpu, root: KvmMmuPage) -> None:
    """I9: no guest code runs on an invalid root, except where the invalidation, with mmu_lock held for write, has
    not come to its request yet."""
    memory.exercise("I9")
    if memory.look(KvmMmuPage.role.cell(root)).invalid:
        holders = memory.look(lock.holders.cell(vcpu.kvm.mmu_lock))
        if holders >= 0:
            message = (
                f"vCPU{vcpu.index} runs guest code on {root.name}, which is invalid, and no request makes it take a "
                "new root"
            )
            memory.violate(Violation("I9", message, object=root.name))


@routine
def _run_guest(vcpu: KvmVcpu, accesses: tuple[GuestAccess, ...]) -> tuple[tuple[GuestAccess, ...], Exit]:
    """The guest runs until it has made all accesses, or leaves; returns those that are left, and why."""
    while accesses:
        checkpoint()
        outcome = _guest_access(vcpu, accesses[0])
        if outcome is Exit.CACHED_TABLE:
            from_root = choose(2, "the processor has dropped its cached page tables") == 1
            outcome = _guest_walk(vcpu, accesses[0], from_root)
            del from_root
        if outcome is not Exit.NONE:
            return accesses, outcome
        accesses = accesses[1:]
        del outcome
    return (), Exit.NONE


@routine
def _handle_exit(vcpu: KvmVcpu, reason: Exit, what: GuestAccess) -> RetPf | int:
    """Handle the reason for the last exit; in a reader of `kvm->srcu`."""
    if vcpu.pml_buffer:
        vmx_flush_pml_buffer(vcpu)
    BUG_ON(reason is Exit.EPT_MISCONFIG, f"EPT misconfiguration at gfn {what.gfn:#x}")
    if reason is Exit.REQUEST:
        pending = kvm_check_requests(vcpu)
        if pending >> KvmRequest.MMU_RELOAD & 1:
            kvm_mmu_unload(vcpu)
        if pending >> KvmRequest.MMU_FREE_OBSOLETE_ROOTS & 1:
            kvm_mmu_free_obsolete_roots(vcpu)
    if reason is not Exit.EPT_VIOLATION:
        return RetPf.CONTINUE
    say(f"vCPU{vcpu.index} faults on gfn {what.gfn:#x}: {what.access.name.lower()}")
    return kvm_tdp_page_fault(vcpu, what.gfn, what.access is Access.WRITE, what.access is Access.EXEC)


@routine
def kvm_arch_vcpu_ioctl_run(vcpu: KvmVcpu, *accesses: GuestAccess) -> int:
    """KVM_RUN until the guest has made these accesses: 0, or -EFAULT if its memory is not mapped on the host.

    An access to a gfn without a memslot is MMIO, which userspace emulates. The reader of `kvm->srcu` is left for as
    long as the vCPU is in the guest, and taken again for the handling of the exit and the next entry.
    """
    kvm = vcpu.kvm
    reason = Exit.NONE
    while accesses:
        checkpoint()
        srcu = srcu_read_lock(kvm.srcu)
        result = _handle_exit(vcpu, reason, accesses[0])
        if result >= 0:
            kvm_mmu_reload(vcpu)
        srcu_read_unlock(kvm.srcu, srcu)
        if result < 0:
            say(f"KVM_RUN of vCPU{vcpu.index} fails: no memory behind gfn {accesses[0].gfn:#x}")
            return int(result)
        if result is RetPf.EMULATE:
            say(f"gfn {accesses[0].gfn:#x} is in no memslot: KVM_EXIT_MMIO")
            accesses, reason = accesses[1:], Exit.NONE
        else:
            accesses, reason = _run_guest(vcpu, accesses)
        del srcu, result
    if vcpu.pml_buffer:
        srcu = srcu_read_lock(kvm.srcu)
        vmx_flush_pml_buffer(vcpu)
        srcu_read_unlock(kvm.srcu, srcu)
    return 0
