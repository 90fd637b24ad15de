"""Zapping everything at once: the fast way, by invalidating the roots, and the slow way, entry by entry.

The fast way serves memslot deletion and set_nx_huge_pages(); vCPUs get new roots and may go on while the old ones
are torn down. How the steps are done is what designs differ in most; what must hold at the end (I7) is the same.
(arch/x86/kvm/mmu/mmu.c, v6.12)
"""

from __future__ import annotations

from interleaf.hw.ept import PFN_SHIFT, SPTE_MMU_PRESENT_MASK
from interleaf.hw.frames import is_allocated
from interleaf.hw.page_table import entries_for
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.linux.sched import wake_up_process
from interleaf.runtime import Memory, Violation, operation, routine, say, the

from .design import Design, rule
from .invalidate import (
    INVALIDATE_NAMES_GFNS,
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
    kvm_mmu_invalidate_range_add,
)
from .kvm_host import Kvm, KvmGfnRange, KvmMemorySlot, KvmMmuPage, KvmModule
from .nx_huge_page import expect_possible_nx_huge_pages
from .shadow import kvm_memslots_have_rmaps, kvm_mmu_zap_all_legacy, kvm_rmap_zap_gfn_range
from .tdp import ghost, tdp_mmu
from .tdp.references import roots_on_list
from .tlb import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_range
from .trace import trace_kvm_mmu_zap_all, trace_kvm_zap_gfn_range

ZAP_ALL_SLOTS_LOCK = rule(
    "zap-all-takes-slots-lock",
    "Whoever invalidates all roots holds slots_lock, so that nobody else does meanwhile.",
    "b7cccd397f31",
)
SLOT_ZAP_QUIRK = rule(
    "slot-zap-quirk",
    "If userspace has asked for it (KVM_X86_QUIRK_SLOT_ZAP_ALL disabled), a memslot that goes away is zapped alone.",
    "v6.12",
)
ZAP_RANGE_COUNTS = rule(
    "zap-range-counts",
    "Zapping a range counts as an invalidation while it lasts, so that faults do not map again what it has zapped with "
    "what they have looked up before.",
    "edb298c663fc",
)
ZAP_RANGE_UNIT = rule(
    "zap-range-unit",
    "The range of an invalidation for zapping gfns is named in the unit in which faults look for it.",
    "6d3085e4d89a",
)


HVA_LIMIT = 1 << 52
"""Addresses have 64 bits, of which 12 lie inside the page."""


@operation(marked=False)
def _roots(memory: Memory, kvm: Kvm) -> tuple[KvmMmuPage, ...]:
    """The roots on the VM's list, for I7."""
    return tuple(roots_on_list(memory, kvm))


@operation(marked=False)
def _expect_zapped(memory: Memory, kvm: Kvm, roots: tuple[KvmMmuPage, ...]) -> None:
    """I7: nothing is mapped under any of these roots any more."""
    memory.exercise("I7")
    for root in roots:
        if not is_allocated(memory, root):
            continue
        for index in entries_for(kvm.gfns, 0, kvm.platform.levels):
            if memory.look(KvmMmuPage.spt.element(root, index)) & SPTE_MMU_PRESENT_MASK:
                message = (
                    f"kvm_mmu_zap_all_fast returns, but {root.name}, a root that was on the list when it was called, "
                    "still has page tables below it"
                )
                memory.violate(Violation("I7", message, object=root.name))


@routine
def kvm_mmu_zap_all_fast(kvm: Kvm) -> None:
    """Make all roots invalid and all vCPUs take new ones, and zap everything under the old ones. Sleeps.

    slots_lock held, which makes fast zaps follow each other. When it returns, no SPTE is left under any root that
    was on the list when it was called (I7): after a memslot is gone, notifiers could not find them.
    """
    if kvm.design.obeys(ZAP_ALL_SLOTS_LOCK):
        lockdep_assert_held(kvm.slots_lock)
    roots = _roots(kvm)
    tdp_mmu.kvm_mmu_zap_all_fast(kvm)
    _expect_zapped(kvm, roots)


@routine
def kvm_mmu_zap_all(kvm: Kvm) -> None:
    """Zap everything under every root, slowly: the address space or the VM goes away, and no vCPU
    runs. Takes mmu_lock."""
    trace_kvm_mmu_zap_all()
    write_lock(kvm.mmu_lock)
    expect_possible_nx_huge_pages(kvm)
    kvm_mmu_zap_all_legacy(kvm)
    tdp_mmu.kvm_tdp_mmu_zap_all(kvm)
    write_unlock(kvm.mmu_lock)


@operation(marked=False)
def _range_zap_begins(memory: Memory, kvm: Kvm, start: int, end: int) -> None:
    """What faults on start <= gfn < end have looked up until now is out of date. mmu_lock held for write."""
    cell = ghost.range_zaps.cell(kvm)
    ghost.note(memory, cell, (*memory.look(cell), (start, end)))


