"""Memslots: which host memory is behind which gfns (virt/kvm/kvm_main.c, v6.12).

The set of slots is replaced as a whole, under slots_lock and slots_arch_lock, and read under SRCU. A slot is
deleted or moved in two steps: first a copy that is marked INVALID takes its place, so that faults wait while what it
maps is zapped; then it goes. A swap waits until no notifier is between its start and its end, so that both see the
same slots (52ac8b358b0c). Copies of a slot share its `arch` data and its dirty bitmap.

In the model each swap allocates a new set and frees the old one after the grace period. From 5.17 on the kernel
switches between two sets of trees; what readers see, and for how long, is the same.
"""

from __future__ import annotations

from interleaf.hw.ept import PFN_SHIFT
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rcu import rcu_assign_pointer, rcu_dereference_protected
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.linux.srcu import synchronize_srcu_expedited
from interleaf.linux.wait import wait_event
from interleaf.runtime import ModelError, free, new, routine, say

from .design import rule
from .kvm_host import (
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    KVM_MEMSLOT_INVALID,
    NR_ADDRESS_SPACES,
    Kvm,
    KvmArchMemorySlot,
    KvmDirtyBitmap,
    KvmMemorySlot,
    KvmMemslots,
)
from .logged import gfns_in, logging_begins, logging_ends
from .trace import trace_kvm_set_memory_region
from .zap import kvm_arch_flush_shadow_memslot, kvm_mmu_zap_all_fast

SWAP_WAITS_FOR_NOTIFIERS = rule(
    "swap-waits-for-notifiers",
    "The memslots are not replaced while a notifier is between its start and its end, which must see the same ones.",
    "52ac8b358b0c",
)
MMIO_GENERATION_WRAP = rule(
    "mmio-generation-wrap",
    "Everything is zapped when the part of the memslots' generation that MMIO SPTEs keep becomes 0, because very old "
    "ones would seem to be of today.",
    "f8f559422b6c",
)


def kvm_memslots(kvm: Kvm) -> KvmMemslots:
    """The current slots, for whoever holds slots_lock."""
    slots = rcu_dereference_protected(kvm, Kvm.memslots, True)
    assert slots is not None
    return slots


def gfn_to_memslot(slots: KvmMemslots, gfn: int, as_id: int) -> KvmMemorySlot | None:
    """The slot that `gfn` is in, INVALID ones included."""
    for slot in slots.slots:
        if slot.as_id == as_id and slot.base_gfn <= gfn < slot.base_gfn + slot.npages:
            return slot
    return None


def id_to_memslot(slots: KvmMemslots, id: int, as_id: int) -> KvmMemorySlot:
    """The slot that userspace calls `id`. Raises ModelError if there is none."""
    for slot in slots.slots:
        if slot.id == id and slot.as_id == as_id:
            return slot
    raise ModelError(f"there is no memslot {id} in address space {as_id}.")


def _no_active_invalidation(kvm: Kvm) -> bool:
    """Is no notifier between its start and its end? If so, mn_invalidate_lock is held on return, to keep it so."""
    spin_lock(kvm.mn_invalidate_lock)
    if kvm.mn_active_invalidate_count == 0 or not kvm.design.obeys(SWAP_WAITS_FOR_NOTIFIERS):
        return True
    spin_unlock(kvm.mn_invalidate_lock)
    return False


@routine
def kvm_swap_active_memslots(kvm: Kvm, slots: tuple[KvmMemorySlot, ...]) -> None:
    """Replace the set of slots, and wait until nobody uses the old one. Sleeps.

    slots_lock and slots_arch_lock held; slots_arch_lock is released on return, because SRCU readers may want it.
    """
    lockdep_assert_held(kvm.slots_lock)
    old = kvm_memslots(kvm)
    generation = old.generation
    replacement = new(KvmMemslots, generation=generation | KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, slots=slots)
    wait_event(kvm.mn_memslots_update_rcuwait, _no_active_invalidation, kvm)
    rcu_assign_pointer(kvm, Kvm.memslots, replacement)
    spin_unlock(kvm.mn_invalidate_lock)
    mutex_unlock(kvm.slots_arch_lock)
    synchronize_srcu_expedited(kvm.srcu)
    generation += NR_ADDRESS_SPACES
    kvm_arch_memslots_updated(kvm, generation)
    WRITE_ONCE(replacement, KvmMemslots.generation, generation)
    free(old)


