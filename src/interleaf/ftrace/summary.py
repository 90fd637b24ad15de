"""What a person who debugs a host wants to know of a trace: faults, mappings, zaps, roots, and where and when.

Everything is gathered in one pass and in bounded memory, so that a trace may be as long as it likes.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from .changes import Applied
from .reader import Account
from .reconstruct import Reconstruction
from .records import (
    Event,
    FastPageFault,
    HandleMmioPageFault,
    KvmEntry,
    KvmExit,
    KvmMmuPage,
    KvmMmuSetSpte,
    KvmMmuZapAllFast,
    KvmPageFault,
    KvmUserspaceExit,
    Lost,
    MarkMmioSpte,
)
from .series import Heat, Spread, Timeline
from .spte import EPT, Change
from .stimuli import Slots, slot_change_of
from .tables import Table
from .tasks import Doing

SIZES = {1: "4K", 2: "2M", 3: "1G"}
"""What a leaf of each level maps."""

PAUSE = 1_000_000
"""Nanoseconds (or ticks) after which a task's next change belongs to another stretch."""

STORM = 256
"""Leafs that one stretch zaps at least, to be shown as a storm."""

STORMS = 20
REMEMBERED = 1 << 18
"""Zapped gfns that are remembered until they are mapped again."""

LIVES = 500
"""Roots whose lives are kept one by one."""

INVALID = "invalid root"
"""Cause of a zap: all roots were made invalid, and this was under one of them."""


@dataclass(slots=True)
class Root:
    """The life of a root. Times are those of the trace."""

    number: int
    table: Table
    created: int
    invalid: int | None = None
    leafs: int = 0
    """Leafs that were mapped under it."""

    @property
    def gone(self) -> int | None:
        """When its last entry was seen to go."""
        return self.table.until


@dataclass(slots=True)
class Stretch:
    """Changes that one task made without a pause: a hint at how long it kept mmu_lock."""

    comm: str
    pid: int
    doing: str
    since: int
    """When the task began what it is doing."""
    first: int
    last: int
    changes: int = 0
    zaps: int = 0
    low: int = 1 << 52
    high: int = 0
    """gfns that were zapped: from low to high, inclusive."""


@dataclass(slots=True)
class Refaults:
    """What became of zapped leafs."""

    zapped: int = 0
    refaulted: int = 0
    after: Spread = field(default_factory=Spread)


@dataclass(slots=True)
class _Fault:
    """A fault that is being handled."""

    began: int
    kind: str
    outcome: str = "nothing changed (retried, or already done)"


