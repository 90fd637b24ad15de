"""Dirty logging: which pages of a memslot the guest has written (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c, v6.12).

While a slot's flag KVM_MEM_LOG_DIRTY_PAGES is set, the first write to a page is seen (it faults, or the processor
logs it), and the page's bit is set in the slot's bitmap. Userspace gets the bitmap and clears it, by which the pages
are protected again. Between the clearing of a bit and the TLB flush that ends it, a write may go unseen; it is told
of all the same, because userspace copies the page only after the flush.
"""

from __future__ import annotations

from collections.abc import Iterator

from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.linux.srcu import srcu_dereference
from interleaf.runtime import Memory, ModelError, checkpoint, free, operation, routine, say

from .dirty_protect import (
    kvm_arch_mmu_enable_log_dirty_pt_masked,
    kvm_flush_remote_tlbs_memslot,
    kvm_mmu_slot_apply_flags,
)
from .dirty_ring import kvm_dirty_ring_push
from .kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmDirtyBitmap, KvmMemorySlot, KvmVcpu
from .logged import collection_begins, collection_ends, gfns_in, logging_begins, logging_ends
from .memslots import gfn_to_memslot, id_to_memslot, kvm_memslots, kvm_update_flags_memslot, trace_set_flags
from .tdp.dirty import BITS_PER_LONG


@operation(
    focus=KvmDirtyBitmap.bits.element,
    words=lambda bitmap, offset, _: f"sets bit {offset:#x} of {bitmap.name}",
)
def set_bit_le(memory: Memory, bitmap: KvmDirtyBitmap, offset: int) -> None:
    """Set one bit of a dirty bitmap; others set other bits, or this one, at the same time."""
    memory.commute_cell(KvmDirtyBitmap.bits.element(bitmap, offset), True)


@operation(words=lambda bitmap, offsets, found: f"clears {bitmap.name}, where {_bits(found)} set")
def fetch_andnot(memory: Memory, bitmap: KvmDirtyBitmap, offsets: tuple[int, ...]) -> tuple[int, ...]:
    """Clear these bits, all in one word of the bitmap; returns those that were set (xchg, atomic_long_fetch_andnot)."""
    found = tuple(offset for offset in offsets if memory.load_cell(KvmDirtyBitmap.bits.element(bitmap, offset)))
    for offset in found:
        memory.store_cell(KvmDirtyBitmap.bits.element(bitmap, offset), False)
    return found


@operation(words=lambda bitmap, offsets, found: f"reads {bitmap.name}, where {_bits(found)} set")
def read_bits(memory: Memory, bitmap: KvmDirtyBitmap, offsets: tuple[int, ...]) -> tuple[int, ...]:
    """Which of these bits, all in one word of the bitmap, are set?"""
    return tuple(offset for offset in offsets if memory.load_cell(KvmDirtyBitmap.bits.element(bitmap, offset)))


def _bits(found: tuple[int, ...] | None) -> str:
    if not found:
        return "no bits are"
    return f"bit{'s' if len(found) > 1 else ''} {', '.join(map(hex, found))} {'are' if len(found) > 1 else 'is'}"


@routine
def mark_page_dirty_in_slot(kvm: Kvm, slot: KvmMemorySlot | None, gfn: int, vcpu: KvmVcpu | None = None) -> None:
    """`gfn` has been written, or is about to be: log it, in the dirty ring of `vcpu` or the bitmap of the slot, if
    the slot's dirty pages are logged. In a reader of `kvm->srcu`."""
    if slot is None or not slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        return
    offset = gfn - slot.base_gfn
    if kvm.params.dirty_ring_size and vcpu is not None:
        kvm_dirty_ring_push(vcpu, slot, offset)
    elif slot.dirty_bitmap is not None:
        set_bit_le(slot.dirty_bitmap, offset)


@routine
def vmx_flush_pml_buffer(vcpu: KvmVcpu) -> None:
    """The vCPU has left the guest: log the pages whose D bit the processor has set meanwhile, which it has noted.
    By the vCPU's own task, in a reader of `kvm->srcu`."""
    kvm = vcpu.kvm
    while vcpu.pml_buffer:
        checkpoint()
        gfn = vcpu.pml_buffer[0]
        slots = srcu_dereference(kvm, Kvm.memslots, kvm.srcu)
        assert slots is not None
        mark_page_dirty_in_slot(kvm, gfn_to_memslot(slots, gfn, vcpu.root_role.as_id), gfn, vcpu)
        vcpu.pml_buffer = vcpu.pml_buffer[1:]
        del slots, gfn