@routine
def kvm_arch_memslots_updated(kvm: Kvm, generation: int) -> None:
    """The memslots are about to be of this generation: no MMIO SPTE must seem to be so already
    (kvm_mmu_invalidate_mmio_sptes). slots_lock held. Sleeps."""
    if generation & kvm.params.mmio_gen_mask == 0 and kvm.design.obeys(MMIO_GENERATION_WRAP):
        say("the generation of MMIO SPTEs starts again: zaps all that is mapped")
        kvm_mmu_zap_all_fast(kvm)


@routine
def kvm_replace_memslot(kvm: Kvm, old: KvmMemorySlot | None, new_slot: KvmMemorySlot | None) -> None:
    """Swap the set of slots for one with `new_slot` instead of `old`; None: one more, or one less.

    slots_lock and slots_arch_lock held; slots_arch_lock is released on return. Sleeps.
    """
    others = tuple(slot for slot in kvm_memslots(kvm).slots if slot is not old)
    kvm_swap_active_memslots(kvm, others if new_slot is None else _in_order((*others, new_slot)))


def _in_order(slots: tuple[KvmMemorySlot, ...]) -> tuple[KvmMemorySlot, ...]:
    return tuple(slot for _, slot in sorted(((slot.base_gfn, slot) for slot in slots), key=lambda pair: pair[0]))


def _copy(
    slot: KvmMemorySlot, base_gfn: int, flags: int, bitmap: KvmDirtyBitmap | None, arch: KvmArchMemorySlot
) -> KvmMemorySlot:
    return new(
        KvmMemorySlot,
        arch=arch,
        dirty_bitmap=bitmap,
        id=slot.id,
        as_id=slot.as_id,
        base_gfn=base_gfn,
        npages=slot.npages,
        userspace_addr=slot.userspace_addr,
        flags=flags,
    )


@routine
def kvm_invalidate_memslot(kvm: Kvm, slot: KvmMemorySlot) -> KvmMemorySlot:
    """Put a copy that is marked INVALID in the place of `slot`, wait, and zap what is mapped; returns the copy.

    slots_lock and slots_arch_lock held; the latter is released for a while. Sleeps.
    """
    slots = kvm_memslots(kvm).slots
    invalid = _copy(slot, slot.base_gfn, slot.flags | KVM_MEMSLOT_INVALID, slot.dirty_bitmap, slot.arch)
    say(f"memslot {slot.id} is marked invalid")
    kvm_swap_active_memslots(kvm, tuple(invalid if other is slot else other for other in slots))
    kvm_arch_flush_shadow_memslot(kvm, slot)
    mutex_lock(kvm.slots_arch_lock)
    return invalid


def trace_set_flags(slot: KvmMemorySlot, flags: int) -> None:
    """User space asks for other flags of a slot."""
    _trace(slot.id, slot.as_id, flags, slot.base_gfn, slot.npages, slot.userspace_addr)


def _trace(id: int, as_id: int, flags: int, base_gfn: int, npages: int, userspace_addr: int) -> None:
    gpa, size, hva = base_gfn << PFN_SHIFT, npages << PFN_SHIFT, userspace_addr << PFN_SHIFT
    trace_kvm_set_memory_region(as_id << 16 | id, flags, gpa, size, hva)


def _expect_no_conflict(kvm: Kvm, id: int, base_gfn: int, npages: int, as_id: int, moved: KvmMemorySlot | None) -> None:
    for other in kvm_memslots(kvm).slots:
        if other.as_id != as_id or other is moved:
            continue
        if other.id == id or (other.base_gfn < base_gfn + npages and base_gfn < other.base_gfn + other.npages):
            raise ModelError(f"memslot {id} (gfns {base_gfn:#x} to {base_gfn + npages:#x}) conflicts with {other.id}.")


@routine
def kvm_alloc_dirty_bitmap(kvm: Kvm, base_gfn: int, npages: int) -> KvmDirtyBitmap | None:
    """The dirty bitmap of a slot whose dirty pages are going to be logged: all clean, or all dirty
    (KVM_DIRTY_LOG_INITIALLY_SET). None where dirty rings are used."""
    if kvm.params.dirty_ring_size:
        return None
    bitmap = new(KvmDirtyBitmap)
    if kvm.params.initially_all_set:
        for gfn in gfns_in(kvm, base_gfn, base_gfn + npages):
            bitmap.bits[gfn - base_gfn] = True
    return bitmap


