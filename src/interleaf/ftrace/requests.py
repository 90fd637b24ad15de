"""What user space asks of KVM, whichever way a trace tells of it: the life of a VM, its memslots, its dirty log."""

from __future__ import annotations

import re
from collections.abc import Callable

from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, KvmParams

from . import records
from .drive import Driver
from .flows import Flows
from .lookups import Lookups
from .programs import Command
from .stimuli import (
    END_PROBES,
    RANGE_PROBES,
    SLOT_PROBES,
    Marker,
    Request,
    SlotChange,
    Slots,
    marker_of,
    slot_change_of,
)
from .unmarked import Unmarked

ON_SLOTS = frozenset({"create slot", "delete slot", "move slot", "set flags"})
"""Commands that change the memslots, one after the other."""


class Requests:
    """Does to the model's VMs what user space does to those of the trace."""

    def __init__(
        self,
        driver: Driver,
        flows: Flows,
        slots: Slots,
        lookups: Lookups,
        unmarked: Unmarked,
        params: tuple[KvmParams, ...],
    ) -> None:
        self._driver = driver
        self._flows = flows
        self._slots = slots
        self._lookups = lookups
        self._unmarked = unmarked
        self._params = params
        """Of the VMs that are still to come."""
        self.closing = False
        """The VM is going away."""

    def keep(self) -> Callable[[], None]:
        """What is so far; to call the answer brings it back."""
        slots, params, closing = dict(self._slots.slots), self._params, self.closing

        def bring_back() -> None:
            self._slots.slots = dict(slots)
            self._params, self.closing = params, closing

        return bring_back

    def probe(self, event: records.Event, symbol: str) -> None:
        """A function of KVM begins."""
        if symbol in SLOT_PROBES:
            self._set_memory_region(event)
        elif symbol in RANGE_PROBES:
            self._zap(event, RANGE_PROBES[symbol])
        elif symbol in END_PROBES and self._driver.kvm is not None and not self.closing:
            # the VM ends, or its process does, after which nobody can use it
            self._flows.settle(event.task.pid, event)
            self._close()
            self._driver.begin(self._flows.of(event.task.pid).thread, "destroy VM", self._driver.kvm)

    def _zap(self, event: records.Event, how: str) -> None:
        """How a range of gfns must be mapped is going to change."""
        probe, driver = event.record, self._driver
        assert isinstance(probe, records.Kprobe)
        start, end = probe.value("start"), probe.value("end")
        if start is None or end is None or driver.kvm is None:
            return
        thread = self._flows.of(event.task.pid).thread
        if how == "zap range":
            self._flows.settle(event.task.pid, event)
            driver.begin(thread, how, driver.kvm, start, end)
            return
        for hvas in self._slots.hvas(start, end):
            self._flows.settle(event.task.pid, event)
            driver.host.take(hvas.start, hvas.stop)
            driver.begin(thread, how, driver.kvm, hvas.start, hvas.stop)

    def mark(self, event: records.Event) -> None:
        """A driver says what it is going to do, or has done."""
        marker, pid = marker_of(event), event.task.pid
        if marker is None:
            return
        if marker.word == "SLOT":
            self._set_memory_region(event)
            return
        driver, settle = self._driver, self._flows.settle
        if marker.word == "VM_DESTROYED" and self.closing:
            settle(pid, event)
            self._forget_vm()
        if driver.kvm is None:
            return
        flow = self._flows.of(pid)
        match marker.word:
            case "GET_DIRTY_LOG":
                settle(pid, event)
                slot = marker.number("slot") or 0
                driver.begin(flow.thread, "get dirty log", driver.kvm, slot & 0xFFFF, slot >> 16)
            case "RING":
                flow.next = "reset dirty rings", driver.kvm
            case "RESET_DIRTY_RINGS" | "VM_CLOSED":
                if flow.next is not None:
                    settle(pid, event)
                    command, flow.next = flow.next, None
                    driver.begin(flow.thread, *command)
                settle(pid, event)
            case "STEP" if marker.text.startswith("CLEAR_DIRTY_LOG mask "):
                settle(pid, event)
                flow.next = self._clearing(marker)
            case "CLEAR_DONE":
                settle(pid, event)
            case "VM_DESTROY":
                settle(pid, event)
                self._close()
                flow.next = "destroy VM", driver.kvm
            case "GET_DIRTY_LOG_DONE" | "SLOT_DONE" | "PREFAULT":
                settle(pid, event)

    def _clearing(self, marker: Marker) -> Command | None:
        written = re.match(r"CLEAR_DIRTY_LOG mask (?:0x)?([0-9a-f]{1,16})\b", marker.text)
        if written is None:
            return None
        mask = int(written[1], 16)
        for slot in self._slots.slots.values():
            if slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
                base = slot.gpa >> 12
                gfns = tuple(base + bit for bit in range(mask.bit_length()) if mask >> bit & 1)
                return "clear dirty log", self._driver.kvm, slot.id, gfns, slot.as_id
        return None

    def _close(self) -> None:
        self._flows.end_notifiers()
        self.closing = True

    def _forget_vm(self) -> None:
        self._driver.forget_vm()
        self._slots.slots = {}
        self.closing = False

    def _set_memory_region(self, event: records.Event) -> None:
        change = slot_change_of(event)
        if change is None:
            return
        self._flows.settle(event.task.pid, event)
        probed = isinstance(event.record, records.Kprobe)
        if probed:  # slots_lock is held
            self._flows.settle_all(event, ON_SLOTS)
        if self.closing:
            if not change.size:
                return  # KVM takes its own memslots away from a VM that ends
            self._flows.settle_all(event)
            self._forget_vm()
        if change.size or self._driver.kvm is not None:
            self._change_slot(event, change)
            thread = self._flows.of(event.task.pid).thread
            command = self._driver.command(thread)
            if probed and command is not None and command[0] == "create slot":
                # nothing tells of its end, which others do not wait for, and it changes no entries
                self._driver.finish(thread)

    def _change_slot(self, event: records.Event, change: SlotChange) -> None:
        driver, flow = self._driver, self._flows.of(event.task.pid)
        if driver.kvm is None:
            params = self._params[0] if self._params else KvmParams()
            driver.create_vm(flow.thread, params, self._unmarked.nx_huge_pages())
            self._params = self._params[1:]
            driver.vcpu(0)
        base, pages, hva = change.gpa >> 12, change.size >> 12, change.hva >> 12
        kvm, id, as_id = driver.kvm, change.id, change.as_id
        match self._slots.change(change):
            case Request.CREATE:
                driver.begin(flow.thread, "create slot", kvm, id, base, pages, hva, as_id, change.flags)
            case Request.DELETE:
                driver.begin(flow.thread, "delete slot", kvm, id, as_id)
            case Request.MOVE:
                driver.begin(flow.thread, "move slot", kvm, id, base, as_id)
            case Request.FLAGS:
                if not change.flags & KVM_MEM_LOG_DIRTY_PAGES:
                    self._lookups.find_huge_pages(event, change)
                driver.begin(flow.thread, "set flags", kvm, id, change.flags, as_id)
