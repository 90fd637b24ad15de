"""Dirty rings: each vCPU logs the pages that it writes in a ring of its own (virt/kvm/dirty_ring.c, v6.12).

Userspace collects entries at any time, while the vCPU goes on, and then has KVM reset them (KVM_RESET_DIRTY_RINGS), by
which the pages are protected again; only then it copies them. A vCPU whose ring is nearly full returns to userspace.
"""

from __future__ import annotations

from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.runtime import Memory, Violation, checkpoint, operation, routine, say

from .dirty_protect import kvm_arch_mmu_enable_log_dirty_pt_masked
from .kvm_host import KVM_MEM_LOG_DIRTY_PAGES, DirtyGfn, Kvm, KvmMemorySlot, KvmRequest, KvmVcpu, kvm_dirty_ring
from .logged import collection_begins, collection_ends
from .memslots import kvm_memslots
from .tdp.dirty import BITS_PER_LONG
from .tlb import kvm_flush_remote_tlbs
from .trace import trace_kvm_dirty_ring_exit, trace_kvm_dirty_ring_push, trace_kvm_dirty_ring_reset

KVM_DIRTY_RING_RSVD_ENTRIES = 1
"""Entries that are free when the ring counts as full, for what a vCPU may still log before it returns to userspace.
(In the kernel 64, and 512 more with PML; rings are as small as a scenario can fill here.)"""


@operation(words=lambda vcpu, entry, _: f"logs offset {entry.offset:#x} of memslot {entry.slot} in its dirty ring")
def _push(memory: Memory, vcpu: KvmVcpu, entry: DirtyGfn) -> None:
    ring, size = vcpu.dirty_ring, vcpu.kvm.params.dirty_ring_size
    index: int = memory.load(ring, kvm_dirty_ring.dirty_index)
    used = index - memory.load(ring, kvm_dirty_ring.reset_index)
    if used >= size:
        memory.violate(Violation("BUG", f"the dirty ring of vCPU{vcpu.index} is full", object=ring.name))
    memory.store_cell(kvm_dirty_ring.entries.element(ring, index % size), entry)
    memory.store(ring, kvm_dirty_ring.dirty_index, index + 1)
    if used + 1 >= size - KVM_DIRTY_RING_RSVD_ENTRIES:
        pending: int = memory.load(vcpu, KvmVcpu.requests)
        memory.store(vcpu, KvmVcpu.requests, pending | 1 << KvmRequest.DIRTY_RING_SOFT_FULL)


@routine
def kvm_dirty_ring_push(vcpu: KvmVcpu, slot: KvmMemorySlot, offset: int) -> None:
    """Log the page at `offset` of the slot, and request the return to userspace if the ring is nearly full. By the
    vCPU's own task."""
    _push(vcpu, DirtyGfn(slot.as_id, slot.id, offset))
    trace_kvm_dirty_ring_push(vcpu.index, slot.id, offset)


@routine
def kvm_dirty_ring_check_request(vcpu: KvmVcpu) -> bool:
    """KVM_REQ_DIRTY_RING_SOFT_FULL was pending: must the vCPU return to userspace (KVM_EXIT_DIRTY_RING_FULL)? Not if
    the ring has been emptied meanwhile."""
    ring = vcpu.dirty_ring
    used = READ_ONCE(ring, kvm_dirty_ring.dirty_index) - READ_ONCE(ring, kvm_dirty_ring.reset_index)
    if used < vcpu.kvm.params.dirty_ring_size - KVM_DIRTY_RING_RSVD_ENTRIES:
        return False
    trace_kvm_dirty_ring_exit(vcpu.index)
    say(f"the dirty ring of vCPU{vcpu.index} is full: KVM_EXIT_DIRTY_RING_FULL")
    return True


@operation(words=lambda vcpu, size, found: f"collects {len(found or ())} entries from the dirty ring of {vcpu.name}")
def _collect(memory: Memory, vcpu: KvmVcpu, size: int) -> tuple[DirtyGfn, ...]:
    ring = vcpu.dirty_ring
    found: list[DirtyGfn] = []
    fetch: int = memory.load(ring, kvm_dirty_ring.fetch_index)
    while len(found) < size:
        cell = kvm_dirty_ring.entries.element(ring, fetch % size)
        entry: DirtyGfn | None = memory.load_cell(cell)
        if entry is None or entry.collected:
            break
        memory.store_cell(cell, entry._replace(collected=True))
        found.append(entry)
        fetch += 1
    memory.store(ring, kvm_dirty_ring.fetch_index, fetch)
    return tuple(found)


