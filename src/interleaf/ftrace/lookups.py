"""What the host has behind the guest's memory, as the trace shows it: the model's host is made to look like that.

A fault asks the host for a page. Which frame it gets, by an entry of which level, and whether it may be written is for
the host to decide, so it is taken from what the kernel did with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, pages_per_entry
from interleaf.kvm.kvm_host import KVM_PFN_NOSLOT
from interleaf.kvm.tdp.spte import is_host_writable_spte

from . import records
from .drive import Driver, Thread
from .matching import Frames
from .spte import PRESENT, is_leaf, pfn_of, points_to_table
from .stimuli import SlotChange, Slots, is_stimulus
from .walks import first_frame


@dataclass(slots=True)
class Flow:
    """What one thread of the trace is doing."""

    thread: Thread
    nested: list[Thread] = field(default_factory=list)
    """Threads that do what interrupts it: a notifier inside a fault."""
    fault_hva: int | None = None
    """A fault waits for the trace to say what the host has there."""
    next: tuple[object, ...] | None = None
    """What it will do when it reacts again."""
    vcpu: int | None = None
    """The vCPU that it runs; None if it has not run one."""
    faulting: bool = False
    """Its vCPU has left the guest because of a fault."""
    guessed: bool = False
    """It has done something of which only its next reaction shows that it was done."""

    def copy(self) -> Flow:
        return replace(self, nested=list(self.nested))


class Lookups:
    """What faults find in the host. `ahead` are the events that come next."""

    def __init__(
        self,
        driver: Driver,
        frames: Frames,
        slots: Slots,
        ahead: Iterable[records.Event],
        disallowed: frozenset[tuple[int, int]],
    ) -> None:
        """`disallowed`: see `Options`."""
        self.driver = driver
        self.frames = frames
        self._slots = slots
        self._ahead = ahead
        self._disallowed = disallowed

    def begin(self, flow: Flow, gfn: int) -> None:
        """A fault on `gfn` begins: it waits for the trace to show what the host has there."""
        hva = self._hva(gfn, self.driver.as_id(flow.vcpu or 0))
        flow.fault_hva = hva
        if hva is not None:
            self.driver.host.wait(hva)

    def reveal(self, flow: Flow, event: records.Event) -> None:
        """The trace shows which page a fault has found."""
        record = event.record
        if not isinstance(record, records.KvmMmuSpteRequested) or flow.fault_hva is None:
            return
        if record.pfn == KVM_PFN_NOSLOT:
            return
        hva, flow.fault_hva = flow.fault_hva, None
        level = record.level
        if level == PG_LEVEL_4K:  # of a page that is executed, which may be a part of a huge one all the same
            level = next((up for up in (PG_LEVEL_2M, PG_LEVEL_1G) if self._was_split(record, up)), level)
        self.driver.host.show(hva, record.pfn, level, self._writable(event, record))

    def _was_split(self, record: records.KvmMmuSpteRequested, level: int) -> bool:
        """Could the page be a part of a huge one that was split because it must not be executed?"""
        pages = pages_per_entry(level)
        return (record.pfn ^ record.gfn) % pages == 0 and (level, record.gfn & -pages) in self._disallowed

    def end(self, flow: Flow, event: records.Event | None) -> None:
        """A fault ends, and has asked for no page."""
        hva, flow.fault_hva = flow.fault_hva, None
        assert hva is not None
        if event is not None and isinstance(event.record, records.KvmUserspaceExit):
            self.driver.host.refuse(hva)
        else:
            self.driver.host.show(hva, 0, PG_LEVEL_4K, True)

    def find_huge_pages(self, event: records.Event, change: SlotChange) -> None:
        """Logging ends, and KVM asks the host where it has huge pages: tables that are dropped show where it has, or
        leafs, in kernels that drop those."""
        offset = (change.hva >> 12) - (change.gpa >> 12)
        for later in self._ahead:
            if later.task.pid == event.task.pid and is_stimulus(later):
                return
            found = later.record
            if not isinstance(found, records.KvmTdpMmuSpteChanged) or later.task.pid != event.task.pid:
                continue
            gfn, level, old = found.gfn, found.level, found.old_spte
            pfn = None
            if points_to_table(old, level):
                pfn = first_frame(self.driver, self.frames, gfn, level)
            elif old & PRESENT and not found.new_spte & PRESENT and level < PG_LEVEL_1G:
                level += 1
                pfn = pfn_of(old) - gfn % pages_per_entry(level)
                gfn &= -pages_per_entry(level)
            if pfn is not None:
                self.driver.host.show_huge(gfn + offset, level, pfn)

    def _hva(self, gfn: int, as_id: int) -> int | None:
        slot = self._slots.slot_of(gfn, as_id)
        return None if slot is None else (slot.hva >> 12) + gfn - (slot.gpa >> 12)

    def _writable(self, event: records.Event, record: records.KvmMmuSpteRequested) -> bool:
        """May the host's page be written? The SPTE that is made for it tells."""
        kvm = self.driver.kvm
        assert kvm is not None
        for later in self._ahead:
            if later.task.pid != event.task.pid:
                continue
            found = later.record
            if isinstance(found, records.KvmEntry | records.KvmUserspaceExit | records.KvmMmuSpteRequested):
                break
            if isinstance(found, records.KvmMmuSetSpte) and found.spte & PRESENT:
                return is_host_writable_spte(kvm.masks, found.spte)
            if (
                isinstance(found, records.KvmTdpMmuSpteChanged)
                and found.new_spte & PRESENT
                and is_leaf(found.new_spte, found.level)
            ):
                return is_host_writable_spte(kvm.masks, found.new_spte)
        return True
