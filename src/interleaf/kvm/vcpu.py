"""KVM_RUN: enter the guest, let it access memory, handle what made it stop, and again (arch/x86/kvm/x86.c, v6.12).

A guest is the sequence of its accesses to memory. Each access is one operation of the vCPU's processor: it leaves
the guest if a request is pending, and else translates the gfn with what the processor has cached or by a walk.
"""

from __future__ import annotations

import enum
import errno
from typing import Any, NamedTuple

from interleaf.hw.access import PFERR_RSVD_MASK
from interleaf.hw.ept import PFN_SHIFT
from interleaf.hw.frames import is_allocated
from interleaf.hw.platform import Paging
from interleaf.hw.walk import Access, Fault, starts_from_cache, translate
from interleaf.linux.lockdep import lock
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.mm.page import note_written, pfn_to_page
from interleaf.runtime import BLOCK, Memory, Violation, checkpoint, choose, operation, routine, say

from .attributes import expect_private
from .dirty_log import mark_page_dirty_in_slot, vmx_flush_pml_buffer
from .dirty_ring import KVM_DIRTY_RING_RSVD_ENTRIES, kvm_dirty_ring_check_request
from .kvm_host import KvmMmuPage, KvmRequest, KvmVcpu, kvm_dirty_ring
from .logged import note_access
from .mmio import expect_no_memory
from .mmu import (
    kvm_init_mmu,
    kvm_mmu_free_obsolete_roots,
    kvm_mmu_new_pgd,
    kvm_mmu_reload,
    kvm_mmu_reset_context,
    kvm_mmu_unload,
    kvm_post_set_cr0_wp,
)
from .mmu_internal import RetPf
from .page_fault import find_memslot, kvm_mmu_page_fault
from .request import kvm_check_requests
from .trace import trace_kvm_entry, trace_kvm_page_fault


class GuestAccess(NamedTuple):
    """One access by guest code."""

    gfn: int
    access: Access


class Event(enum.Enum):
    """What changes the mode of a vCPU, and with it the root that it needs. Each makes the vCPU leave the guest."""

    SMI = "enters system management mode"
    RSM = "leaves system management mode"
    VMENTER = "enters its guest, L2"
    VMEXIT = "leaves its guest, L2"
    CR0_WP = "changes CR0.WP"
    CR0_PG = "changes its paging mode"


class GuestEvent(NamedTuple):
    """Something else that guest code does."""

    event: Event


GuestAction = GuestAccess | GuestEvent


class Exit(enum.Enum):
    """Why a vCPU is not in the guest (any more)."""

    NONE = "it has not left the guest"
    REQUEST = "a request is pending"
    PAGE_FAULT = "page fault"
    """An EPT violation or misconfiguration, or a nested page fault."""
    EVENT = "an event"
    """Something that changes the vCPU's mode."""
    CACHED_TABLE = "it is not in the TLB"
    """Not an exit: the processor has cached tables on the way, and where the walk starts is to be chosen first."""


class VmExit(NamedTuple):
    """A VM exit, or what there is instead of one."""

    reason: Exit
    fault: Fault | None = None
    error_code: int = 0
    """Of a page fault (PFERR_*)."""


NO_EXIT = VmExit(Exit.NONE)


def read(gfn: int) -> GuestAccess:
    """The guest reads a page."""
    return GuestAccess(gfn, Access.READ)


def write(gfn: int) -> GuestAccess:
    """The guest writes a page."""
    return GuestAccess(gfn, Access.WRITE)


def execute(gfn: int) -> GuestAccess:
    """The guest executes code in a page."""
    return GuestAccess(gfn, Access.EXEC)


def smi() -> GuestEvent:
    """A system management interrupt: the guest goes on in the second address space."""
    return GuestEvent(Event.SMI)


def rsm() -> GuestEvent:
    """The guest returns from system management mode."""
    return GuestEvent(Event.RSM)


def enter_l2() -> GuestEvent:
    """The guest runs a guest of its own, without nested paging: that one sees the same memory, by another root."""
    return GuestEvent(Event.VMENTER)


def exit_l2() -> GuestEvent:
    """The guest's guest gives control back."""
    return GuestEvent(Event.VMEXIT)


def toggle_cr0_wp() -> GuestEvent:
    """The guest changes CR0.WP."""
    return GuestEvent(Event.CR0_WP)


def toggle_paging() -> GuestEvent:
    """The guest changes CR0.PG, CR4 or EFER, so that KVM starts over with a new root."""
    return GuestEvent(Event.CR0_PG)


