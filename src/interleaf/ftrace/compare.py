"""Drive the model by a trace, and compare each reaction with what the kernel did.

What the trace says was done to KVM (faults, notifiers, memslot changes and other ioctls) is done to the model; what
KVM did is what the model must do, event for event, in the order of each thread. Where the two differ, other orders of
the threads' steps are tried (`orders.py`). If none explains the event, the model's tables are set to the trace's, and
the comparison goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmMmuPage, KvmVcpu

from . import records
from .access import error_code_of
from .assists import Assists
from .divergences import Divergences
from .drive import Driver, Thread
from .flows import Flows
from .follow import LiveDriver
from .lookups import Flow, Lookups
from .matching import Frames, Rule, kind_of, mismatch
from .options import Options, options_of
from .orders import InOrder, Orders, OutOfOrder
from .outcome import Result
from .parameters import Parameters, read_parameters
from .reader import Trace
from .requests import Requests
from .snapshots import Snapshot, read_snapshots, snapshot_number
from .spte import layout_for
from .stepping import SteppedDriver
from .stimuli import PROBES, ROOT_PROBES, Slots
from .texts import Parse
from .unmarked import Unmarked
from .walks import compare_tables

AHEAD = 4096
"""Events that are looked at before they are compared, to know what the host decided."""

FORESIGHT = 256
"""Events in which a thread's next one is looked for."""

GIVE_UP = 20
"""Divergences after which the model is not driven any further: all later events count as divergent."""


def heeded(events: Iterable[records.Event]) -> Iterator[records.Event]:
    """Those events that tell of anything that the model does. An exit only tells which vCPU the thread runs."""
    vcpus: dict[int, int | None] = {}
    for event in events:
        record, pid = event.record, event.task.pid
        match record:
            case records.KvmExit(vcpu_id=vcpu_id):
                if vcpu_id is not None and vcpus.get(pid) != vcpu_id:
                    vcpus[pid] = vcpu_id
                    yield event
            case records.Kprobe(symbol=symbol):
                if symbol in PROBES:
                    yield event
            case records.KvmEntry(vcpu_id=vcpu_id):
                vcpus[pid] = vcpu_id
                yield event
            case records.KvmPageFault(vcpu_id=vcpu_id):
                if vcpu_id is not None:
                    vcpus[pid] = vcpu_id
                yield event
            case records.Mark() | records.KvmUserspaceExit() | records.HvaRange() | records.Hva():
                yield event
            case _ if kind_of(record) is not None:
                yield event