@dataclass(slots=True)
class Summary:
    """Feed it the events of a trace with the changes that the reconstruction made of them."""

    known: Reconstruction
    account: Account
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(kind, outcome) -> how many."""
    latency: dict[tuple[str, str], Spread] = field(default_factory=dict)
    """(kind, outcome) -> time from the fault to the next entry into the guest."""
    changes: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(change, level) -> how many."""
    zaps: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(cause, level) -> leafs."""
    mapped: Counter[int] = field(default_factory=Counter)
    """Level -> leafs now, in all roots. If tables existed before the trace began, counted from then on."""
    most: dict[int, int] = field(default_factory=dict)
    refaults: dict[str, Refaults] = field(default_factory=dict)
    """Cause of the zap -> what became of the gfns."""
    stretches: dict[str, Spread] = field(default_factory=dict)
    """What the task was doing -> how long its stretches of changes were."""
    roots: list[Root] = field(default_factory=list)
    roots_created: int = 0
    zap_alls: int = 0
    timeline: Timeline = field(default_factory=Timeline)
    heat: Heat = field(default_factory=Heat)
    busiest: Heat = field(default_factory=lambda: Heat(shift=9))
    slots: Slots = field(default_factory=Slots)
    _storms: list[tuple[int, int, Stretch]] = field(default_factory=list)
    _open: dict[int, Stretch] = field(default_factory=dict)
    _faults: dict[int, _Fault] = field(default_factory=dict)
    _zapped: OrderedDict[tuple[int, int], tuple[int, str]] = field(default_factory=OrderedDict)
    _of_table: dict[int, Root] = field(default_factory=dict)
    _intel: bool = False

    def feed(self, event: Event) -> None:
        """Take in one event."""
        applied = self.known.feed(event)
        for one in applied:
            self._change(one)
        self._event(event, applied)

    def finish(self) -> None:
        """The trace has ended."""
        self.known.finish()
        for pid in list(self._open):
            self._close(pid)

    def storms(self) -> list[Stretch]:
        """The stretches that zapped most, the greatest first."""
        return [stretch for _, _, stretch in sorted(self._storms, key=lambda entry: entry[:2], reverse=True)]

    # events

    def _event(self, event: Event, applied: Sequence[Applied]) -> None:
        record, pid = event.record, event.task.pid
        match record:
            case KvmPageFault(error_code=error_code):
                self._faults[pid] = _Fault(event.time, self._kind(error_code))
                self.timeline.count(event.time, "faults")
            case KvmEntry() | KvmUserspaceExit():
                self._answer(pid, event.time)
            case KvmExit(exit_reason=reason):
                self._intel = self._intel or reason.startswith("EPT")
            case KvmMmuSetSpte(level=level):
                if (fault := self._faults.get(pid)) is not None and fault.outcome.startswith("nothing"):
                    fault.outcome = f"already mapped, {SIZES.get(level, f'level {level}')}"
            case FastPageFault(fixed=True):
                self._outcome(pid, "made writable without mmu_lock")
            case FastPageFault(spurious=True):
                self._outcome(pid, "already allowed")
            case HandleMmioPageFault() | MarkMmioSpte():
                self._outcome(pid, "MMIO")
            case KvmMmuPage(created=True):
                self._note_root(event)
            case KvmMmuZapAllFast():
                self.zap_alls += 1
                self.timeline.count(event.time, "zap all")
                for root in self.roots:
                    if root.invalid is None and root.gone is None:
                        root.invalid = event.time
            case Lost():
                self.timeline.count(event.time, "lost")
            case _:
                change = slot_change_of(event)
                if change is not None:
                    self.slots.change(change)

    def _kind(self, error_code: int) -> str:
        """How the guest accessed memory. On Intel's processors the code is the exit qualification."""
        intel = self._intel or self.known.layout is EPT
        if error_code & (1 << 2 if intel else 1 << 4):
            return "execute"
        if error_code & 1 << 1:
            return "write"
        return "read"

    def _outcome(self, pid: int, text: str) -> None:
        fault = self._faults.get(pid)
        if fault is not None:
            fault.outcome = text

    def _answer(self, pid: int, time: int) -> None:
        fault = self._faults.pop(pid, None)
        if fault is not None:
            what = fault.kind, fault.outcome
            self.faults[what] += 1
            self.latency.setdefault(what, Spread()).add(time - fault.began)

    def _note_root(self, event: Event) -> None:
        roots = self.known.tables.roots
        if not roots or roots[-1].since != event.time or id(roots[-1]) in self._of_table:
            return
        self.roots_created += 1
        root = Root(self.roots_created, roots[-1], event.time)
        self._of_table[id(roots[-1])] = root
        self.roots.append(root)
        if len(self.roots) > LIVES:
            gone = self.roots.pop(0)
            del self._of_table[id(gone.table)]

    # changes

    def _change(self, applied: Applied) -> None:
        event, level, what = applied.event, applied.table.level, applied.change
        gfn = applied.table.gfn(applied.position)
        time = event.time
        stretch = self._stretch(applied)
        stretch.changes += 1
        self.changes[what, level] += 1
        if what is Change.FREEZE:
            return
        self.heat.add(time, gfn)
        self.busiest.add(time, gfn)
        match what:
            case Change.MAP | Change.COLLAPSE:
                self._mapped(time, level, 1)
                self._refault(gfn, level, time)
                if applied.doing is Doing.FAULT:
                    self._outcome(event.task.pid, f"mapped {SIZES.get(level, f'level {level}')}")
                root = self._of_table.get(id(applied.table.root()))
                if root is not None:
                    root.leafs += 1
                self.timeline.count(time, "maps" if what is Change.MAP else "collapses")
            case Change.ZAP:
                cause = self._cause(applied)
                self.zaps[cause, level] += 1
                self._mapped(time, level, -1)
                self._remember(gfn, level, time, cause)
                self.timeline.count(time, "zaps")
                stretch.zaps += 1
                stretch.low, stretch.high = min(stretch.low, gfn), max(stretch.high, gfn)
            case Change.SPLIT:
                self._mapped(time, level, -1)
                self._mapped(time, level - 1, 512)
                self.timeline.count(time, "splits")
            case Change.ALLOW if applied.doing is Doing.FAULT:
                fault = self._faults.get(event.task.pid)
                if fault is not None and not fault.outcome.startswith("made"):
                    fault.outcome = "made writable"
            case Change.MMIO:
                self._outcome(event.task.pid, "MMIO")
            case _:
                pass

    def _mapped(self, time: int, level: int, number: int) -> None:
        self.mapped[level] += number
        self.most[level] = max(self.most.get(level, 0), self.mapped[level])
        self.timeline.set(time, SIZES.get(level, f"level {level}"), self.mapped[level])

    def _cause(self, applied: Applied) -> str:
        """Why an entry changes, or what its task is doing anyway."""
        if applied.doing is Doing.ZAP_ALL or (applied.invalid and applied.doing in (Doing.OTHER, Doing.SLOT)):
            return INVALID
        return str(applied.doing)

    def _remember(self, gfn: int, level: int, time: int, cause: str) -> None:
        self.refaults.setdefault(cause, Refaults()).zapped += 1
        self._zapped[level, gfn] = (time, cause)
        if len(self._zapped) > REMEMBERED:
            self._zapped.popitem(last=False)

    def _refault(self, gfn: int, level: int, time: int) -> None:
        """A leaf is mapped: what was zapped there, be it smaller or greater, is mapped again."""
        if not self._zapped:
            return
        places = [(level, gfn), (level + 1, gfn & -(1 << 9 * level))]
        if level > 1:
            places += [(level - 1, gfn + (index << 9 * (level - 2))) for index in range(512)]
        for place in places:
            found = self._zapped.pop(place, None)
            if found is not None:
                self.refaults[found[1]].refaulted += 1
                self.refaults[found[1]].after.add(time - found[0])

    def _stretch(self, applied: Applied) -> Stretch:
        task, time = applied.event.task, applied.event.time
        doing, since = self._cause(applied), self.known.tasks.of(task.pid).since
        stretch = self._open.get(task.pid)
        if stretch is not None and (time - stretch.last > PAUSE or (stretch.doing, stretch.since) != (doing, since)):
            self._close(task.pid)
            stretch = None
        if stretch is None:
            stretch = self._open[task.pid] = Stretch(task.comm, task.pid, doing, since, time, time)
        stretch.last = time
        return stretch

    def _close(self, pid: int) -> None:
        stretch = self._open.pop(pid)
        self.stretches.setdefault(stretch.doing, Spread()).add(stretch.last - stretch.first)
        if stretch.zaps >= STORM:
            heapq.heappush(self._storms, (stretch.zaps, -stretch.first, stretch))
            if len(self._storms) > STORMS:
                heapq.heappop(self._storms)
