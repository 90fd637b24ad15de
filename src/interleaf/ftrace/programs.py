"""What a thread of the traced machine can do: each as a program of the model that runs when the trace says so.

A thread of the model waits for commands in its mailbox; a command is a name and its arguments, all in pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interleaf.hw.platform import Platform
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_clear_dirty_log, kvm_get_dirty_log, kvm_vm_set_slot_flags, set_bit_le
from interleaf.kvm.dirty_ring import dirty_ring_collect, kvm_vm_ioctl_reset_dirty_pages
from interleaf.kvm.kvm_host import Kvm, KvmModule, KvmParams, KvmRequest, KvmVcpu
from interleaf.kvm.memslots import (
    id_to_memslot,
    kvm_create_memslot,
    kvm_delete_memslot,
    kvm_memslots,
    kvm_move_memslot,
)
from interleaf.kvm.mmu import (
    kvm_init_mmu,
    kvm_mmu_free_obsolete_roots,
    kvm_mmu_new_pgd,
    kvm_mmu_reload,
    kvm_mmu_reset_context,
    kvm_mmu_unload,
)
from interleaf.kvm.mmu_notifier import (
    kvm_mmu_notifier_change_pte,
    kvm_mmu_notifier_clear_flush_young,
    kvm_mmu_notifier_invalidate_range_end,
    kvm_mmu_notifier_invalidate_range_start,
    kvm_mmu_notifier_test_young,
    mm_kernel,
)
from interleaf.kvm.nx_recovery import kvm_recover_nx_huge_pages
from interleaf.kvm.page_fault import kvm_mmu_page_fault
from interleaf.kvm.prefault import kvm_vcpu_pre_fault_memory
from interleaf.kvm.request import kvm_check_requests
from interleaf.kvm.vm import kvm_create_vm, kvm_put_kvm, kvm_vm_ioctl_create_vcpu
from interleaf.kvm.zap import kvm_zap_gfn_range, set_nx_huge_pages
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import list_empty
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.mm.mm import Mm, mm_alloc
from interleaf.mm.mm_types import Pte
from interleaf.runtime import BLOCK, Marked, Memory, Object, checkpoint, operation, routine, spawn, the

Command = tuple[Any, ...]


class Mailbox(Object):
    """What a thread is told to do next."""

    command: Marked[Command | None] = Marked(None)


class Machine(Object):
    """What the traced machine has, for those who drive it from outside."""

    mm: Marked[Mm | None] = Marked(None)
    kvm: Marked[Kvm | None] = Marked(None)


@operation(focus=Mailbox.command.cell)
def _next_command(memory: Memory, mailbox: Mailbox) -> Any:
    command = memory.load(mailbox, Mailbox.command)
    return BLOCK if command is None else command


@operation(focus=Mailbox.command.cell)
def _done(memory: Memory, mailbox: Mailbox) -> None:
    memory.store(mailbox, Mailbox.command, None)


def boot(machine: Machine, design: Design) -> None:
    """The machine has a process, which will have VMs."""
    machine.mm = mm_alloc(1, mm_kernel(design))


@routine
def thread(mailbox: Mailbox) -> None:
    """Do what the mailbox says, for ever."""
    while True:
        checkpoint()
        _perform(_next_command(mailbox))
        _done(mailbox)


WAITING = thread.__name__
"""The function in which a thread waits for a command."""


@routine
def _perform(command: Command) -> None:
    COMMANDS[command[0]](*command[1:])


@routine
def create_vm(machine: Machine, design: Design, platform: Platform, params: KvmParams, nx_huge_pages: bool) -> None:
    """KVM_CREATE_VM. `nx_huge_pages`: huge pages are not executable on this host."""
    assert machine.mm is not None
    WRITE_ONCE(the(KvmModule), KvmModule.nx_huge_pages, nx_huge_pages)
    machine.kvm = kvm_create_vm(design, machine.mm, None, platform, params)


@routine
def enter(vcpu: KvmVcpu) -> None:
    """The vCPU is about to enter the guest: what was requested of it is done, and it has a root."""
    srcu = srcu_read_lock(vcpu.kvm.srcu)
    pending = kvm_check_requests(vcpu)
    if pending >> KvmRequest.MMU_RELOAD & 1:
        kvm_mmu_unload(vcpu)
    if pending >> KvmRequest.MMU_FREE_OBSOLETE_ROOTS & 1:
        kvm_mmu_free_obsolete_roots(vcpu)
    kvm_mmu_reload(vcpu)
    srcu_read_unlock(vcpu.kvm.srcu, srcu)


@routine
def fault(vcpu: KvmVcpu, gfn: int, error_code: int) -> None:
    """The guest has left because of its access to `gfn`."""
    srcu = srcu_read_lock(vcpu.kvm.srcu)
    kvm_mmu_page_fault(vcpu, gfn, error_code)
    srcu_read_unlock(vcpu.kvm.srcu, srcu)


@routine
def notify_unmap(kvm: Kvm, start: int, end: int) -> None:
    """The host takes the pages start <= hva < end."""
    kvm_mmu_notifier_invalidate_range_start(kvm, start, end, True)
    kvm_mmu_notifier_invalidate_range_end(kvm, start, end)


@routine
def notify_change(kvm: Kvm, hva: int, entry: Pte) -> None:
    """The host replaces the page at `hva`, inside an invalidation."""
    kvm_mmu_notifier_change_pte(kvm, hva, entry)


@routine
def change_mode(vcpu: KvmVcpu, as_id: int, guest_mode: bool) -> None:
    """The vCPU enters or leaves system management mode, or a guest of its own, and gets the root for that."""
    if as_id == vcpu.root_role.as_id and guest_mode == vcpu.root_role.guest_mode:
        return
    if as_id != vcpu.root_role.as_id:
        vcpu.smm, vcpu.guest_mode = bool(as_id), guest_mode
        kvm_mmu_reset_context(vcpu)
    else:
        vcpu.guest_mode = guest_mode
        kvm_init_mmu(vcpu)
        kvm_mmu_new_pgd(vcpu)
    enter(vcpu)


@routine
def recover_nx_huge_page(kvm: Kvm) -> None:
    """The VM's recovery thread zaps the next table that it can."""
    while not kvm_recover_nx_huge_pages(kvm, 1) and not list_empty(kvm.possible_nx_huge_pages):
        checkpoint()