def _words_of(kvm: Kvm, slot: KvmMemorySlot, gfns: tuple[int, ...] | None) -> Iterator[tuple[int, ...]]:
    """The offsets in the slot of all its pages (or of `gfns`), a tuple for each word of the bitmap."""
    base = slot.base_gfn
    known = gfns_in(kvm, base, base + slot.npages)
    offsets = [gfn - base for gfn in known if gfns is None or gfn in gfns]
    for word in sorted({offset // BITS_PER_LONG for offset in offsets}):
        yield tuple(offset for offset in offsets if offset // BITS_PER_LONG == word)


@routine
def _protect(kvm: Kvm, slot: KvmMemorySlot, offsets: tuple[int, ...]) -> None:
    """Protect the pages at these offsets, of one word, again."""
    first = offsets[0] // BITS_PER_LONG * BITS_PER_LONG
    mask = sum(1 << offset - first for offset in offsets)
    kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, slot, first, mask)


@routine
def kvm_get_dirty_log(kvm: Kvm, slot_id: int, as_id: int = 0) -> tuple[int, ...]:
    """KVM_GET_DIRTY_LOG: the gfns of the slot that were written since this was last asked (kvm_get_dirty_log_protect).

    The pages are protected again before it returns, unless userspace has chosen to clear the log itself. Sleeps.
    Raises ModelError if there is no such slot, or it has no bitmap.
    """
    mutex_lock(kvm.slots_lock)
    slot = id_to_memslot(kvm_memslots(kvm), slot_id, as_id)
    bitmap = _bitmap_of(slot)
    owed = collection_begins(kvm, slot)
    manual = kvm.params.manual_protect
    words = tuple(_words_of(kvm, slot, None))
    dirty: tuple[int, ...] = ()
    if not manual:
        write_lock(kvm.mmu_lock)
    while words:
        checkpoint()
        found = read_bits(bitmap, words[0]) if manual else fetch_andnot(bitmap, words[0])
        if found and not manual:
            _protect(kvm, slot, found)
        words, dirty = words[1:], (*dirty, *found)
        del found
    if not manual:
        write_unlock(kvm.mmu_lock)
        if dirty:
            kvm_flush_remote_tlbs_memslot(kvm, slot)
    told = tuple(slot.base_gfn + offset for offset in dirty)
    collection_ends(kvm, slot, owed, told, not manual)
    mutex_unlock(kvm.slots_lock)
    say(f"the dirty log of memslot {slot_id} tells of {', '.join(map(hex, told)) or 'nothing'}")
    return told


@routine
def kvm_clear_dirty_log(kvm: Kvm, slot_id: int, gfns: tuple[int, ...], as_id: int = 0) -> None:
    """KVM_CLEAR_DIRTY_LOG: userspace is going to copy these pages; those that are dirty are clean from now on, and
    protected (kvm_clear_dirty_log_protect). Sleeps. Raises ModelError as kvm_get_dirty_log() does."""
    mutex_lock(kvm.slots_lock)
    slot = id_to_memslot(kvm_memslots(kvm), slot_id, as_id)
    bitmap = _bitmap_of(slot)
    words = tuple(_words_of(kvm, slot, gfns))
    cleared: tuple[int, ...] = ()
    write_lock(kvm.mmu_lock)
    while words:
        checkpoint()
        found = fetch_andnot(bitmap, words[0])
        if found:
            _protect(kvm, slot, found)
        words, cleared = words[1:], (*cleared, *found)
        del found
    write_unlock(kvm.mmu_lock)
    if cleared:
        kvm_flush_remote_tlbs_memslot(kvm, slot)
    collection_ends(kvm, slot, (), tuple(slot.base_gfn + offset for offset in cleared), True)
    mutex_unlock(kvm.slots_lock)


def _bitmap_of(slot: KvmMemorySlot) -> KvmDirtyBitmap:
    if slot.dirty_bitmap is None:
        raise ModelError(f"memslot {slot.id} has no dirty bitmap: its dirty pages are not logged, or in dirty rings.")
    return slot.dirty_bitmap


@routine
def kvm_vm_set_slot_flags(kvm: Kvm, slot_id: int, flags: int, as_id: int = 0) -> None:
    """KVM_SET_USER_MEMORY_REGION with other flags: KVM_MEM_LOG_DIRTY_PAGES comes or goes. Sleeps.

    Raises ModelError if there is no such slot, or if KVM_MEM_READONLY were to change, which it cannot.
    """
    mutex_lock(kvm.slots_lock)
    old = id_to_memslot(kvm_memslots(kvm), slot_id, as_id)
    trace_set_flags(old, flags)
    changed = old.flags ^ flags
    if changed & ~KVM_MEM_LOG_DIRTY_PAGES:
        raise ModelError(f"the flags of memslot {slot_id} cannot change from {old.flags:#x} to {flags:#x}.")
    if changed:
        if old.flags & KVM_MEM_LOG_DIRTY_PAGES:
            logging_ends(kvm, old)
        bitmap = old.dirty_bitmap
        slot = kvm_update_flags_memslot(kvm, old, flags)
        kvm_mmu_slot_apply_flags(kvm, slot)
        if bitmap is not None and slot.dirty_bitmap is None:
            free(bitmap)
        free(old)
        if flags & KVM_MEM_LOG_DIRTY_PAGES:
            logging_begins(kvm, slot)
            say(f"writes to memslot {slot_id} are logged from now on")
    mutex_unlock(kvm.slots_lock)
