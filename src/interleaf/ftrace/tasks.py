"""What each task was doing when an event of its appeared.

The event of a change names neither its cause nor its root. Both follow from what the same task said before: a fault
begins with kvm_page_fault, a notifier with its own event, and so on.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from .records import (
    Event,
    Hva,
    HvaRange,
    Kprobe,
    KvmEntry,
    KvmExit,
    KvmMmuSpteRequested,
    KvmMmuZapAllFast,
    KvmPageFault,
    KvmUserspaceExit,
    Mark,
)

RECOVERY = "kvm-nx-lpage-re"
"""Name of the threads that make huge pages again of what was split for execution, as far as the kernel keeps it."""


WORKER = "kworker/"
"""How the names of those threads begin that do what other threads have queued as work."""


class Doing(enum.StrEnum):
    """Why a task changes page tables."""

    FAULT = "page fault"
    UNMAP = "unmap notifier"
    AGE = "age notifier"
    SET_PTE = "set-pte notifier"
    ZAP_ALL = "zap all"
    """It has made all roots invalid, and zaps them."""
    SLOT = "memslot change"
    DIRTY_LOG = "dirty log"
    TEARDOWN = "VM teardown"
    OTHER = "other"


_NOTIFIERS = {
    "kvm_unmap_hva_range": Doing.UNMAP,
    "kvm_age_hva": Doing.AGE,
    "kvm_test_age_hva": Doing.AGE,
    "kvm_set_spte_hva": Doing.SET_PTE,
}

_PROBES = {
    "kvm_mmu_zap_all": Doing.TEARDOWN,
    "kvm_tdp_mmu_zap_all": Doing.TEARDOWN,
    "kvm_vm_ioctl_get_dirty_log": Doing.DIRTY_LOG,
    "kvm_get_dirty_log_protect": Doing.DIRTY_LOG,
    "kvm_clear_dirty_log_protect": Doing.DIRTY_LOG,
    "__kvm_set_memory_region": Doing.SLOT,
    "kvm_set_memory_region": Doing.SLOT,
}
"""Functions by whose probes `interleaf trace record` marks what begins."""

_MARKS = {
    "SLOT": Doing.SLOT,
    "SLOT_DONE": Doing.OTHER,
    "GET_DIRTY_LOG": Doing.DIRTY_LOG,
    "GET_DIRTY_LOG_DONE": Doing.OTHER,
    "RESET_DIRTY_RINGS": Doing.DIRTY_LOG,
    "VM_DESTROY": Doing.TEARDOWN,
    "VM_CLOSED": Doing.TEARDOWN,
    "VM_DESTROYED": Doing.OTHER,
}
"""The same by the marks of a driver that writes `GT <workload> <word> ...` into the trace."""


@dataclass(slots=True, eq=False)
class TaskState:
    """One task."""

    doing: Doing = Doing.OTHER
    since: int = 0
    """Time of the event by which that began."""
    address: int | None = None
    """gpa of the fault, or first hva of the notifier."""
    requested: int | None = None
    """gfn that the fault is about to map, once it has its page."""
    root: int | None = None
    """pfn of the root that this vCPU uses."""


@dataclass(slots=True)
class Tasks:
    """All tasks of a trace."""

    states: dict[int, TaskState] = field(default_factory=dict)

    def of(self, pid: int) -> TaskState:
        """The state of one task."""
        state = self.states.get(pid)
        if state is None:
            state = self.states[pid] = TaskState()
        return state

    def note(self, event: Event) -> TaskState:
        """Take in what an event says of its task."""
        state = self.of(event.task.pid)
        match event.record:
            case KvmPageFault(fault_address=address):
                self._begin(state, Doing.FAULT, event.time, address)
            case KvmMmuSpteRequested(gfn=gfn):
                if state.doing is not Doing.FAULT:
                    self._begin(state, Doing.FAULT, event.time, gfn << 12)  # a notifier inside the fault, or a prefault
                state.requested = gfn
            case KvmEntry() | KvmExit() | KvmUserspaceExit():
                if state.doing is not Doing.OTHER:
                    self._begin(state, Doing.OTHER, event.time, None)
            case HvaRange(start=address) | Hva(hva=address):
                if state.doing is not Doing.TEARDOWN:  # closing a VM unmaps what user space shared with it, too
                    self._begin(state, _NOTIFIERS[event.name], event.time, address)
            case KvmMmuZapAllFast():
                self._begin(state, Doing.ZAP_ALL, event.time, None)
            case Mark(text=text):
                words = text.split(None, 3)
                if len(words) > 2 and words[0] == "GT" and words[2] in _MARKS:
                    self._begin(state, _MARKS[words[2]], event.time, None)
            case Kprobe(symbol=symbol):
                if symbol in _PROBES:
                    self._begin(state, _PROBES[symbol], event.time, None)
            case _:
                pass
        return state

    def _begin(self, state: TaskState, doing: Doing, time: int, address: int | None) -> None:
        state.doing, state.since, state.address, state.requested = doing, time, address, None
