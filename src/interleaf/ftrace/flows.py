"""What the threads of a trace are doing, and the threads of the model that do it.

A thread that does nothing can be told to do something. Before it is told the next thing, it must have come to the end
of the last (`settle`). What interrupts it, a notifier inside a fault, is done by another thread of the model.
"""

from __future__ import annotations

from collections.abc import Callable

from interleaf.kvm.kvm_host import KvmVcpu

from . import records
from .drive import Driver, Reaction, Thread
from .lookups import Flow, Lookups
from .matching import Frames, show

_UNPREPARED = (
    *(records.KvmPageFault, records.KvmUserspaceExit, records.KvmMmuSpteRequested),
    *(records.HvaRange, records.Hva),
)
"""Before these, a vCPU does not look for what it has been asked for."""


class Flows:
    """All threads of a trace, by pid. `diverge` is told of an event at which the model differs, and why."""

    def __init__(
        self, driver: Driver, frames: Frames, lookups: Lookups, diverge: Callable[[records.Event, str], None]
    ) -> None:
        self.known: dict[int, Flow] = {}
        self._driver = driver
        self._frames = frames
        self._lookups = lookups
        self._diverge = diverge

    def of(self, pid: int) -> Flow:
        """What a thread is doing."""
        flow = self.known.get(pid)
        if flow is None:
            flow = self.known[pid] = Flow(self._driver.thread())
        return flow

    # what a search for another order needs

    def keep(self) -> Callable[[], None]:
        """What all of them are doing; to call the answer brings it back."""
        flows = {pid: flow.copy() for pid, flow in self.known.items()}

        def bring_back() -> None:
            self.known = {pid: flow.copy() for pid, flow in flows.items()}

        return bring_back

    def busy(self) -> list[int]:
        """The threads that are in the middle of something."""
        idle = self._driver.idle
        return [pid for pid, flow in self.known.items() if not idle(flow.thread) or flow.nested]

    def threads(self, pid: int) -> tuple[Thread, ...]:
        """The threads of the model that do what this thread does."""
        flow = self.known.get(pid)
        return () if flow is None else (flow.thread, *flow.nested)

    # what they do next

    def next_reaction(self, flow: Flow, event: records.Event) -> Reaction | None:
        """The next that the model does in this thread, which ought to be what the event says; None if it does nothing
        more."""
        driver = self._driver
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
            while driver.wander():
                pass
            stray = driver.stray()
            if stray is not None:
                return stray
        self._begin_unmarked(flow, event)
        return driver.reaction(flow.thread) if driver.advance(flow.thread) else None

    def _begin_unmarked(self, flow: Flow, event: records.Event) -> None:
        """A thread reacts to something that the trace does not name."""
        record = event.record
        if flow.next is not None:
            command, flow.next = flow.next, None
            self._driver.begin(flow.thread, *command)
            return
        vcpu = self._driver.vcpu(flow.vcpu or 0)
        if isinstance(record, records.KvmMmuSpteRequested):
            if flow.faulting:
                return
            self._lookups.begin(flow, record.gfn)
            self._driver.begin(flow.thread, "prefault", vcpu, record.gfn, 1)
            self._lookups.reveal(flow, event)
        else:
            self._look_for_requests(flow, vcpu)
            if self._driver.idle(flow.thread):
                self._driver.begin(flow.thread, "enter", vcpu)

    def _look_for_requests(self, flow: Flow, vcpu: KvmVcpu) -> None:
        self._driver.looked(flow.thread, KvmVcpu.requests.cell(vcpu), KvmVcpu.mmu_root.cell(vcpu))

    def ready(self, flow: Flow, event: records.Event) -> KvmVcpu:
        """The thread's vCPU, with all done that there is to do before it enters the guest."""
        vcpu = self._driver.vcpu(flow.vcpu or 0)
        self._look_for_requests(flow, vcpu)
        if not self._driver.idle(flow.thread):
            self._finish(flow, flow.thread, event)
        if self._driver.must_prepare(vcpu):
            self._driver.begin(flow.thread, "enter", vcpu)
            self._finish(flow, flow.thread, event)
        return vcpu

    def begin_early(self, thread: Thread, event: records.Event) -> None:
        """A thread that does nothing, and of which `event` is the next, does what its vCPU has been asked for."""
        flow = self.known[event.task.pid]
        vcpus = self._driver.vcpus()
        if thread is not flow.thread or not self._driver.idle(thread) or flow.faulting:
            return
        if flow.vcpu is None or flow.vcpu >= len(vcpus) or isinstance(event.record, _UNPREPARED):
            return
        if self._driver.must_prepare(vcpus[flow.vcpu]):
            self._driver.begin(thread, "enter", vcpus[flow.vcpu])

    def interrupt(self, flow: Flow, event: records.Event, command: tuple[object, ...]) -> None:
        """Do something in a thread, inside of whatever it is doing."""
        driver = self._driver
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

    # how they end

    def settle(self, pid: int, event: records.Event | None) -> None:
        """A thread has come to the end of what it was doing: so must the model have."""
        flow = self.known.get(pid)
        if flow is None:
            return
        for thread in (*reversed(flow.nested), flow.thread):
            self._finish(flow, thread, event)
        for nested in flow.nested:
            if self._driver.idle(nested):
                self._driver.give_back(nested)
        flow.nested.clear()
        flow.faulting = False

    def settle_all(self, event: records.Event | None) -> None:
        """All threads have come to the end of what they were doing."""
        for pid in list(self.known):
            self.settle(pid, event)

    def _finish(self, flow: Flow, thread: Thread, event: records.Event | None) -> None:
        driver = self._driver
        if thread is flow.thread and flow.fault_hva is not None and not driver.idle(thread):
            driver.finish(thread)
            self._lookups.end(flow, event)
        while not driver.idle(thread):
            if driver.advance(thread):
                self._surplus(driver.reaction(thread), event)
            elif not driver.idle(thread):
                if event is not None:
                    self._diverge(event, "the model is still waiting for something" + driver.complaint())
                if thread is flow.thread:
                    flow.thread = driver.thread()  # the other one waits for ever
                return

    def _surplus(self, reaction: Reaction, event: records.Event | None) -> None:
        if event is not None:
            self._diverge(event, f"the model does more before this: {show(reaction, self._frames)}")
