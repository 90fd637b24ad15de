"""Drive the model by a trace, and compare each reaction with what the kernel did.

What the trace says was done to KVM (faults, notifiers, memslot changes and other ioctls) is done to the model; what
KVM did is what the model must do, event for event, in the order of each thread. Where the two differ, other orders of
the threads' steps are tried (`orders.py`). If none explains the event, the model's tables are set to the trace's, and
the comparison goes on.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from interleaf.hw.platform import Paging
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmMmuPage, KvmParams, KvmVcpu

from . import records
from .assists import Assists
from .divergences import Divergences
from .drive import Driver, Thread
from .flows import Flows
from .follow import LiveDriver
from .lookups import Lookups
from .matching import Frames, Rule, kind_of, mismatch
from .options import Options, options_of
from .orders import InOrder, Orders, OutOfOrder
from .outcome import Result
from .parameters import read_parameters
from .reader import Trace
from .snapshots import Snapshot, read_snapshots, snapshot_number
from .spte import EPT, NPT
from .stepping import SteppedDriver
from .stimuli import Marker, SlotChange, Slots, marker_of, slot_change_of
from .walks import compare_tables

AHEAD = 4096
"""Events that are looked at before they are compared, to know what the host decided."""

FORESIGHT = 256
"""Events in which a thread's next one is looked for."""

GIVE_UP = 20
"""Divergences after which the model is not driven any further: all later events count as divergent."""


def heeded(event: records.Event) -> bool:
    """Does an event tell of anything that the model does? Others are left out."""
    match event.record:
        case records.Mark() | records.KvmPageFault() | records.KvmEntry() | records.KvmUserspaceExit():
            return True
        case records.HvaRange() | records.Hva() | records.Kprobe(symbol="svm_load_mmu_pgd"):
            return True
    return kind_of(event.record) is not None


