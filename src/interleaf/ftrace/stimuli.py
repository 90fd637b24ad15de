"""What happened to a VM from outside, whichever way a trace tells of it: memslot changes, and what a driver marks.

A driver writes `GT <workload> <word> name=value ...` into the trace; on a live host the probes that
`interleaf trace record` sets tell of memslot changes instead. Faults, notifiers and looked-up pages are events of
their own: KvmPageFault, HvaRange and Hva, KvmMmuSpteRequested.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

from .records import Event, Hva, HvaRange, Kprobe, KvmEntry, KvmPageFault, KvmUserspaceExit, Mark

PAGE_SHIFT = 12

SLOT_PROBES = frozenset({"__kvm_set_memory_region", "kvm_set_memory_region"})
"""Functions whose probes have the arguments slot, flags, gpa, size and hva (kernel virt/kvm/kvm_main.c)."""

ROOT_PROBES = frozenset({"svm_load_mmu_pgd", "vmx_load_mmu_pgd"})
"""Functions whose probes have the argument root: the physical address of the root that a vCPU loads."""

END_PROBES = frozenset({"kvm_mmu_zap_all", "kvm_tdp_mmu_zap_all"})
"""Functions that are called once in the life of a VM: when it, or its process, ends."""


RANGE_PROBES = {"kvm_zap_gfn_range": "zap range", "kvm_arch_pre_set_memory_attributes": "unmap"}
"""Functions whose probes have the arguments start and end, which are gfns, and what the model does for them."""

PROBES = SLOT_PROBES | ROOT_PROBES | END_PROBES | RANGE_PROBES.keys()
"""All functions whose probes tell of something that is done to KVM."""


class Marker(NamedTuple):
    """A driver's mark."""

    workload: str
    word: str
    """SLOT, STEP, JOB, SNAP, ..."""
    values: dict[str, str]
    text: str
    """All behind the word."""

    def number(self, name: str, base: int = 10) -> int | None:
        """A value as a number; None if there is none, or it is no number."""
        try:
            return int(self.values[name], base)
        except (KeyError, ValueError):
            return None


def marker_of(event: Event) -> Marker | None:
    """The driver's mark that an event is; None if it is none."""
    if not isinstance(event.record, Mark):
        return None
    words = event.record.text.split(None, 3)
    if len(words) < 3 or words[0] != "GT":
        return None
    text = words[3] if len(words) > 3 else ""
    pairs = (word.partition("=") for word in text.split())
    return Marker(words[1], words[2], {name: value for name, equals, value in pairs if equals}, text)


class SlotChange(NamedTuple):
    """User space sets a memslot. Size 0 deletes it. All sizes and addresses in bytes."""

    slot: int
    """As user space gives it: the address space in bits 16 to 31, and the slot's number in it below."""
    gpa: int
    size: int
    hva: int
    flags: int
    """1: log dirty pages, 2: read-only (KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY)."""

    @property
    def as_id(self) -> int:
        """The address space: 1 is that of system management mode."""
        return self.slot >> 16

    @property
    def id(self) -> int:
        """The slot's number in its address space."""
        return self.slot & 0xFFFF

    def contains(self, gfn: int) -> bool:
        """Is `gfn` in the slot? Whose address space it is in does not matter."""
        return self.gpa >> PAGE_SHIFT <= gfn < self.gpa + self.size >> PAGE_SHIFT


