"""Write tracking: pages to which the guest must not write without KVM seeing it, because they are page tables that
KVM shadows, say (arch/x86/kvm/mmu/page_track.c, v6.12)."""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, gfn_round_for_level
from interleaf.linux.atomic import READ_ONCE, WRITE_ONCE
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.runtime import ModelError, routine, say

from .kvm_host import Kvm, KvmArchMemorySlot, KvmMemorySlot
from .logged import tracking_changes
from .memslots import gfn_to_memslot, kvm_memslots
from .tdp.wrprot import kvm_tdp_mmu_write_protect_gfn
from .tlb import kvm_flush_remote_tlbs


@routine
def _update_disallow_lpage(slot: KvmMemorySlot, gfn: int, by: int) -> None:
    """A reason more (or less) not to map `gfn` by a huge page (kvm_mmu_gfn_disallow_lpage, kvm_mmu_gfn_allow_lpage)."""
    for level in (PG_LEVEL_2M, PG_LEVEL_1G):
        slot.arch.disallow_lpage[level, gfn_round_for_level(gfn, level)] += by


def update_gfn_write_track(slot: KvmMemorySlot, gfn: int, by: int) -> None:
    """One more wants to see each write to `gfn`, or one less. mmu_lock held for write."""
    # faults look at it without mmu_lock
    WRITE_ONCE(slot.arch, KvmArchMemorySlot.gfn_write_track[gfn], slot.arch.gfn_write_track[gfn] + by)


@routine
def __kvm_write_track_add_gfn(kvm: Kvm, slot: KvmMemorySlot, gfn: int) -> None:
    """From now on, each write to `gfn` faults. mmu_lock held for write, and slots_lock or a reader of `kvm->srcu`."""
    lockdep_assert_held_write(kvm.mmu_lock)
    update_gfn_write_track(slot, gfn, 1)
    _update_disallow_lpage(slot, gfn, 1)
    if kvm_tdp_mmu_write_protect_gfn(kvm, slot, gfn, PG_LEVEL_4K):
        kvm_flush_remote_tlbs(kvm)
    tracking_changes(kvm, slot.as_id, gfn, True)


@routine
def __kvm_write_track_remove_gfn(kvm: Kvm, slot: KvmMemorySlot, gfn: int) -> None:
    """One less wants to see writes to `gfn`. Locks as for `__kvm_write_track_add_gfn`."""
    lockdep_assert_held_write(kvm.mmu_lock)
    update_gfn_write_track(slot, gfn, -1)
    _update_disallow_lpage(slot, gfn, -1)
    if not slot.arch.gfn_write_track[gfn]:
        tracking_changes(kvm, slot.as_id, gfn, False)


@routine
def kvm_write_track_add_gfn(kvm: Kvm, gfn: int, as_id: int = 0) -> None:
    """From now on, each write to `gfn` faults. Sleeps. Raises ModelError if the gfn is in no memslot."""
    mutex_lock(kvm.slots_lock)
    slot = gfn_to_memslot(kvm_memslots(kvm), gfn, as_id)
    if slot is None:
        raise ModelError(f"gfn {gfn:#x} is in no memslot: writes to it cannot be tracked.")
    write_lock(kvm.mmu_lock)
    __kvm_write_track_add_gfn(kvm, slot, gfn)
    write_unlock(kvm.mmu_lock)
    say(f"writes to gfn {gfn:#x} are tracked from now on")
    mutex_unlock(kvm.slots_lock)


@routine
def kvm_write_track_remove_gfn(kvm: Kvm, gfn: int, as_id: int = 0) -> None:
    """One less wants to see writes to `gfn`. Sleeps. Raises ModelError if the gfn is in no memslot."""
    mutex_lock(kvm.slots_lock)
    slot = gfn_to_memslot(kvm_memslots(kvm), gfn, as_id)
    if slot is None:
        raise ModelError(f"gfn {gfn:#x} is in no memslot: writes to it are not tracked.")
    write_lock(kvm.mmu_lock)
    __kvm_write_track_remove_gfn(kvm, slot, gfn)
    write_unlock(kvm.mmu_lock)
    mutex_unlock(kvm.slots_lock)


def kvm_gfn_is_write_tracked(slot: KvmMemorySlot | None, gfn: int) -> bool:
    """Must each write to `gfn` be seen? Without mmu_lock the answer may be old. In a reader of `kvm->srcu`."""
    return slot is not None and bool(READ_ONCE(slot.arch, KvmArchMemorySlot.gfn_write_track[gfn]))
