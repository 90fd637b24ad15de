"""What happened to a VM from outside, whichever way a trace tells of it: memslot changes, and what a driver marks.

A driver writes `GT <workload> <word> name=value ...` into the trace; on a live host the probes that
`interleaf trace record` sets tell of memslot changes instead. Faults, notifiers and looked-up pages are events of
their own: KvmPageFault, HvaRange and Hva, KvmMmuSpteRequested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .records import Event, Kprobe, Mark

PAGE_SHIFT = 12

SLOT_PROBES = frozenset({"__kvm_set_memory_region", "kvm_set_memory_region"})
"""Functions whose probes have the arguments slot, flags, gpa, size and hva (kernel virt/kvm/kvm_main.c)."""


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
    gpa: int
    size: int
    hva: int
    flags: int
    """1: log dirty pages, 2: read-only (KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY)."""


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


@dataclass(slots=True)
class Slots:
    """The memslots as they are after the changes so far."""

    slots: dict[int, SlotChange] = field(default_factory=dict)

    def change(self, change: SlotChange) -> None:
        """Take in one change. That it succeeds is assumed."""
        if change.size:
            self.slots[change.slot] = change
        else:
            self.slots.pop(change.slot, None)

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