def _words(vcpu: KvmVcpu, what: GuestAccess, outcome: VmExit | None) -> str:
    wanted = f"vCPU{vcpu.index} {what.access.verb} gfn {what.gfn:#x}"
    if outcome is None or outcome.reason is Exit.NONE:
        return wanted
    if outcome.reason is Exit.REQUEST:
        return f"vCPU{vcpu.index} leaves the guest: {outcome.reason.value}"
    return f"{wanted}: {(outcome.fault or outcome.reason).value}"


@operation(words=_words)
def _guest_access(memory: Memory, vcpu: KvmVcpu, what: GuestAccess) -> VmExit:
    """The vCPU is in the guest and is about to make an access."""
    memory.order(vcpu, acquire=True)
    if memory.load(vcpu, KvmVcpu.requests):
        return VmExit(Exit.REQUEST)
    root = memory.load(vcpu, KvmVcpu.mmu_root)
    if starts_from_cache(memory, vcpu.cpu, root, what.gfn, what.access):
        return VmExit(Exit.CACHED_TABLE)
    return _access(memory, vcpu, root, what, False)


@operation(words=lambda vcpu, what, from_root, outcome: _words(vcpu, what, outcome))
def _guest_walk(memory: Memory, vcpu: KvmVcpu, what: GuestAccess, from_root: bool) -> VmExit:
    """As `_guest_access`, with the start of the walk decided."""
    memory.order(vcpu, acquire=True)
    if memory.load(vcpu, KvmVcpu.requests):
        return VmExit(Exit.REQUEST)
    return _access(memory, vcpu, memory.load(vcpu, KvmVcpu.mmu_root), what, from_root)


def _access(memory: Memory, vcpu: KvmVcpu, root: KvmMmuPage, what: GuestAccess, from_root: bool) -> VmExit:
    _expect_usable(memory, vcpu, root)
    level = memory.peek(KvmMmuPage.role.cell(root)).level
    found = translate(memory, vcpu.cpu, root, what.gfn, what.access, from_root, level)
    memory.order(vcpu.cpu, release=True)
    note_access(memory, vcpu, root, what.gfn, what.access is Access.WRITE, found)
    if found.pfn is None:
        return VmExit(Exit.PAGE_FAULT, found.fault, found.error_code)
    expect_private(memory, vcpu, what.gfn, found.pfn)
    page = pfn_to_page(memory, found.pfn)
    memory.exercise("I1")
    if not is_allocated(memory, page):
        through = "its TLB" if found.from_tlb else "its page tables"
        message = (
            f"vCPU{vcpu.index} {what.access.verb} gfn {what.gfn:#x}, which {through} translates to pfn {found.pfn:#x}, "
            f"but the host has freed {page.name} there"
        )
        memory.violate(Violation("I1", message, object=page.name))
    if what.access is Access.WRITE:
        note_written(memory, found.pfn)
    return NO_EXIT


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
def _run_guest(vcpu: KvmVcpu, actions: tuple[GuestAction, ...]) -> tuple[tuple[GuestAction, ...], VmExit]:
    """The guest runs until it has done all of this, or leaves; returns what is left, and why."""
    trace_kvm_entry(vcpu.index)
    while actions:
        checkpoint()
        action = actions[0]
        if isinstance(action, GuestEvent):
            return actions, VmExit(Exit.EVENT)
        outcome = _guest_access(vcpu, action)
        if outcome.reason is Exit.CACHED_TABLE:
            from_root = choose(2, "the processor has dropped its cached page tables") == 1
            outcome = _guest_walk(vcpu, action, from_root)
            del from_root
        if outcome.reason is not Exit.NONE:
            return actions, outcome
        actions = actions[1:]
        del action, outcome
    return (), NO_EXIT


@routine
def _handle_event(vcpu: KvmVcpu, event: Event) -> None:
    """The guest has changed its mode."""
    say(f"the guest on vCPU{vcpu.index} {event.value}")
    match event:
        case Event.SMI | Event.RSM:
            vcpu.smm = event is Event.SMI
            kvm_mmu_reset_context(vcpu)
        case Event.VMENTER | Event.VMEXIT:
            vcpu.guest_mode = event is Event.VMENTER
            kvm_init_mmu(vcpu)
            kvm_mmu_new_pgd(vcpu)
        case Event.CR0_WP:
            kvm_post_set_cr0_wp(vcpu)
        case Event.CR0_PG:
            kvm_mmu_reset_context(vcpu)


class Handled(enum.Enum):
    """What has become of an exit."""

    AGAIN = "the guest goes on, or tries again"
    DONE = "what the guest was about to do is done for it"
    RING_FULL = "userspace must empty the vCPU's dirty ring first"