@routine
def kvm_create_memslot(
    kvm: Kvm, id: int, base_gfn: int, npages: int, userspace_addr: int, as_id: int = 0, flags: int = 0
) -> None:
    """KVM_SET_USER_MEMORY_REGION with a new slot: the pages at `userspace_addr` (an hva) become guest memory.

    `flags`: KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY, which can be set here only. Sleeps. Raises ModelError if a
    slot with that id exists, or one that overlaps.
    """
    mutex_lock(kvm.slots_lock)
    _trace(id, as_id, flags, base_gfn, npages, userspace_addr)
    _expect_no_conflict(kvm, id, base_gfn, npages, as_id, None)
    bitmap = kvm_alloc_dirty_bitmap(kvm, base_gfn, npages) if flags & KVM_MEM_LOG_DIRTY_PAGES else None
    slot = new(
        KvmMemorySlot,
        arch=new(KvmArchMemorySlot),
        dirty_bitmap=bitmap,
        id=id,
        as_id=as_id,
        base_gfn=base_gfn,
        npages=npages,
        userspace_addr=userspace_addr,
        flags=flags,
    )
    mutex_lock(kvm.slots_arch_lock)
    kvm_replace_memslot(kvm, None, slot)
    if flags & KVM_MEM_LOG_DIRTY_PAGES:
        logging_begins(kvm, slot)
    say(f"memslot {id} is created: gfns {base_gfn:#x} to {base_gfn + npages:#x}")
    mutex_unlock(kvm.slots_lock)


@routine
def kvm_delete_memslot(kvm: Kvm, id: int, as_id: int = 0) -> None:
    """KVM_SET_USER_MEMORY_REGION with size 0: the slot goes away. Sleeps. Raises ModelError if there is none.

    When it returns, notifiers do not know any more which gfns were behind the slot's memory.
    """
    mutex_lock(kvm.slots_lock)
    slot = id_to_memslot(kvm_memslots(kvm), id, as_id)
    _trace(id, as_id, 0, slot.base_gfn, 0, slot.userspace_addr)
    if slot.dirty_bitmap is not None:
        logging_ends(kvm, slot)
    mutex_lock(kvm.slots_arch_lock)
    invalid = kvm_invalidate_memslot(kvm, slot)
    kvm_replace_memslot(kvm, invalid, None)
    free(invalid)
    kvm_free_memslot(slot)
    say(f"memslot {id} is deleted")
    mutex_unlock(kvm.slots_lock)


@routine
def kvm_move_memslot(kvm: Kvm, id: int, base_gfn: int, as_id: int = 0) -> None:
    """KVM_SET_USER_MEMORY_REGION with another guest address: the slot's memory is at the gfns from `base_gfn` on
    from now on. Sleeps. Raises ModelError if there is no such slot, or another one in the way."""
    mutex_lock(kvm.slots_lock)
    slot = id_to_memslot(kvm_memslots(kvm), id, as_id)
    _trace(id, as_id, slot.flags, base_gfn, slot.npages, slot.userspace_addr)
    _expect_no_conflict(kvm, id, base_gfn, slot.npages, as_id, slot)
    if slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        logging_ends(kvm, slot)
    mutex_lock(kvm.slots_arch_lock)
    invalid = kvm_invalidate_memslot(kvm, slot)
    moved = _copy(slot, base_gfn, slot.flags, slot.dirty_bitmap, new(KvmArchMemorySlot))
    kvm_replace_memslot(kvm, invalid, moved)
    free(invalid)
    if slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        logging_begins(kvm, moved)
    say(f"memslot {id} is moved to gfn {base_gfn:#x}")
    free(slot.arch)
    free(slot)
    mutex_unlock(kvm.slots_lock)


@routine
def kvm_update_flags_memslot(kvm: Kvm, slot: KvmMemorySlot, flags: int) -> KvmMemorySlot:
    """Replace `slot` by a copy with other flags, which is returned; the old one is freed. slots_lock held. Sleeps.

    The dirty bitmap comes and goes with KVM_MEM_LOG_DIRTY_PAGES.
    """
    bitmap = None
    if flags & KVM_MEM_LOG_DIRTY_PAGES:
        bitmap = slot.dirty_bitmap or kvm_alloc_dirty_bitmap(kvm, slot.base_gfn, slot.npages)
    mutex_lock(kvm.slots_arch_lock)
    updated = _copy(slot, slot.base_gfn, flags, bitmap, slot.arch)
    kvm_replace_memslot(kvm, slot, updated)
    return updated


@routine
def kvm_free_memslot(slot: KvmMemorySlot) -> None:
    """Free a slot that nobody can find any more, and what its copies have shared."""
    if slot.dirty_bitmap is not None:
        free(slot.dirty_bitmap)
    free(slot.arch)
    free(slot)
