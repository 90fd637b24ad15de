"""Memslots: which host memory is behind which gfns (virt/kvm/kvm_main.c, v6.12).

The set of slots is replaced as a whole, under slots_lock and slots_arch_lock, and read under SRCU. A slot is
deleted in two steps: first a copy that is marked INVALID takes its place, so that faults wait while what it maps
is zapped; then it goes. A swap waits until no notifier is between its start and its end, so that both see the
same slots (52ac8b358b0c).

In the model each swap allocates a new set and frees the old one after the grace period. From 5.17 on the kernel
switches between two sets of trees; what readers see, and for how long, is the same.
"""

from __future__ import annotations

from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rcu import rcu_assign_pointer, rcu_dereference_protected
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.linux.srcu import synchronize_srcu_expedited
from interleaf.linux.wait import wait_event
from interleaf.runtime import ModelError, free, new, routine, say

from .kvm_host import (
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    KVM_MEMSLOT_INVALID,
    NR_ADDRESS_SPACES,
    Kvm,
    KvmMemorySlot,
    KvmMemslots,
)
from .zap import kvm_arch_flush_shadow_memslot


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


def _no_active_invalidation(kvm: Kvm) -> bool:
    """Is no notifier between its start and its end? If so, mn_invalidate_lock is held on return, to keep it so."""
    spin_lock(kvm.mn_invalidate_lock)
    if kvm.mn_active_invalidate_count == 0:
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
    replacement.generation = generation + NR_ADDRESS_SPACES
    free(old)


@routine
def kvm_invalidate_memslot(kvm: Kvm, slot: KvmMemorySlot) -> KvmMemorySlot:
    """Put a copy that is marked INVALID in the place of `slot`, wait, and zap what is mapped; returns the copy.

    slots_lock and slots_arch_lock held; the latter is released for a while. Sleeps.
    """
    slots = kvm_memslots(kvm).slots
    invalid = new(
        KvmMemorySlot,
        id=slot.id,
        as_id=slot.as_id,
        base_gfn=slot.base_gfn,
        npages=slot.npages,
        userspace_addr=slot.userspace_addr,
        flags=slot.flags | KVM_MEMSLOT_INVALID,
    )
    say(f"memslot {slot.id} is marked invalid")
    kvm_swap_active_memslots(kvm, tuple(invalid if other is slot else other for other in slots))
    kvm_arch_flush_shadow_memslot(kvm, slot)
    mutex_lock(kvm.slots_arch_lock)
    return invalid


@routine
def kvm_create_memslot(kvm: Kvm, id: int, base_gfn: int, npages: int, userspace_addr: int, as_id: int = 0) -> None:
    """KVM_SET_USER_MEMORY_REGION with a new slot: the pages at `userspace_addr` (an hva) become guest memory.

    Sleeps. Raises ModelError if a slot with that id exists, or one that overlaps.
    """
    mutex_lock(kvm.slots_lock)
    slots = kvm_memslots(kvm).slots
    for other in slots:
        if other.as_id != as_id:
            continue
        if other.id == id or (other.base_gfn < base_gfn + npages and base_gfn < other.base_gfn + other.npages):
            raise ModelError(f"memslot {id} (gfns {base_gfn:#x} to {base_gfn + npages:#x}) conflicts with {other.id}.")
    slot = new(KvmMemorySlot, id=id, as_id=as_id, base_gfn=base_gfn, npages=npages, userspace_addr=userspace_addr)
    mutex_lock(kvm.slots_arch_lock)
    kvm_swap_active_memslots(kvm, (*slots, slot))
    say(f"memslot {id} is created: gfns {base_gfn:#x} to {base_gfn + npages:#x}")
    mutex_unlock(kvm.slots_lock)


@routine
def kvm_delete_memslot(kvm: Kvm, id: int, as_id: int = 0) -> None:
    """KVM_SET_USER_MEMORY_REGION with size 0: the slot goes away. Sleeps. Raises ModelError if there is none.

    When it returns, notifiers do not know any more which gfns were behind the slot's memory.
    """
    mutex_lock(kvm.slots_lock)
    found = [slot for slot in kvm_memslots(kvm).slots if slot.id == id and slot.as_id == as_id]
    if not found:
        raise ModelError(f"there is no memslot {id} in address space {as_id} to delete.")
    mutex_lock(kvm.slots_arch_lock)
    invalid = kvm_invalidate_memslot(kvm, found[0])
    kvm_swap_active_memslots(kvm, tuple(slot for slot in kvm_memslots(kvm).slots if slot is not invalid))
    free(invalid)
    free(found[0])
    say(f"memslot {id} is deleted")
    mutex_unlock(kvm.slots_lock)