class Request(enum.Enum):
    """What a memslot change amounts to (enum kvm_mr_change)."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS = "change the flags"
    NOTHING = "nothing"
    """The slot is like that already, or KVM refuses the change."""


def slot_change_of(event: Event) -> SlotChange | None:
    """The memslot change that an event begins; None if it is none."""
    marker = marker_of(event)
    if marker is not None and marker.word == "SLOT":
        slot, flags = marker.number("id"), marker.number("flags", 16)
        gpa, size, hva = marker.number("gpa", 16), marker.number("size", 16), marker.number("hva", 16)
    elif isinstance(event.record, Kprobe) and event.record.symbol in SLOT_PROBES:
        value = event.record.value
        slot, gpa, size, hva, flags = value("slot"), value("gpa"), value("size"), value("hva"), value("flags")
    else:
        return None
    if slot is None or gpa is None or size is None or hva is None or flags is None:
        return None
    return SlotChange(slot, gpa, size, hva, flags)


def is_stimulus(event: Event) -> bool:
    """Does the event end what its thread was doing, because something else is done to KVM?"""
    match event.record:
        case KvmEntry() | KvmPageFault() | KvmUserspaceExit() | HvaRange() | Hva():
            return True
        case Kprobe(symbol=symbol):
            return symbol in PROBES
    return marker_of(event) is not None


@dataclass(slots=True)
class Slots:
    """The memslots as they are after the changes so far."""

    slots: dict[int, SlotChange] = field(default_factory=dict)

    def asks(self, change: SlotChange) -> Request:
        """What a change amounts to, and whether KVM makes it (kvm_set_memory_region)."""
        old = self.slots.get(change.slot)
        if not change.size:
            return Request.NOTHING if old is None else Request.DELETE
        if old is not None:
            same = change.hva == old.hva and change.size == old.size
            if not same or (change.flags ^ old.flags) & KVM_MEM_READONLY:
                return Request.NOTHING
            if change.gpa == old.gpa:
                return Request.NOTHING if change.flags == old.flags else Request.FLAGS
        for other in self.slots.values():
            apart = other.gpa + other.size <= change.gpa or change.gpa + change.size <= other.gpa
            if other.slot != change.slot and other.as_id == change.as_id and not apart:
                return Request.NOTHING
        return Request.CREATE if old is None else Request.MOVE

    def change(self, change: SlotChange) -> Request:
        """Take in one change, unless KVM refuses it."""
        request = self.asks(change)
        if request is Request.DELETE:
            del self.slots[change.slot]
        elif request is not Request.NOTHING:
            self.slots[change.slot] = change
        return request

    def slot_of(self, gfn: int, as_id: int) -> SlotChange | None:
        """The slot that `gfn` is in."""
        for slot in self.slots.values():
            if slot.as_id == as_id and slot.contains(gfn):
                return slot
        return None

    def logged_slot_of(self, gfn: int, as_id: int) -> SlotChange | None:
        """The same, if the slot's dirty pages are logged."""
        slot = self.slot_of(gfn, as_id)
        return slot if slot is not None and slot.flags & KVM_MEM_LOG_DIRTY_PAGES else None

    def hvas(self, start: int, end: int) -> list[range]:
        """The pages of the host behind the gfns from `start` to `end`."""
        found = []
        for slot in self.slots.values():
            base, hva = slot.gpa >> PAGE_SHIFT, slot.hva >> PAGE_SHIFT
            low, high = max(start, base), min(end, base + (slot.size >> PAGE_SHIFT))
            if low < high:
                found.append(range(low - base + hva, high - base + hva))
        return found

    def slots_in(self, gfn: int, pages: int) -> list[int]:
        """The slots that have any of the `pages` gfns from `gfn` on."""
        low, high = gfn << PAGE_SHIFT, gfn + pages << PAGE_SHIFT
        return sorted(slot.slot for slot in self.slots.values() if slot.gpa < high and low < slot.gpa + slot.size)

    def gfns(self, start: int, end: int) -> list[range]:
        """The gfns behind [start, end) of the host's addresses."""
        found = []
        for slot in self.slots.values():
            low, high = max(start, slot.hva), min(end, slot.hva + slot.size)
            if low < high:
                first = slot.gpa + low - slot.hva >> PAGE_SHIFT
                last = slot.gpa + high - slot.hva + (1 << PAGE_SHIFT) - 1 >> PAGE_SHIFT
                found.append(range(first, last))
        return found