def dirty_ring_collect(vcpu: KvmVcpu) -> tuple[DirtyGfn, ...]:
    """Userspace takes what is in a vCPU's ring (as the selftests' function of that name); one thread of it does."""
    found: tuple[DirtyGfn, ...] = _collect(vcpu, vcpu.kvm.params.dirty_ring_size)
    return found


@operation(
    words=lambda vcpu, size, entry: f"resets {'an entry' if entry else 'no more'} of the dirty ring of {vcpu.name}"
)
def _reset_entry(memory: Memory, vcpu: KvmVcpu, size: int) -> DirtyGfn | None:
    """The next entry that userspace has collected, which is free from now on."""
    ring = vcpu.dirty_ring
    index: int = memory.load(ring, kvm_dirty_ring.reset_index)
    cell = kvm_dirty_ring.entries.element(ring, index % size)
    entry: DirtyGfn | None = memory.load_cell(cell)
    if entry is None or not entry.collected:
        return None
    memory.store_cell(cell, None)
    memory.store(ring, kvm_dirty_ring.reset_index, index + 1)
    return entry


@routine
def kvm_reset_dirty_gfn(kvm: Kvm, entry: DirtyGfn, mask: int) -> None:
    """Protect the pages at entry.offset + n of the entry's slot again, for the bits n of `mask`. slots_lock held."""
    found = [slot for slot in kvm_memslots(kvm).slots if (slot.as_id, slot.id) == (entry.as_id, entry.slot)]
    if found and entry.offset + mask.bit_length() <= found[0].npages:
        write_lock(kvm.mmu_lock)
        kvm_arch_mmu_enable_log_dirty_pt_masked(kvm, found[0], entry.offset, mask)
        write_unlock(kvm.mmu_lock)


def _coalesce(current: DirtyGfn, mask: int, entry: DirtyGfn) -> tuple[DirtyGfn, int] | None:
    """Both in one word of pages, if that is possible."""
    delta = entry.offset - current.offset
    if (entry.as_id, entry.slot) != (current.as_id, current.slot):
        return None
    if 0 <= delta < BITS_PER_LONG:
        return current, mask | 1 << delta
    if -BITS_PER_LONG < delta < 0 and (mask << -delta).bit_length() <= BITS_PER_LONG:
        return entry, mask << -delta | 1
    return None


@routine
def kvm_dirty_ring_reset(kvm: Kvm, vcpu: KvmVcpu) -> tuple[DirtyGfn, ...]:
    """Reset what userspace has collected from one ring; returns it. Pages that are near each other are protected
    together. slots_lock held."""
    lockdep_assert_held(kvm.slots_lock)
    size = kvm.params.dirty_ring_size
    current: DirtyGfn | None = None
    mask, done = 0, tuple[DirtyGfn, ...]()
    while True:
        checkpoint()
        entry: DirtyGfn | None = _reset_entry(vcpu, size)
        if entry is None:
            break
        done = (*done, entry)
        both = None if current is None else _coalesce(current, mask, entry)
        if both is None and current is not None:
            kvm_reset_dirty_gfn(kvm, current, mask)
        current, mask = (entry, 1) if both is None else both
        del entry, both
    if current is not None:
        kvm_reset_dirty_gfn(kvm, current, mask)
    trace_kvm_dirty_ring_reset(vcpu.index)
    return done


@routine
def kvm_vm_ioctl_reset_dirty_pages(kvm: Kvm) -> int:
    """KVM_RESET_DIRTY_RINGS: protect again what userspace has collected from all rings; returns how many entries.
    Sleeps."""
    mutex_lock(kvm.slots_lock)
    logged = tuple(slot for slot in kvm_memslots(kvm).slots if slot.flags & KVM_MEM_LOG_DIRTY_PAGES)
    owed = tuple(collection_begins(kvm, slot) for slot in logged)
    done: tuple[DirtyGfn, ...] = ()
    vcpus = kvm.vcpus
    while vcpus:
        checkpoint()
        done = (*done, *kvm_dirty_ring_reset(kvm, vcpus[0]))
        vcpus = vcpus[1:]
    told = tuple(_gfns_of(slot, done) for slot in logged)
    mutex_unlock(kvm.slots_lock)
    if done:
        kvm_flush_remote_tlbs(kvm)
    for slot, expected, found in zip(logged, owed, told, strict=True):
        collection_ends(kvm, slot, expected, found, True)
    return len(done)


def _gfns_of(slot: KvmMemorySlot, entries: tuple[DirtyGfn, ...]) -> tuple[int, ...]:
    mine = {entry.offset for entry in entries if (entry.as_id, entry.slot) == (slot.as_id, slot.id)}
    return tuple(slot.base_gfn + offset for offset in sorted(mine))
