"""Drive the model by a trace, and compare each reaction with what the kernel did.

What the trace says was done to KVM (faults, notifiers, memslot changes and other ioctls) is done to the model; what
KVM did is what the model must do, event for event, in the order of each thread. Where the two differ, other orders of
the threads' steps are tried (`orders.py`). If none explains the event, the model's tables are set to the trace's, and
the comparison goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmMmuPage, KvmVcpu

from . import records
from .access import error_code_of
from .assists import Assists
from .divergences import Divergences
from .drive import Driver, Reaction, Thread
from .follow import LiveDriver
from .lookups import Flow, Lookups
from .matching import Frames, Rule, kind_of, mismatch, show
from .options import Options, options_of
from .orders import InOrder, Orders, OutOfOrder
from .outcome import Result
from .parameters import Parameters, read_parameters
from .reader import Trace
from .requests import Requests
from .snapshots import Snapshot, read_snapshots, snapshot_number
from .spte import layout_for
from .stepping import SteppedDriver
from .stimuli import ROOT_PROBES, Slots
from .tasks import WORKER
from .unmarked import Unmarked
from .walks import compare_tables

AHEAD = 4096
"""Events that are looked at before they are compared, to know what the host decided."""

FORESIGHT = 256
"""Events in which a thread's next one is looked for."""

GIVE_UP = 20
"""Divergences after which the model is not driven any further: all later events count as divergent."""