@routine
def clear_pages(kvm: Kvm, slot_id: int, gfns: tuple[int, ...], as_id: int) -> None:
    """Userspace clears these pages in the dirty log of a slot. They were dirty: the processor may have logged some."""
    slot = id_to_memslot(kvm_memslots(kvm), slot_id, as_id)
    assert slot.dirty_bitmap is not None
    for gfn in gfns:
        set_bit_le(slot.dirty_bitmap, gfn - slot.base_gfn)
    kvm_clear_dirty_log(kvm, slot_id, gfns, as_id)


@routine
def collect(kvm: Kvm) -> None:
    """Userspace takes what is in the dirty rings, and has them reset."""
    for vcpu in kvm.vcpus:
        dirty_ring_collect(vcpu)
    kvm_vm_ioctl_reset_dirty_pages(kvm)


COMMANDS: dict[str, Callable[..., Any]] = {
    "create VM": create_vm,
    "create vCPU": kvm_vm_ioctl_create_vcpu,
    "destroy VM": kvm_put_kvm,
    "enter": enter,
    "fault": fault,
    "prefault": kvm_vcpu_pre_fault_memory,
    "create slot": kvm_create_memslot,
    "delete slot": kvm_delete_memslot,
    "move slot": kvm_move_memslot,
    "set flags": kvm_vm_set_slot_flags,
    "change mode": change_mode,
    "write nx_huge_pages": set_nx_huge_pages,
    "recover NX huge page": recover_nx_huge_page,
    "zap range": kvm_zap_gfn_range,
    "get dirty log": kvm_get_dirty_log,
    "clear dirty log": kvm_clear_dirty_log,
    "clear pages": clear_pages,
    "reset dirty rings": collect,
    "unmap": notify_unmap,
    "unmap begins": kvm_mmu_notifier_invalidate_range_start,
    "unmap ends": kvm_mmu_notifier_invalidate_range_end,
    "age": kvm_mmu_notifier_clear_flush_young,
    "test age": kvm_mmu_notifier_test_young,
    "change pte": notify_change,
}


def start_thread(mailbox: Mailbox, name: str) -> None:
    """Start a thread that obeys the mailbox."""
    spawn(thread, mailbox, name=name)
