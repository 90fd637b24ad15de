"""What a trace says of the machine and of how its VMs were made, in a first look at all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from interleaf.hw.page_table import PG_LEVEL_4K, ROOT_LEVEL, pages_per_entry
from interleaf.hw.platform import EPT, NPT, Paging, Platform
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, KvmParams

from . import records
from .parameters import Parameters
from .spte import EPT as EPT_LAYOUT
from .spte import WRITABLE, Change, change, is_leaf, is_present, layout_for, layout_of, points_to_table
from .stimuli import END_PROBES, Request, Slots, marker_of, slot_change_of
from .tasks import RECOVERY

AD_TYPE_MASK, AD_WRPROT_ONLY = 3 << 52, 2 << 52
"""What an entry of EPT says of its A and D bits (SPTE_TDP_AD_MASK)."""

RING_SIZE = 1 << 16
"""Entries of a dirty ring whose size the trace does not tell."""


@dataclass(frozen=True, slots=True)
class Options:
    """The machine, and its VMs in the order of their making."""

    platform: Platform
    vms: tuple[KvmParams, ...]
    nx_huge_pages: tuple[bool, ...] = (False,)
    """Were huge pages not executable: before the first kvm_mmu_zap_all_fast, before the second one, and so on?"""
    disallowed: frozenset[tuple[int, int]] = frozenset()
    """Level and first gfn of tables that have been there although the host had a huge page: because pages of it were
    executed, and huge pages were not executable."""


def options_of(events: Iterable[records.Event], chosen: Parameters) -> Options:
    """Look through a trace; `chosen` holds wherever it does not say otherwise."""
    look = _Look(chosen)
    for event in events:
        look.at(event)
    return look.options()


@dataclass(slots=True)
class _Look:
    """What the trace has said so far."""

    chosen: Parameters
    platform: Platform | None = None
    levels: int = ROOT_LEVEL
    ad_bits: bool | None = None
    pml: bool | None = None
    """Logging has begun by taking D away, and not W."""
    vms: list[KvmParams] = field(default_factory=list)
    alive: bool = False
    """The last VM has not ended yet."""
    used: bool = False
    """It has had a memslot: without, it does nothing that is compared, and is not counted."""
    ring: bool = False
    """The next VM will have a dirty ring."""
    slots: Slots = field(default_factory=Slots)
    beginning: set[int] = field(default_factory=set)
    """Threads that make logging begin."""
    requested: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By thread: gfn and level of the page that its fault could map."""
    taking: set[int] = field(default_factory=set)
    """Threads that take a memslot away, or move it, and have not zapped everything for that."""
    disallowed: set[tuple[int, int]] = field(default_factory=set)
    nx: list[bool | None] = field(default_factory=lambda: [None])

    def at(self, event: records.Event) -> None:
        """Take in one event."""
        record, pid = event.record, event.task.pid
        match record:
            case records.KvmTdpMmuSpteChanged():
                if pid in self.taking:
                    self._ends(pid)
                self._changed(record, pid)
                if event.task.comm == RECOVERY and points_to_table(record.old_spte, record.level):
                    self._disallowed(record.level, record.gfn)
            case records.KvmMmuPage(ad_disabled=off, level=level):
                self.levels = max(self.levels, level)
                if off is not None and record.direct:
                    self.ad_bits = not off
            case records.KvmMmuSpteRequested(gfn=gfn, level=level):
                self.requested[pid] = gfn, level
            case records.KvmMmuSetSpte(gfn=gfn, level=level):
                wanted, larger = self.requested.pop(pid, (gfn, level))
                if level < larger:  # a smaller page is there that may be executed, and must stay
                    self._disallowed(larger, wanted & -pages_per_entry(larger))
            case records.KvmMmuSplitHugePage(errno=0) if pid in self.beginning:
                self._vm(eager_page_split=True)
            case records.KvmMmuZapAllFast():
                if self.used:
                    self.nx.append(None)
                self.taking.discard(pid)
            case records.KvmDirtyRingPush():
                if self.vms and not self.vms[-1].dirty_ring_size:
                    self._vm(dirty_ring_size=RING_SIZE)
            case records.KvmEntry() | records.HvaRange():
                self._ends(pid)
            case records.Mark() | records.Kprobe():
                self._told(event)

    def _disallowed(self, level: int, gfn: int) -> None:
        self.disallowed.add((level, gfn))
        self.nx[-1] = True

    def _changed(self, record: records.KvmTdpMmuSpteChanged, pid: int) -> None:
        """The format of the page tables shows in the first entry that points to a table."""
        old, new, level = record.old_spte, record.new_spte, record.level
        if level == PG_LEVEL_4K:
            if new & AD_TYPE_MASK == AD_WRPROT_ONLY and is_present(new):
                self.pml = True  # so are pages of a nested guest marked whose writes the processor would not log
            elif pid in self.beginning and is_present(old) and is_present(new):
                self.pml = not (old ^ new) & WRITABLE
            return
        self.levels = max(self.levels, level)
        if points_to_table(new, level):
            if self.platform is None:
                self.platform = EPT if layout_of(new) is EPT_LAYOUT else NPT
        elif is_present(new) and is_leaf(new, level):
            if self.platform is not None and self.nx[-1] is None and not is_present(old):
                self.nx[-1] = layout_for(self.platform.paging).executable(new) != new
            if pid in self.beginning and change(old, new, level) is Change.PROTECT:
                self._vm(eager_page_split=False)

    def _ends(self, pid: int) -> None:
        """A thread has done what it was asked to do with a memslot."""
        self.beginning.discard(pid)
        if pid in self.taking:
            self.taking.discard(pid)
            self._vm(slot_zap_all=False)

    def _vm(self, **values: bool | int) -> None:
        if self.vms:
            self.vms[-1] = replace(self.vms[-1], **values)  # type: ignore[arg-type]

    def _told(self, event: records.Event) -> None:
        pid = event.task.pid
        request = slot_change_of(event)
        if request is not None:
            self._ends(pid)
            if not self.alive and request.size:
                self._make()
            self.used |= request.size > 0
            kind = self.slots.change(request)
            if kind is Request.FLAGS and request.flags & KVM_MEM_LOG_DIRTY_PAGES:
                self.beginning.add(pid)
            elif kind in (Request.DELETE, Request.MOVE):
                self.taking.add(pid)
            return
        if isinstance(event.record, records.Kprobe):
            if event.record.symbol in END_PROBES:
                self._end()
            return
        marker = marker_of(event)
        if marker is None:
            return
        self._ends(pid)
        if marker.word == "VM_CREATE" and "ncpu" in marker.values:
            self._make()
        elif marker.word == "ENABLE_DIRTY_RING":
            self.ring = True
        elif marker.word == "VM_DESTROYED":
            self._end()
        elif self.vms:
            self.vms[-1] = _marked(self.vms[-1], marker.word, marker.text)

    def _make(self) -> None:
        self._end()
        self.vms.append(replace(self.chosen.vm, dirty_ring_size=RING_SIZE if self.ring else 0))
        self.alive, self.ring = True, False

    def _end(self) -> None:
        if self.alive and not self.used:
            self.vms.pop()
        self.alive = self.used = False
        self.slots.slots.clear()

    def options(self) -> Options:
        """All in all."""
        platform = self.platform or NPT
        if platform.paging is Paging.EPT:
            ad_bits = self.chosen.ad_bits is not False if self.ad_bits is None else self.ad_bits
            pml = self.chosen.pml if self.pml is None else self.pml
            platform = replace(platform, ad_bits=ad_bits, pml=ad_bits and bool(pml))
        nx, known = [], self.chosen.nx_huge_pages
        for shown in self.nx:
            known = known if shown is None else shown
            nx.append(known)
        return Options(replace(platform, levels=self.levels), tuple(self.vms), tuple(nx), frozenset(self.disallowed))


def _marked(params: KvmParams, word: str, text: str) -> KvmParams:
    """What a driver's mark says of the VM."""
    if word == "DISABLE_QUIRK_SLOT_ZAP_ALL":
        return replace(params, slot_zap_all=False)
    if word == "CLEAR_DONE":
        return replace(params, manual_protect=True)
    if re.search("initially.{0,5}set", text, re.IGNORECASE):
        return replace(params, manual_protect=True, initially_all_set=True)
    if word == "STEP" and "lazy" in text:
        return replace(params, eager_page_split=False)
    return params
