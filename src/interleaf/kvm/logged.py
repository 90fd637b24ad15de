"""What the guest has written, and userspace has not been told of: ghost state for I10 and for tracked pages.

I10: every write of the guest to a slot whose dirty pages are logged is told to userspace by a collection that ends
after the write: getting the dirty log (with KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: clearing it), or resetting the dirty
rings. A write that a collection does not tell of must so be told of by a later one. That cannot be decided as long as
whoever is to log the write has not done it yet: a vCPU whose write fault to the page is being handled, or the
processor's log (PML) that is not emptied yet. Otherwise, a page that was written before the collection began, and
that it does not tell of, is lost: nothing will make the next write to it fault.

None of this exists in a kernel. The functions that take a `Memory` are parts of the guest's access.
"""

from __future__ import annotations

from collections.abc import Iterator

from interleaf.hw.page_table import ENTRIES_PER_TABLE, PG_LEVEL_2M, PG_LEVEL_4K, entries_for, gfn_round_for_level
from interleaf.hw.walk import Translation
from interleaf.runtime import Array, Memory, Object, Plain, Violation, operation

from .kvm_host import Kvm, KvmMemorySlot, KvmMmuPage, KvmVcpu, kvm_dirty_ring
from .tdp.ghost import note

Range = tuple[int, int, int]
"""Address space, first gfn, and the gfn behind the last."""


def _plain(owner: type[Object], name: str, default: object) -> Plain[object]:
    field = Plain(default)
    field.__set_name__(owner, name)
    return field


_logging = _plain(Kvm, "logging", ())
"""Of a VM: the ranges of gfns whose dirty pages are logged, from when enabling has returned."""
_tracked = _plain(Kvm, "tracked", frozenset())
"""Of a VM: the (address space, gfn) to which the guest must not write without KVM seeing it."""
_faulting = _plain(KvmVcpu, "faulting", None)
"""Of a vCPU: the gfn on which its last access, a write, has faulted."""
_unreported: Array[bool] = Array(False)
"""Of a VM, by (address space, gfn): written since it was last collected."""
_unreported.__set_name__(Kvm, "unreported")


def gfns_in(kvm: Kvm, start: int, end: int) -> tuple[int, ...]:
    """The gfns start <= gfn < end that the VM can ever have."""
    first = gfn_round_for_level(start, PG_LEVEL_2M)
    return tuple(
        base + index
        for base in range(first, end, ENTRIES_PER_TABLE)
        for index in entries_for(kvm.gfns, base, PG_LEVEL_4K)
        if start <= base + index < end
    )


def note_access(memory: Memory, vcpu: KvmVcpu, root: KvmMmuPage, gfn: int, write: bool, found: Translation) -> None:
    """The guest accesses a page through `root`: what becomes of a write. The processor's part is to log it (PML)."""
    faulting = None
    if write:
        as_id = memory.look(KvmMmuPage.role.cell(root)).as_id
        logged = _is_logged(memory, vcpu.kvm, gfn, as_id)
        if found.pfn is not None:
            _note_write(memory, vcpu, gfn, as_id, logged)
            if found.dirtied and vcpu.kvm.platform.pml and not memory.look(KvmVcpu.guest_mode.cell(vcpu)):
                memory.store(vcpu, KvmVcpu.pml_buffer, (*memory.load(vcpu, KvmVcpu.pml_buffer), gfn))
        elif logged:
            faulting = gfn
    cell = _faulting.cell(vcpu)
    if memory.look(cell) != faulting:
        note(memory, cell, faulting)


def _note_write(memory: Memory, vcpu: KvmVcpu, gfn: int, as_id: int, logged: bool) -> None:
    kvm = vcpu.kvm
    if (as_id, gfn) in memory.look(_tracked.cell(kvm)):
        message = f"vCPU{vcpu.index} writes gfn {gfn:#x}, to which writes are tracked, and KVM does not see it"
        memory.violate(Violation("write-tracking", message, object=kvm.name))
    if logged:
        cell = _unreported.element(kvm, (as_id, gfn))
        if not memory.look(cell):
            note(memory, cell, True)


def _is_logged(memory: Memory, kvm: Kvm, gfn: int, as_id: int) -> bool:
    ranges: tuple[Range, ...] = memory.look(_logging.cell(kvm))
    return any(space == as_id and start <= gfn < end for space, start, end in ranges)