class Comparison:
    """One comparison: feed it the events of a trace."""

    def __init__(self, driver: Driver, options: Options, snapshots: dict[int, Snapshot]) -> None:
        self.driver = driver
        self.result = Result(driver.design.name)
        self.frames = Frames(self.driver.note, self.driver.is_table)
        self._assists = Assists(driver, layout_for(options.platform.paging))
        self._snapshots = snapshots
        self._slots = Slots()
        self._ahead: deque[records.Event] = deque()
        self._divergences = Divergences(self.driver, self.frames, self.result)
        self._lookups = Lookups(self.driver, self.frames, self._slots, self._ahead, options.disallowed)
        self._unmarked = Unmarked(self.driver, self._slots, self._ahead, options.nx_huge_pages)
        self.flows = Flows(driver, self.frames, self._lookups, self._unmarked, self._diverge)
        self._requests = Requests(self.driver, self.flows, self._slots, self._lookups, self._unmarked, options.vms)
        self.reordered = False
        self._orders = Orders(driver, self) if isinstance(driver, SteppedDriver) else InOrder(self)
        self.driver.foresee = self._foresee

    def run(self, events: Iterable[records.Event]) -> Result:
        """Compare a whole trace."""
        for event in heeded(events):
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
        parts = [part.keep() for part in (self.flows, self._requests, self._unmarked, self._divergences, self.result)]

        def bring_back() -> None:
            for part in parts:
                part()

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
            if event.task.pid == pid and not isinstance(event.record, records.KvmExit):
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
                if not self._snapshot(event):
                    self._requests.mark(event)
            case records.KvmPageFault():
                self._fault(event, record)
            case records.KvmEntry():
                self._enter(event, record.vcpu_id)
            case records.KvmUserspaceExit():
                self.flows.settle(pid, event)
            case records.HvaRange() | records.Hva() if self.driver.kvm is not None and not self._requests.closing:
                self._notify(event)
            case records.KvmExit(vcpu_id=vcpu_id) if vcpu_id is not None and self.driver.kvm is not None:
                self.flows.of(pid).vcpu = vcpu_id
            case records.Kprobe(symbol=symbol):
                if symbol in ROOT_PROBES:
                    self._load_pgd(event, record)
                else:
                    self._requests.probe(event, symbol)

    def _compare(self, event: records.Event) -> None:
        """The kernel did something: so must the model."""
        self.result.events += 1
        if self.driver.kvm is None:
            self._diverge(event, "the trace has not told of the VM: no memslot was set before this, or the VM is gone")
            return
        flow = self.flows.of(event.task.pid)
        self._lookups.reveal(flow, event)
        rules = [Rule.AD_BITS] if self._assists.before(event) else []
        reaction = self.flows.next_reaction(flow, event, rules)
        if isinstance(event.record, records.KvmMmuZapAllFast):
            self._unmarked.everything_zapped(flow.thread)
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
        elif self.reordered:
            self.result.explained[Rule.ORDER] += 1
        elif rules:
            self.result.explained[Rule.UNNAMED if Rule.UNNAMED in rules else rules[-1]] += 1
        else:
            self.result.matched += 1

    # stimuli

    def _fault(self, event: records.Event, record: records.KvmPageFault) -> None:
        self.flows.settle(event.task.pid, event)
        if self.driver.kvm is None:
            return
        flow = self.flows.of(event.task.pid)
        flow.vcpu = (flow.vcpu or 0) if record.vcpu_id is None else record.vcpu_id
        flow.faulting = True
        vcpu = self.driver.vcpu(flow.vcpu)
        if self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu)) is None:
            self.flows.ready(flow, event)
        self._change_address_space(flow, event)
        gfn = record.fault_address >> 12
        self._lookups.begin(flow, gfn)
        self.driver.begin(flow.thread, "fault", vcpu, gfn, error_code_of(record, self.driver.platform))

    def _change_address_space(self, flow: Flow, event: records.Event) -> None:
        """If the fault turns out to be in another address space, the vCPU has gone there before it."""
        index = flow.vcpu or 0
        as_id = self._unmarked.as_id_of_fault(event)
        if as_id is not None and as_id != self.driver.as_id(index):
            self.flows.guess(flow, event, self._unmarked.mode(self.driver.vcpu(index), as_id))

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
        flow.vcpu = self._unmarked.vcpu_after(event, flow.vcpu)
        vcpu = self.flows.ready(flow, event)
        mine = self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu))
        if not isinstance(mine, KvmMmuPage):
            return
        known = self._root_in(root >> 12)
        if known is not None and known is not mine:
            self.flows.guess(flow, event, self._unmarked.switched(vcpu, known))
            mine = self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu))
        if not isinstance(mine, KvmMmuPage):
            self._diverge(event, "the model's vCPU has no root, although it has been told to go to this one")
        elif not self.frames.bind(mine.pfn, root >> 12):
            self._diverge(event, f"the model's vCPU keeps the root {self.frames.real[mine.pfn]:x}")

    def _root_in(self, frame: int) -> KvmMmuPage | None:
        """The valid root of the model that stands for a frame."""
        role = KvmMmuPage.role.cell
        for sp in self.driver.tables_at(self.driver.platform.levels, 0):
            if self.frames.real.get(sp.pfn) == frame and not self.driver.memory.peek(role(sp)).invalid:
                return sp
        return None

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

    def _snapshot(self, event: records.Event) -> bool:
        """Is the event a snapshot of the page tables? If so, they are compared."""
        number = snapshot_number(event)
        if number is None or number not in self._snapshots:
            return False
        self.flows.settle_all(event)
        tables = compare_tables(self.driver, self.frames, self._snapshots[number], self._assists.volatile)
        self.result.snapshots.append(tables)
        return True

    def _diverge(self, event: records.Event, reason: str) -> None:
        flow = self.flows.known.get(event.task.pid)
        self._divergences.add(event, reason, (flow.nested or [flow.thread])[-1] if flow is not None else None)


def compare_trace(
    path: Path,
    design: Design,
    snapshots: Path | None = None,
    parameters: Path | None = None,
    parsers: Mapping[bytes, Parse] | None = None,
) -> Result:
    """Compare a trace, and its snapshots if there are any, with the model of `design` on a host with these module
    parameters. `parsers` read the texts of its events, by name. Raises Unreadable.

    First with a driver that cannot go back; if an event does not fit, and several threads have acted, all over again
    with one that can, because they may have acted in another order than that of their events.
    """
    options = options_of(Trace(path, parsers), Parameters() if parameters is None else read_parameters(parameters))
    found = {} if snapshots is None else {snapshot.number: snapshot for snapshot in read_snapshots(snapshots)}
    trace = Trace(path, parsers)
    try:
        result = Comparison(LiveDriver(design, options.platform), options, found).run(trace)
    except OutOfOrder:
        trace = Trace(path, parsers)
        result = Comparison(SteppedDriver(design, options.platform), options, found).run(trace)
    if not trace.account.whole:
        result.gaps.append("the trace could not be read whole, or has lost events")
    if not result.events:
        result.gaps.append("the trace has no event to compare")
    missed = sorted(set(found) - {snapshot.number for snapshot in result.snapshots})
    if missed:
        result.gaps.append(f"the trace did not come to the snapshots {', '.join(map(str, missed))}")
    return result
