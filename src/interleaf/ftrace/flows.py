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
from .matching import Frames, Rule, show
from .programs import Command
from .tasks import WORKER
from .unmarked import Unmarked

_UNPREPARED = (
    *(records.KvmPageFault, records.KvmUserspaceExit, records.KvmMmuSpteRequested),
    *(records.HvaRange, records.Hva),
)
"""Before these, a vCPU does not look for what it has been asked for."""

NOTIFIERS = frozenset({"unmap", "age", "test age"})
"""What ends without an event."""

SPARE = 8
"""Threads of the model that are left for what interrupts others."""


class Flows:
    """All threads of a trace, by pid. `diverge` is told of an event at which the model differs, and why."""

    def __init__(
        self,
        driver: Driver,
        frames: Frames,
        lookups: Lookups,
        unmarked: Unmarked,
        diverge: Callable[[records.Event, str], None],
    ) -> None:
        self.known: dict[int, Flow] = {}
        self._driver = driver
        self._frames = frames
        self._lookups = lookups
        self._unmarked = unmarked
        self._diverge = diverge

    def of(self, pid: int) -> Flow:
        """What a thread is doing."""
        flow = self.known.get(pid)
        if flow is None:
            if self._driver.left() < SPARE:
                self._make_room()
            flow = self.known[pid] = Flow(self._driver.thread())
        return flow

    def _make_room(self) -> None:
        """Threads that do nothing, and run no vCPU, are forgotten."""
        self.end_notifiers()
        for pid, flow in list(self.known.items()):
            if flow.vcpu is None and flow.next is None and not flow.nested and self._driver.idle(flow.thread):
                del self.known[pid]
                self._driver.give_back(flow.thread)

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

    def next_reaction(self, flow: Flow, event: records.Event, rules: list[Rule]) -> Reaction | None:
        """The next that the model does in this thread, which ought to be what the event says; None if it does nothing
        more. What has to be supposed for that is added to `rules`."""
        driver = self._driver
        if flow.guessed:
            flow.guessed = False
            rules.append(Rule.UNNAMED)
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
        driver = self._driver
        found = self._wander()
        if found is not None or not event.task.comm.startswith(WORKER):
            return found
        # who is to queue the work may not have come so far: who zaps everything, or puts the last reference on a root
        zapper = self._unmarked.zapper
        for flow in sorted(self.known.values(), key=lambda flow: flow.thread is not zapper):
            for thread in (flow.thread, *flow.nested):
                if not driver.idle(thread) and not thread.reactions:
                    driver.foresee(thread)
                    driver.advance(thread)
            found = self._wander()
            if found is not None:
                break
        return found

    def _wander(self) -> Reaction | None:
        while self._driver.wander():
            pass
        return self._driver.stray()

    def _begin_unmarked(self, flow: Flow, event: records.Event, rules: list[Rule]) -> None:
        """A thread reacts to something that the trace does not name."""
        driver, record = self._driver, event.record
        if flow.next is not None:
            command, flow.next = flow.next, None
            driver.begin(flow.thread, *command)
            return
        if flow.faulting and isinstance(record, records.KvmMmuSpteRequested | records.FastPageFault):
            return
        if isinstance(record, records.KvmMmuPage):
            flow.vcpu = self._unmarked.vcpu_after(event, flow.vcpu)
        self._look_for_requests(flow, driver.vcpu(flow.vcpu or 0))
        if not driver.idle(flow.thread):
            return
        command = self._unmarked.command(flow, event)
        if command[0] != "enter":
            rules.append(Rule.UNNAMED)
        match command:
            case "prefault", _, int(gfn), _:
                self._lookups.begin(flow, gfn)
        driver.begin(flow.thread, *command)
        self._lookups.reveal(flow, event)

    def _look_for_requests(self, flow: Flow, vcpu: KvmVcpu) -> None:
        self._driver.looked(flow.thread, KvmVcpu.requests.cell(vcpu), KvmVcpu.mmu_root.cell(vcpu))

    def ready(self, flow: Flow, event: records.Event) -> KvmVcpu:
        """The thread's vCPU, with all done that there is to do before it enters the guest."""
        vcpu = self._driver.vcpu(flow.vcpu or 0)
        self._look_for_requests(flow, vcpu)
        if not self._driver.idle(flow.thread):
            self._finish(flow, flow.thread, event)
        if self._driver.must_prepare(vcpu):
            self.perform(flow, event, ("enter", vcpu))
        return vcpu

    def perform(self, flow: Flow, event: records.Event, command: Command) -> None:
        """A thread that does nothing does this, all of it, before the event."""
        self._driver.begin(flow.thread, *command)
        self._finish(flow, flow.thread, event)

    def guess(self, flow: Flow, event: records.Event, command: Command) -> None:
        """The same with what the trace does not name, and shows by the event and what follows it."""
        self.perform(flow, event, command)
        flow.guessed = True

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

    def end_notifiers(self) -> None:
        """Notifiers come to their end that change nothing any more. Nothing else tells of it where their threads do not
        act again; and none is left when their VM is gone. One that nobody had to wait for was over long ago, and must
        not meet what was mapped since."""
        for flow in self.known.values():
            command = self._driver.command(flow.thread)
            if command is not None and command[0] in NOTIFIERS and not flow.thread.reactions:
                if self._driver.begun(flow.thread):
                    self._driver.foresee(flow.thread)
                    self._driver.finish(flow.thread)
                else:
                    self._driver.call_off(flow.thread)

    def settle_all(self, event: records.Event | None, doing: frozenset[str] | None = None) -> None:
        """All threads have come to the end of what they were doing, or those that are doing one of these commands."""
        for pid, flow in list(self.known.items()):
            command = self._driver.command(flow.thread)
            if doing is None or (command is not None and command[0] in doing):
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