class Comparison:
    """One comparison: feed it the events of a trace."""

    def __init__(self, driver: Driver, options: Options, snapshots: dict[int, Snapshot]) -> None:
        self.driver = driver
        self.result = Result(driver.design.name)
        self.frames = Frames(self.driver.note, self.driver.is_table)
        self._assists = Assists(driver, layout_for(options.platform.paging))
        self._snapshots = snapshots
        self._flows: dict[int, Flow] = {}
        self._slots = Slots()
        self._ahead: deque[records.Event] = deque()
        self._divergences = Divergences(self.driver, self.frames, self.result)
        self._lookups = Lookups(self.driver, self.frames, self._slots, self._ahead, options.disallowed)
        self._unmarked = Unmarked(self.driver, self._slots, self._ahead)
        self._requests = Requests(self.driver, self, self._slots, self._lookups, options)
        self._orders = Orders(driver, self) if isinstance(driver, SteppedDriver) else InOrder(self)
        self.driver.foresee = self._foresee

    def run(self, events: Iterable[records.Event]) -> Result:
        """Compare a whole trace."""
        source = iter(events)
        for event in source:
            self._ahead.append(event)
            if len(self._ahead) >= AHEAD:
                self._orders.next()
        while self._ahead:
            self._orders.next()
        if self.result.divergent < GIVE_UP:
            self.settle_all(None)
        return self.result

    # what a search for another order needs

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
        flows = {pid: flow.copy() for pid, flow in self._flows.items()}
        requests, result = self._requests.keep(), self.result.keep()

        def bring_back() -> None:
            self._flows = {pid: flow.copy() for pid, flow in flows.items()}
            requests()
            result()

        return bring_back

    def busy(self) -> list[int]:
        """The threads of the trace that are in the middle of something."""
        idle = self.driver.idle
        return [pid for pid, flow in self._flows.items() if not idle(flow.thread) or flow.nested]

    def several(self) -> bool:
        """Has more than one thread of the trace done anything?"""
        return len(self._flows) > 1

    def threads(self, pid: int) -> tuple[Thread, ...]:
        """The threads that do what this thread of the trace does."""
        flow = self._flows.get(pid)
        return () if flow is None else (flow.thread, *flow.nested)

    def _foresee(self, thread: Thread) -> None:
        """A thread takes steps before its next event has its turn: what that event tells is known already."""
        for pid, flow in self._flows.items():
            event = self._next_of(pid) if thread is flow.thread or thread in flow.nested else None
            if event is not None:
                self._lookups.reveal(flow, event)
                self._assists.before(event)

    def _next_of(self, pid: int) -> records.Event | None:
        for event in islice(self._ahead, FORESIGHT):
            if event.task.pid == pid and not isinstance(event.record, records.KvmExit):
                return event
        return None

    # one event

    def _feed(self, event: records.Event) -> None:
        if self.result.divergent >= GIVE_UP:
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
                self.settle(pid, event)
            case records.HvaRange() | records.Hva() if self.driver.kvm is not None and not self._requests.closing:
                self._notify(event)
            case records.KvmExit(vcpu_id=vcpu_id) if vcpu_id is not None and self.driver.kvm is not None:
                self.flow(pid).vcpu = vcpu_id
            case records.Kprobe(symbol=symbol):
                if symbol in ROOT_PROBES:
                    self._load_pgd(event, record)
                else:
                    self._requests.probe(event, symbol)

    def flow(self, pid: int) -> Flow:
        """What a thread of the trace is doing."""
        flow = self._flows.get(pid)
        if flow is None:
            flow = self._flows[pid] = Flow(self.driver.thread())
        return flow

    def _compare(self, event: records.Event) -> None:
        """The kernel did something: so must the model."""
        self.result.events += 1
        if self.driver.kvm is None:
            self._diverge(event, "the trace has not told of the VM: no memslot was set before this, or the VM is gone")
            return
        flow = self.flow(event.task.pid)
        self._lookups.reveal(flow, event)
        rules = [Rule.AD_BITS] if self._assists.before(event) else []
        reaction = self._next_reaction(flow, event, rules)
        if isinstance(event.record, records.KvmMmuZapAllFast):
            self._requests.everything_zapped(event)
        if reaction is None:
            self._diverge(event, "the model does nothing more here" + self._why())
            self._divergences.follow(event)
            return
        reaction = self._assists.of_other_table(event, self._assists.read_again(flow.thread, event, reaction), rules)
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

    def _why(self) -> str:
        found = "; ".join(list(self.driver.violations)[-2:])
        return f" ({found})" if found else ""

    def _next_reaction(self, flow: Flow, event: records.Event, rules: list[Rule]) -> Reaction | None:
        driver = self.driver
        while flow.nested:
            if driver.advance(flow.nested[-1]):
                return driver.reaction(flow.nested[-1])
            if not driver.idle(flow.nested[-1]):
                return None
            driver.give_back(flow.nested.pop())
        if driver.advance(flow.thread):
            return driver.reaction(flow.thread)
        if not driver.idle(flow.thread):
            return None
        flow.fault_hva = None
        if flow.next is None:
            stray = self._stray(event)
            if stray is not None:
                return stray
        if driver.kvm is None:
            return None
        self._begin_unmarked(flow, event, rules)
        return driver.reaction(flow.thread) if driver.advance(flow.thread) else None

    def _stray(self, event: records.Event) -> Reaction | None:
        """What a task does that the model has started by itself."""
        driver = self.driver
        found = self._wander()
        if found is not None or not event.task.comm.startswith(WORKER):
            return found
        # who is to queue the work may not have come so far: who zaps everything, or puts the last reference on a root
        for flow in sorted(self._flows.values(), key=lambda flow: flow is not self._flows.get(self._requests.zapper)):
            for thread in (flow.thread, *flow.nested):
                if not driver.idle(thread) and not thread.reactions:
                    driver.foresee(thread)
                    driver.advance(thread)
            found = self._wander()
            if found is not None:
                break
        return found

    def _wander(self) -> Reaction | None:
        while self.driver.wander():
            pass
        return self.driver.stray()

    def _begin_unmarked(self, flow: Flow, event: records.Event, rules: list[Rule]) -> None:
        """A thread reacts to something that the trace does not name."""
        record = event.record
        if flow.next is not None:
            command, flow.next = flow.next, None
            self.driver.begin(flow.thread, *command)
            return
        if flow.faulting and isinstance(record, records.KvmMmuSpteRequested | records.FastPageFault):
            return
        if isinstance(record, records.KvmMmuPage):
            flow.vcpu = self._unmarked.vcpu_after(event, flow.vcpu)
        self._look_for_requests(flow, self.driver.vcpu(flow.vcpu))
        command = self._unmarked.command(flow, event, self._requests.nx_huge_pages(1))
        if command[0] != "enter":
            rules.append(Rule.UNNAMED)
        match command:
            case "prefault", _, int(gfn), _:
                self._lookups.begin(flow, gfn)
        self.driver.begin(flow.thread, *command)
        self._lookups.reveal(flow, event)

    def _look_for_requests(self, flow: Flow, vcpu: KvmVcpu) -> None:
        self.driver.looked(flow.thread, KvmVcpu.requests.cell(vcpu), KvmVcpu.mmu_root.cell(vcpu))

    def settle_all(self, event: records.Event | None, doing: frozenset[str] | None = None) -> None:
        """All threads have, or those that are doing one of these commands."""
        for pid, flow in list(self._flows.items()):
            command = self.driver.command(flow.thread)
            if doing is None or (command is not None and command[0] in doing):
                self.settle(pid, event)

    def settle(self, pid: int, event: records.Event | None) -> None:
        """A thread has come to the end of what it was doing: so must the model have."""
        flow = self._flows.get(pid)
        if flow is None:
            return
        for thread in (*reversed(flow.nested), flow.thread):
            self._finish(flow, thread, event)
        for nested in flow.nested:
            if self.driver.idle(nested):
                self.driver.give_back(nested)
        flow.nested.clear()
        flow.faulting = False

    def _finish(self, flow: Flow, thread: Thread, event: records.Event | None) -> None:
        driver = self.driver
        if thread is flow.thread and flow.fault_hva is not None and not driver.idle(thread):
            driver.finish(thread)
            self._lookups.end(flow, event)
        while not driver.idle(thread):
            if driver.advance(thread):
                self._surplus(driver.reaction(thread), event)
            elif not driver.idle(thread):
                if event is not None:
                    self._diverge(event, "the model is still waiting for something" + self._why())
                if thread is flow.thread:
                    flow.thread = driver.thread()  # the other one waits for ever
                return

    def _surplus(self, reaction: Reaction, event: records.Event | None) -> None:
        if event is not None:
            self._diverge(event, f"the model does more before this: {show(reaction, self.frames)}")

    # stimuli

    def _fault(self, event: records.Event, record: records.KvmPageFault) -> None:
        self.settle(event.task.pid, event)
        if self.driver.kvm is None:
            return
        flow = self.flow(event.task.pid)
        if record.vcpu_id is not None:
            flow.vcpu = record.vcpu_id
        flow.faulting = True
        vcpu = self.driver.vcpu(flow.vcpu)
        if self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu)) is None:
            self._ready(flow, event)
        self._change_address_space(flow, event)
        gfn = record.fault_address >> 12
        self._lookups.begin(flow, gfn)
        self.driver.begin(flow.thread, "fault", vcpu, gfn, error_code_of(record, self.driver.platform))

    def _change_address_space(self, flow: Flow, event: records.Event) -> None:
        """If the fault turns out to be in another address space, the vCPU has gone there before it."""
        as_id = self._unmarked.as_id_of_fault(event)
        if as_id is not None and as_id != self.driver.as_id(flow.vcpu):
            self.driver.begin(flow.thread, *self._unmarked.mode(self.driver.vcpu(flow.vcpu), as_id))
            self._finish(flow, flow.thread, event)

    def _ready(self, flow: Flow, event: records.Event) -> KvmVcpu:
        """The thread's vCPU, with all done that there is to do before it enters the guest."""
        vcpu = self.driver.vcpu(flow.vcpu)
        self._look_for_requests(flow, vcpu)
        if self.driver.must_prepare(vcpu):
            self.driver.begin(flow.thread, "enter", vcpu)
            self._finish(flow, flow.thread, event)
        return vcpu

    def _enter(self, event: records.Event, vcpu_id: int) -> None:
        self.settle(event.task.pid, event)
        if self.driver.kvm is None:
            return
        flow = self.flow(event.task.pid)
        flow.vcpu = vcpu_id
        self._ready(flow, event)

    def _load_pgd(self, event: records.Event, record: records.Kprobe) -> None:
        root = record.value("root")
        self.settle(event.task.pid, event)
        if root is None or self.driver.kvm is None:
            return
        flow = self.flow(event.task.pid)
        flow.vcpu = self._unmarked.vcpu_after(event, flow.vcpu)
        vcpu = self._ready(flow, event)
        mine = self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu))
        if not isinstance(mine, KvmMmuPage):
            return
        known = self._root_in(root >> 12)
        if known is not None and known is not mine:
            self.driver.begin(flow.thread, *self._unmarked.switched(vcpu, known))
            self._finish(flow, flow.thread, event)
            mine = self.driver.memory.peek(KvmVcpu.mmu_root.cell(vcpu))
        if not self.frames.bind(mine.pfn, root >> 12):
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
        flow = self.flow(event.task.pid)
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
        self._inside(flow, event, command)

    def _inside(self, flow: Flow, event: records.Event, command: tuple[object, ...]) -> None:
        """Do something in a thread, inside of whatever it is doing."""
        driver = self.driver
        while flow.nested:
            self._finish(flow, flow.nested[-1], event)
            driver.give_back(flow.nested.pop())
        if driver.idle(flow.thread):
            driver.begin(flow.thread, *command)
            return
        if flow.fault_hva is not None:
            if driver.advance(flow.thread):  # it comes to where it asks the host for the page
                self._surplus(driver.reaction(flow.thread), event)
        else:
            self._finish(flow, flow.thread, event)
            driver.begin(flow.thread, *command)
            return
        nested = driver.thread()
        flow.nested.append(nested)
        driver.begin(nested, *command)

    def _snapshot(self, event: records.Event) -> bool:
        """Is the event a snapshot of the page tables? If so, they are compared."""
        number = snapshot_number(event)
        if number is None or number not in self._snapshots:
            return False
        self.settle_all(event)
        tables = compare_tables(self.driver, self.frames, self._snapshots[number], self._assists.volatile)
        self.result.snapshots.append(tables)
        return True

    def _diverge(self, event: records.Event, reason: str) -> None:
        flow = self._flows.get(event.task.pid)
        self._divergences.add(event, reason, (flow.nested or [flow.thread])[-1] if flow is not None else None)


def compare_trace(path: Path, design: Design, snapshots: Path | None = None, parameters: Path | None = None) -> Result:
    """Compare a trace, and its snapshots if there are any, with the model of `design` on a host with these module
    parameters. Raises Unreadable.

    First with a driver that cannot go back; if an event does not fit, and several threads have acted, all over again
    with one that can, because they may have acted in another order than that of their events.
    """
    options = options_of(Trace(path), Parameters() if parameters is None else read_parameters(parameters))
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