def _range_of(memory: Memory, slot: KvmMemorySlot) -> Range:
    base: int = memory.look(KvmMemorySlot.base_gfn.cell(slot))
    npages: int = memory.look(KvmMemorySlot.npages.cell(slot))
    return memory.look(KvmMemorySlot.as_id.cell(slot)), base, base + npages


def _written_in(kvm: Kvm, as_id: int, start: int, end: int) -> Iterator[int]:
    """The gfns start <= gfn < end that may have been written. In a VM that may map every gfn, those of which that was
    ever said."""
    if kvm.gfns is not None:
        yield from gfns_in(kvm, start, end)
        return
    for space, gfn in _unreported.touched(kvm):
        if space == as_id and start <= gfn < end:
            yield gfn


@operation(marked=False)
def logging_begins(memory: Memory, kvm: Kvm, slot: KvmMemorySlot) -> None:
    """From now on the guest's writes to the slot must be collected."""
    note(memory, _logging.cell(kvm), (*memory.look(_logging.cell(kvm)), _range_of(memory, slot)))


@operation(marked=False)
def logging_ends(memory: Memory, kvm: Kvm, slot: KvmMemorySlot) -> None:
    """From now on nobody wants to know of writes to the slot."""
    gone = _range_of(memory, slot)
    note(memory, _logging.cell(kvm), tuple(kept for kept in memory.look(_logging.cell(kvm)) if kept != gone))
    as_id, start, end = gone
    for gfn in _written_in(kvm, as_id, start, end):
        cell = _unreported.element(kvm, (as_id, gfn))
        if memory.look(cell):
            note(memory, cell, False)


@operation(marked=False)
def tracking_changes(memory: Memory, kvm: Kvm, as_id: int, gfn: int, tracked: bool) -> None:
    """From now on writes to the gfn are tracked, or not."""
    known: frozenset[tuple[int, int]] = memory.look(_tracked.cell(kvm))
    note(memory, _tracked.cell(kvm), known | {(as_id, gfn)} if tracked else known - {(as_id, gfn)})


@operation(marked=False)
def collection_begins(memory: Memory, kvm: Kvm, slot: KvmMemorySlot) -> tuple[int, ...]:
    """Userspace begins to collect the dirty pages of the slot: the gfns of which the collection must tell."""
    as_id, start, end = _range_of(memory, slot)
    promised = set(_promised(memory, kvm, slot, start))
    return tuple(
        gfn
        for gfn in _written_in(kvm, as_id, start, end)
        if gfn not in promised and memory.look(_unreported.element(kvm, (as_id, gfn)))
    )


def _promised(memory: Memory, kvm: Kvm, slot: KvmMemorySlot, base_gfn: int) -> Iterator[int]:
    """The gfns that somebody is going to log, or that are logged where no collection has taken them from yet."""
    id = memory.look(KvmMemorySlot.id.cell(slot))
    for vcpu in memory.look(Kvm.vcpus.cell(kvm)):
        yield memory.look(_faulting.cell(vcpu))
        yield from memory.look(KvmVcpu.pml_buffer.cell(vcpu))
        ring = vcpu.dirty_ring
        first, behind = (
            memory.look(kvm_dirty_ring.reset_index.cell(ring)),
            memory.look(kvm_dirty_ring.dirty_index.cell(ring)),
        )
        for index in range(first, behind):
            entry = memory.look(kvm_dirty_ring.entries.element(ring, index % kvm.params.dirty_ring_size))
            if entry is not None and entry.slot == id:
                yield base_gfn + entry.offset


@operation(marked=False)
def collection_ends(
    memory: Memory, kvm: Kvm, slot: KvmMemorySlot, owed: tuple[int, ...], told: tuple[int, ...], protected: bool
) -> None:
    """The collection has told of the gfns `told`, and if `protected`, the next write to these is logged again (I10)."""
    memory.exercise("I10")
    as_id = memory.look(KvmMemorySlot.as_id.cell(slot))
    for gfn in owed:
        if gfn not in told:
            message = (
                f"the guest has written gfn {gfn:#x} before its dirty pages were collected, but is not told of: the "
                "write is lost"
            )
            memory.violate(Violation("I10", message, object=kvm.name))
    if protected:
        for gfn in told:
            cell = _unreported.element(kvm, (as_id, gfn))
            if memory.look(cell):
                note(memory, cell, False)