def _range_to_invalidate(design: Design, gfn_start: int, gfn_end: int) -> tuple[int, int]:
    """The range of an invalidation for zapping gfns."""
    if not design.obeys(ZAP_RANGE_UNIT):
        # the gfns are taken for addresses in the process (in bytes), where no slot's memory is
        return gfn_start >> PFN_SHIFT, gfn_end >> PFN_SHIFT
    if not design.obeys(INVALIDATE_NAMES_GFNS):
        return 0, HVA_LIMIT
    return gfn_start, gfn_end


@routine
def kvm_zap_gfn_range(kvm: Kvm, gfn_start: int, gfn_end: int) -> None:
    """Zap the gfns gfn_start <= gfn < gfn_end in all roots that can be used, because how they must be mapped has
    changed (memory types, say); they fault in again. Takes mmu_lock, and may give it up on the way."""
    trace_kvm_zap_gfn_range(gfn_start, gfn_end)
    counts = kvm.design.obeys(ZAP_RANGE_COUNTS)
    write_lock(kvm.mmu_lock)
    _range_zap_begins(kvm, gfn_start, gfn_end)
    if counts:
        kvm_mmu_invalidate_begin(kvm)
        kvm_mmu_invalidate_range_add(kvm, *_range_to_invalidate(kvm.design, gfn_start, gfn_end))
    flush = kvm_memslots_have_rmaps(kvm) and kvm_rmap_zap_gfn_range(kvm, gfn_start, gfn_end)
    if tdp_mmu.kvm_tdp_mmu_zap_leafs(kvm, gfn_start, gfn_end, flush):
        kvm_flush_remote_tlbs_range(kvm, gfn_start, gfn_end - gfn_start)
    if counts:
        kvm_mmu_invalidate_end(kvm)
    write_unlock(kvm.mmu_lock)


@routine
def kvm_flush_shadow_all(kvm: Kvm) -> None:
    """Forget everything that is mapped (kvm_arch_flush_shadow_all)."""
    kvm_mmu_zap_all(kvm)


@routine
def kvm_mmu_zap_memslot(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Zap what is mapped through a slot, and nothing else. vCPUs keep their roots, and faults on other slots go on.

    The sequence number of invalidations stays as it is: no fault can be using the slot, since it has been marked
    INVALID, and all readers of `kvm->srcu` who did not know that have left. slots_lock held. Takes mmu_lock, and may
    give it up on the way. (The kernel zaps the shadow pages of L1's tables in the slot, too; in the model those are in
    none.)
    """
    write_lock(kvm.mmu_lock)
    gfn_range = KvmGfnRange(slot, slot.base_gfn, slot.base_gfn + slot.npages, True)
    flush = kvm_memslots_have_rmaps(kvm) and kvm_rmap_zap_gfn_range(kvm, gfn_range.start, gfn_range.end)
    if tdp_mmu.kvm_tdp_mmu_unmap_gfn_range(kvm, gfn_range, flush):
        kvm_flush_remote_tlbs(kvm)
    write_unlock(kvm.mmu_lock)


@routine
def kvm_arch_flush_shadow_memslot(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Forget what is mapped through a slot that is about to go away. slots_lock held. Sleeps."""
    if kvm.params.slot_zap_all or not kvm.design.obeys(SLOT_ZAP_QUIRK):
        say(f"memslot {slot.id} is invalid for everybody: zaps all that is mapped")
        kvm_mmu_zap_all_fast(kvm)
    else:
        say(f"memslot {slot.id} is invalid for everybody: zaps what is mapped through it")
        kvm_mmu_zap_memslot(kvm, slot)


@routine
def set_nx_huge_pages(enabled: bool | None = None) -> None:
    """The administrator writes the module parameter nx_huge_pages: every VM is zapped, so that it takes effect, and its
    recovery thread is woken. Without `enabled`, what it was and is does not matter to anybody.

    It holds kvm_lock, which keeps the VMs from being destroyed, but no reference on their address spaces: these
    may go away at any time. Sleeps.
    """
    module = the(KvmModule)
    mutex_lock(module.kvm_lock)
    if enabled is not None:
        WRITE_ONCE(module, KvmModule.nx_huge_pages, enabled)
    for kvm in module.vm_list:
        serial = kvm.design.obeys(ZAP_ALL_SLOTS_LOCK)
        if serial:
            mutex_lock(kvm.slots_lock)
        say(f"set_nx_huge_pages zaps {kvm.name}")
        kvm_mmu_zap_all_fast(kvm)
        if serial:
            mutex_unlock(kvm.slots_lock)
        if kvm.nx_huge_page_recovery_thread is not None:
            wake_up_process(kvm.nx_huge_page_recovery_thread)
    mutex_unlock(module.kvm_lock)