@routine
def _handle_requests(vcpu: KvmVcpu) -> Handled:
    """Do what was requested of the vCPU, before it enters the guest again (vcpu_enter_guest)."""
    pending = kvm_check_requests(vcpu)
    if pending >> KvmRequest.MMU_RELOAD & 1:
        kvm_mmu_unload(vcpu)
    if pending >> KvmRequest.MMU_FREE_OBSOLETE_ROOTS & 1:
        kvm_mmu_free_obsolete_roots(vcpu)
    if pending >> KvmRequest.DIRTY_RING_SOFT_FULL & 1 and kvm_dirty_ring_check_request(vcpu):
        return Handled.RING_FULL
    return Handled.AGAIN


@operation(words=lambda vcpu, _: f"enters vCPU{vcpu.index} again, with its dirty ring emptied")
def _wait_for_userspace(memory: Memory, vcpu: KvmVcpu) -> Any:
    """KVM_RUN has returned, and userspace calls it again when some thread of it has reset the vCPU's dirty ring."""
    ring = vcpu.dirty_ring
    used = memory.load(ring, kvm_dirty_ring.dirty_index) - memory.load(ring, kvm_dirty_ring.reset_index)
    return BLOCK if used >= vcpu.kvm.params.dirty_ring_size - KVM_DIRTY_RING_RSVD_ENTRIES else None


@routine
def _handle_page_fault(vcpu: KvmVcpu, gfn: int, error_code: int) -> Handled | int:
    """Handle an exit because of an access to memory. DONE, RET_PF_* if the guest tries again, or a negative errno. In a
    reader of `kvm->srcu`."""
    say(f"vCPU{vcpu.index} faults on gfn {gfn:#x}")
    if not error_code & PFERR_RSVD_MASK or vcpu.kvm.platform.paging is Paging.NPT:
        trace_kvm_page_fault(vcpu.index, gfn << PFN_SHIFT, error_code)
    result = kvm_mmu_page_fault(vcpu, gfn, error_code)
    if result is RetPf.WRITE_PROTECTED:
        say(f"KVM emulates the write to gfn {gfn:#x}")
        mark_page_dirty_in_slot(vcpu.kvm, find_memslot(vcpu, gfn), gfn, vcpu)
        return Handled.DONE
    if result is RetPf.EMULATE:
        expect_no_memory(vcpu, gfn)
        say(f"gfn {gfn:#x} is in no memslot: KVM_EXIT_MMIO")
        return Handled.DONE
    return result


@routine
def _handle_exit(vcpu: KvmVcpu, left: VmExit, what: GuestAction) -> Handled | int:
    """Handle the last exit, which the guest made when it was about to do `what`: what has become of it, RET_PF_* of a
    page fault, after which the guest tries again, or a negative errno. In a reader of `kvm->srcu`."""
    if vcpu.pml_buffer:
        vmx_flush_pml_buffer(vcpu)
    if left.reason is Exit.REQUEST:
        return _handle_requests(vcpu)
    if left.reason is Exit.EVENT and isinstance(what, GuestEvent):
        _handle_event(vcpu, what.event)
        return Handled.DONE
    if left.reason is Exit.PAGE_FAULT and isinstance(what, GuestAccess):
        return _handle_page_fault(vcpu, what.gfn, left.error_code)
    return Handled.AGAIN


@routine
def kvm_arch_vcpu_ioctl_run(vcpu: KvmVcpu, *actions: GuestAction) -> int:
    """KVM_RUN until the guest has done this: 0, or a negative errno, -EFAULT if its memory is not mapped on the host.

    An access to a gfn without a memslot is MMIO, which userspace emulates. The reader of `kvm->srcu` is left for as
    long as the vCPU is in the guest, and taken again for the handling of the exit and the next entry.
    """
    kvm = vcpu.kvm
    left = NO_EXIT
    while actions:
        checkpoint()
        srcu = srcu_read_lock(kvm.srcu)
        result = _handle_exit(vcpu, left, actions[0])
        failed = not isinstance(result, Handled) and result < 0
        if not failed:
            kvm_mmu_reload(vcpu)
        srcu_read_unlock(kvm.srcu, srcu)
        if not isinstance(result, Handled) and failed:
            say(f"KVM_RUN of vCPU{vcpu.index} fails: {errno.errorcode[-result]}")
            return int(result)
        left = NO_EXIT
        if result is Handled.DONE:
            actions = actions[1:]
        elif result is Handled.RING_FULL:
            _wait_for_userspace(vcpu)
        else:
            actions, left = _run_guest(vcpu, actions)
        del srcu, result, failed
    if vcpu.pml_buffer:
        srcu = srcu_read_lock(kvm.srcu)
        vmx_flush_pml_buffer(vcpu)
        srcu_read_unlock(kvm.srcu, srcu)
    return 0