class Comparison:
    """One comparison: feed it the events of a trace."""

    def __init__(self, driver: Driver, options: Options, snapshots: dict[int, Snapshot]) -> None:
        self.driver = driver
        self.result = Result(driver.design.name)
        self.frames = Frames(self.driver.note, self.driver.is_table)
        self._params = options.vms
        self._assists = Assists(driver, NPT if options.platform.paging is Paging.NPT else EPT)
        self._snapshots = snapshots
        self._slots = Slots()
        self._ahead: deque[records.Event] = deque()
        self._closing = False
        self._divergences = Divergences(self.driver, self.frames, self.result)
        self._lookups = Lookups(self.driver, self.frames, self._slots, self._ahead)
        self.flows = Flows(driver, self.frames, self._lookups, self._diverge)
        self._orders = Orders(driver, self) if isinstance(driver, SteppedDriver) else InOrder(self)
        self.driver.foresee = self._foresee

    def run(self, events: Iterable[records.Event]) -> Result:
        """Compare a whole trace."""
        for event in filter(heeded, events):
            self._ahead.append(event)
            if len(self._ahead) >= AHEAD:
                self._orders.next()
        while self._ahead:
            self._orders.next()
        if self.goes_on():
            self.flows.settle_all(None)
        return self.result

    # what a search for another order needs

    def goes_on(self) -> bool:
        """Is the model still driven?"""
        return self.result.divergent < GIVE_UP

    def more(self) -> bool:
        """Is there an event left?"""
        return bool(self._ahead)

    def next(self) -> records.Event:
        """Compare the next event, and say which it was."""
        event = self._ahead.popleft()
        self._feed(event)
        return event

    def again(self, events: Iterable[records.Event]) -> None:
        """These events come again, before all others."""
        self._ahead.extendleft(reversed(list(events)))

    def keep(self) -> Callable[[], None]:
        """What is known of the trace so far; to call the answer brings it back."""
        flows, result = self.flows.keep(), self.result.keep()
        slots, params, closing = dict(self._slots.slots), self._params, self._closing

        def bring_back() -> None:
            flows()
            self._slots.slots = dict(slots)
            self._params, self._closing = params, closing
            result()

        return bring_back

    def _foresee(self, thread: Thread, bold: bool = False) -> None:
        """A thread acts before its next event has its turn: what that event tells is known already. `bold`: it may
        begin what the event would make it begin."""
        for pid, flow in self.flows.known.items():
            event = self._next_of(pid) if thread is flow.thread or thread in flow.nested else None
            if event is not None:
                if bold:
                    self.flows.begin_early(thread, event)
                self._lookups.reveal(flow, event)
                self._assists.before(event)

    def _next_of(self, pid: int) -> records.Event | None:
        for event in islice(self._ahead, FORESIGHT):
            if event.task.pid == pid:
                return event
        return None

    # one event

    def _feed(self, event: records.Event) -> None:
        if not self.goes_on():
            reaction = kind_of(event.record) is not None
            self.result.events += reaction
            self.result.divergent += reaction
            return
        self._divergences.note(event)
        record = event.record
        pid = event.task.pid
        if kind_of(record) is not None:
            self._compare(event)
            return
        match record:
            case records.Mark():
                self._mark(event)
            case records.KvmPageFault():
                self._fault(event, record)
            case records.KvmEntry():
                self._enter(event, record.vcpu_id)
            case records.KvmUserspaceExit():
                self.flows.settle(pid, event)
            case records.HvaRange() | records.Hva() if self.driver.kvm is not None and not self._closing:
                self._notify(event)
            case records.Kprobe(symbol="svm_load_mmu_pgd"):
                self._load_pgd(event, record)

    def _compare(self, event: records.Event) -> None:
        """The kernel did something: so must the model."""
        self.result.events += 1
        if self.driver.kvm is None:
            self._diverge(event, "the trace has not told of the VM: no memslot was set before this")
            return
        flow = self.flows.of(event.task.pid)
        self._lookups.reveal(flow, event)
        rules = [Rule.AD_BITS] if self._assists.before(event) else []
        reaction = self.flows.next_reaction(flow, event)
        if reaction is None:
            self._diverge(event, "the model does nothing more here" + self.driver.complaint())
            self._divergences.follow(event)
            return
        reaction = self._assists.read_again(flow.thread, event, reaction, rules)
        reaction = self._assists.of_other_table(event, reaction, rules)
        wrong = mismatch(event, reaction, self.frames, rules)
        if wrong is not None:
            self._diverge(event, wrong)
            self._divergences.follow(event)
        elif self._orders.explains():
            self.result.explained[Rule.ORDER] += 1
        elif rules:
            self.result.explained[rules[-1]] += 1
        else:
            self.result.matched += 1

    # stimuli

    def _fault(self, event: records.Event, record: records.KvmPageFault) -> None:
        self.flows.settle(event.task.pid, event)
        if self.driver.kvm is None:
            return
        flow = self.flows.of(event.task.pid)
        flow.vcpu = record.vcpu_id or 0
        flow.faulting = True
        vcpu = self.driver.vcpu(flow.vcpu)
        if self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu)) is None:
            self.flows.ready(flow, event)
        gfn = record.fault_address >> 12
        self._lookups.begin(flow, gfn)
        self.driver.begin(flow.thread, "fault", vcpu, gfn, record.error_code)

    def _enter(self, event: records.Event, vcpu_id: int) -> None:
        self.flows.settle(event.task.pid, event)
        if self.driver.kvm is None:
            return
        flow = self.flows.of(event.task.pid)
        flow.vcpu = vcpu_id
        self.flows.ready(flow, event)

    def _load_pgd(self, event: records.Event, record: records.Kprobe) -> None:
        root = record.value("root")
        self.flows.settle(event.task.pid, event)
        if root is None or self.driver.kvm is None:
            return
        flow = self.flows.of(event.task.pid)
        vcpu = self.flows.ready(flow, event)
        mine = self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu))
        if isinstance(mine, KvmMmuPage) and not self.frames.bind(mine.pfn, root >> 12):
            self._diverge(event, f"the model's vCPU keeps the root {self.frames.real[mine.pfn]:x}")

    def _notify(self, event: records.Event) -> None:
        record, kvm = event.record, self.driver.kvm
        flow = self.flows.of(event.task.pid)
        if isinstance(record, records.HvaRange):
            start, end = record.start >> 12, -(-record.end >> 12)
            name = "unmap" if event.name == "kvm_unmap_hva_range" else "age"
            if name == "unmap":
                self.driver.host.take(start, end)
            command: tuple[object, ...] = (name, kvm, start, end)
        elif event.name == "kvm_test_age_hva":
            assert isinstance(record, records.Hva)
            command = "test age", kvm, record.hva >> 12
        else:
            return
        self.flows.interrupt(flow, event, command)

    def _mark(self, event: records.Event) -> None:
        marker = marker_of(event)
        if marker is None:
            return
        pid = event.task.pid
        number = snapshot_number(event)
        if number is not None and number in self._snapshots:
            self.flows.settle_all(event)
            tables = compare_tables(self.driver, self.frames, self._snapshots[number], self._assists.volatile)
            self.result.snapshots.append(tables)
            return
        change = slot_change_of(event)
        if change is not None:
            self.flows.settle(pid, event)
            self._change_slot(event, change)
            return
        driver = self.driver
        if driver.kvm is None:
            return
        flow = self.flows.of(pid)
        match marker.word:
            case "GET_DIRTY_LOG":
                self.flows.settle(pid, event)
                driver.begin(flow.thread, "get dirty log", driver.kvm, marker.number("slot") or 0)
            case "RING":
                flow.next = "reset dirty rings", driver.kvm
            case "RESET_DIRTY_RINGS" | "VM_CLOSED":
                if flow.next is not None:
                    self.flows.settle(pid, event)
                    command, flow.next = flow.next, None
                    driver.begin(flow.thread, *command)
                self.flows.settle(pid, event)
            case "STEP" if marker.text.startswith("CLEAR_DIRTY_LOG mask "):
                self.flows.settle(pid, event)
                flow.next = self._clearing(marker)
            case "CLEAR_DONE":
                self.flows.settle(pid, event)
            case "VM_DESTROY":
                self.flows.settle(pid, event)
                self._closing = True
                flow.next = "destroy VM", driver.kvm
            case "VM_DESTROYED":
                self.flows.settle(pid, event)
                driver.forget_vm()
                self._slots.slots = {}
                self._closing = False
            case "GET_DIRTY_LOG_DONE" | "SLOT_DONE" | "PREFAULT":
                self.flows.settle(pid, event)

    def _clearing(self, marker: Marker) -> tuple[object, ...] | None:
        written = re.match(r"CLEAR_DIRTY_LOG mask (?:0x)?([0-9a-f]{1,16})\b", marker.text)
        if written is None:
            return None
        mask = int(written[1], 16)
        for slot in self._slots.slots.values():
            if slot.flags & 1:
                base = slot.gpa >> 12
                gfns = tuple(base + bit for bit in range(mask.bit_length()) if mask >> bit & 1)
                return "clear dirty log", self.driver.kvm, slot.slot, gfns
        return None

    def _change_slot(self, event: records.Event, change: SlotChange) -> None:
        driver, flow = self.driver, self.flows.of(event.task.pid)
        if driver.kvm is None:
            driver.create_vm(flow.thread, self._params[0] if self._params else KvmParams())
            self._params = self._params[1:]
            driver.vcpu(0)
        old = self._slots.slots.get(change.slot)
        base, pages, hva = change.gpa >> 12, change.size >> 12, change.hva >> 12
        self._slots.change(change)
        if not change.size:
            if old is not None:
                driver.begin(flow.thread, "delete slot", driver.kvm, change.slot)
        elif old is None:
            driver.begin(flow.thread, "create slot", driver.kvm, change.slot, base, pages, hva, 0, change.flags)
        elif old.gpa != change.gpa:
            driver.begin(flow.thread, "move slot", driver.kvm, change.slot, base)
        elif old.flags != change.flags:
            if not change.flags & 1:
                self._lookups.find_huge_pages(event, change)
            driver.begin(flow.thread, "set flags", driver.kvm, change.slot, change.flags)

    def _diverge(self, event: records.Event, reason: str) -> None:
        flow = self.flows.known.get(event.task.pid)
        self._divergences.add(event, reason, (flow.nested or [flow.thread])[-1] if flow is not None else None)


def compare_trace(path: Path, design: Design, snapshots: Path | None = None, parameters: Path | None = None) -> Result:
    """Compare a trace, and its snapshots if there are any, with the model of `design` on a host with these module
    parameters. Raises Unreadable.

    First with a driver that cannot go back; if an event does not fit, and several threads have acted, all over again
    with one that can, because they may have acted in another order than that of their events.
    """
    options = options_of(Trace(path), KvmParams() if parameters is None else read_parameters(parameters))
    found = {} if snapshots is None else {snapshot.number: snapshot for snapshot in read_snapshots(snapshots)}
    trace = Trace(path)
    try:
        result = Comparison(LiveDriver(design, options.platform), options, found).run(trace)
    except OutOfOrder:
        trace = Trace(path)
        result = Comparison(SteppedDriver(design, options.platform), options, found).run(trace)
    if not trace.account.whole:
        result.gaps.append("the trace could not be read whole, or has lost events")
    if not result.events:
        result.gaps.append("the trace has no event to compare")
    missed = sorted(set(found) - {snapshot.number for snapshot in result.snapshots})
    if missed:
        result.gaps.append(f"the trace did not come to the snapshots {', '.join(map(str, missed))}")
    return result
