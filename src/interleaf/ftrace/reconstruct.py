"""The page tables at any moment of a trace, and a check that each event fits what came before.

Each event names the value that an entry had and the one that it has now. If what an entry had is not what the trace
last said, something is missing; what is known to be missing is put in its place and counted (`Explained`), and
anything else is a contradiction.

An event names no root. With several roots in one address space it is told apart which table an event speaks of:

* the value that the entry had must fit;
* a task that has just disconnected a table empties that table next, before it does anything else;
* a fault is about the root that its vCPU has loaded, if the trace shows that (the probe `load_pgd`);
* a task that has made all roots invalid zaps those;
* a task goes on with the root of its last event; and after all that, newer roots come first, as in KVM's list.

(kernel arch/x86/kvm/mmu/tdp_mmu.c: handle_changed_spte, handle_removed_pt; v5.13 to v6.18)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .allocations import Allocations
from .changes import Applied, Contradiction, Explained, Wanted
from .fitting import fits, misfit, unlikely
from .records import (
    Event,
    FastPageFault,
    Kprobe,
    KvmEntry,
    KvmMmuPage,
    KvmMmuZapAllFast,
    KvmPageFault,
    KvmTdpMmuSpteChanged,
    Lost,
    Unknown,
)
from .spte import FROZEN, LARGE, NON_PRESENT, PRESENT, Layout, change, layout_of, links_as_5_12, pfn_of, points_to_table
from .tables import PageTables, Table, index_of, place
from .tasks import Doing, Tasks, TaskState

PATIENCE = 256
"""Events for which one that does not fit waits for the one that explains it."""

KEPT = 100
"""Contradictions that are remembered; all are counted."""

RETRIES = 64
"""Events that wait at the same time."""


class Reconstruction:
    """Page tables over time: feed it the events of a trace in order."""

    def __init__(self) -> None:
        self.tables = PageTables()
        self.tasks = Tasks()
        self.explained: Counter[Explained] = Counter()
        self.contradictions: list[Contradiction] = []
        """The first KEPT."""
        self.contradicted = 0
        self.changes = 0
        """Changes that were put in their place."""
        self.layout: Layout | None = None
        """Known from the first table that is linked."""
        self.root_level = 4
        self.unseen = False
        """May there be tables that the trace does not tell of?"""
        self.foreign = 0
        """Changes of entries that 5.12 or an older kernel wrote: they are not understood, and not put anywhere."""
        self._began = False
        self._created: list[tuple[int, Table]] = []
        self._removals: dict[int, list[Table]] = {}
        """By task: tables that it has disconnected and is emptying now."""
        self._last: dict[int, Table] = {}
        self._allocations = Allocations()
        self._waiting: list[tuple[int, Wanted]] = []
        self._number = 0

    # what is asked

    @property
    def waiting(self) -> int:
        """Events that did not fit so far."""
        return len(self._waiting)

    def root(self, pfn: int | None = None) -> Table | None:
        """The root in this frame; without one, the newest that is not invalid."""
        if pfn is not None:
            found = self.tables.by_pfn.get(pfn)
            return found if found is not None and found.parent is None and not found.detached else None
        return next((root for root in reversed(self.tables.roots) if not root.invalid), None)

    def entry(self, gfn: int, level: int, root: Table | None = None) -> int | None:
        """The entry for `gfn` at `level` (1: 4 KiB) under `root`, or the newest one; None if no table leads there."""
        top = root or self.root()
        if top is None:
            return None
        table, index, spte = self.tables.walk(top, gfn)
        while table.level < level:
            if table.parent is None:
                return None
            table = table.parent
            index = index_of(table.level, gfn)
            spte = table.read(index)
        return (spte or 0) if table.level == level else None

    # what is told

    def feed(self, event: Event) -> Sequence[Applied]:
        """Take in one event; returns the changes that can be told now, of this event and of those that waited."""
        self._number += 1
        record = event.record
        if isinstance(record, KvmTdpMmuSpteChanged):
            state = self.tasks.of(event.task.pid)
            doing = state.doing
            as_id, gfn, level, old, new = record
            if not self._began:
                self._began = True
                self.unseen = not self.tables.roots
            if links_as_5_12(new, level) if not self.foreign else not points_to_table(new, level):
                self.foreign += 1
                return ()
            done = self._apply(Wanted(event, as_id, gfn, level, old, new, doing), state)
        elif isinstance(record, FastPageFault):
            if not record.fixed or self.foreign:
                return ()
            state = self.tasks.of(event.task.pid)
            gfn = record.cr2_or_gpa >> 12
            done = self._apply(Wanted(event, None, gfn, None, record.old_spte, record.new_spte, Doing.FAULT), state)
        else:
            self._note(event)
            done = None
        if not self._waiting:
            return (done,) if done is not None else ()
        return self._retry(done)

    def finish(self) -> None:
        """The trace has ended: what still waits will never be explained."""
        for _, wanted in self._waiting:
            self._misfit(wanted)
        self._waiting.clear()

    # one change

    def _apply(self, wanted: Wanted, state: TaskState) -> Applied | None:
        """Put a change in its place; None if it does not fit (yet)."""
        table = self._table_for(wanted, state)
        if table is None:
            self._wait(wanted)
            return None
        return self._put(wanted, table)

    def _put(self, wanted: Wanted, table: Table) -> Applied:
        event, old, new = wanted.event, wanted.old, wanted.new
        level = table.level
        index = index_of(level, wanted.gfn)
        self._explain(table, index, old)
        if wanted.level is None:
            self.explained[Explained.FAST_PAGE_FAULT] += 1
        table.entries[index] = new
        self.changes += 1
        pid = event.task.pid
        self._last[pid] = table
        root = table.root()
        if table.detached and new in FROZEN:
            table.frozen += 1
            table.frozen_empty += not old & PRESENT
            if table.frozen == 512:
                self.tables.retire(table, event.time)
        if level > 1:
            self._restructure(table, index, old, new, event)
        return Applied(event, table, index, old, new, change(old, new, level), wanted.doing, root.invalid)

    def _restructure(self, table: Table, index: int, old: int, new: int, event: Event) -> None:
        """A table is disconnected, or linked."""
        level, was, now = table.level, points_to_table(old, table.level), points_to_table(new, table.level)
        if was and now and pfn_of(old) == pfn_of(new):
            return
        if was:
            child = self.tables.child(table, old)
            if child is not None:
                child.detached = True
                child.invalid = table.root().invalid
                self._removals.setdefault(event.task.pid, []).append(child)
            if table.parent is None and not any(spte & PRESENT for spte in table.entries.values()):
                self.tables.retire(table, event.time)
        if now:
            if table.parent is None and table.until is not None:
                self.tables.revive(table)  # up to v5.17 a notifier could empty a root that stayed in use
            if self.layout is None:
                self.layout = layout_of(new)
            huge = old if old & PRESENT and not was else None
            child = Table(
                level - 1, table.as_id, table.gfn(index), event.time, pfn_of(new), table, huge=huge, sure=True
            )
            self.tables.add(child)
            self._allocations.linked(event.task.pid, level - 1, child.base)

    def _explain(self, table: Table, index: int, old: int) -> None:
        """Count why the entry may be `old`, if the trace did not say so."""
        stored = table.entries.get(index)
        if stored is None:
            if table.huge is not None:
                self.explained[Explained.SPLIT_CHILDREN] += 1
                stored = table.read(index)
            elif old in NON_PRESENT:
                return
            else:
                self.explained[Explained.UNSEEN] += 1
                return
        if stored == old or (stored in NON_PRESENT and old in NON_PRESENT) or stored is None:
            return
        if stored in FROZEN:
            self.explained[Explained.THAWED] += 1
        elif self.layout is not None and not (stored ^ old) & ~self.layout.volatile:
            self.explained[Explained.AD_BITS] += 1
        elif table.huge is not None and index not in table.entries:
            table.huge = self.layout.executable(table.huge) if self.layout is not None else table.huge
            self.explained[Explained.SPLIT_EXECUTABLE] += 1
            self._explain_bits(table, index, old)
        else:
            self.explained[Explained.UNSEEN] += 1

    def _explain_bits(self, table: Table, index: int, old: int) -> None:
        if table.read(index) != old:
            self.explained[Explained.AD_BITS] += 1

    # which table

    def _table_for(self, wanted: Wanted, state: TaskState) -> Table | None:
        if wanted.level is None:
            return self._leaf_for(wanted, state)
        as_id, gfn, level, old = wanted.as_id or 0, wanted.gfn, wanted.level, wanted.old
        candidates = self.tables.by_place.get(place(as_id, level, gfn), ())
        index = index_of(level, gfn)
        pid = wanted.event.task.pid
        removal = self._removals.get(pid)
        if removal is not None:
            for table in reversed(removal):
                if table in candidates and table.until is None and fits(self.layout, table, index, old):
                    return table
            self._end_removal(pid, removal, wanted.event)
        if len(candidates) == 1:
            table = candidates[0]
            if fits(self.layout, table, index, old):
                return table
        fitting = [table for table in candidates if fits(self.layout, table, index, old)]
        if not fitting:
            return self._unseen_table(wanted) if self.unseen and not candidates else None
        if len(fitting) > 1:
            self.explained[Explained.ROOTS] += 1
            fitting.sort(key=lambda table: unlikely(table, index, old, state, self._last.get(pid)))
        return fitting[0]

    def _leaf_for(self, wanted: Wanted, state: TaskState) -> Table | None:
        """The table of the leaf that fast_page_fault has changed."""
        roots = [root for root in reversed(self.tables.roots) if not root.invalid]
        roots.sort(key=lambda root: state.root is None or root.pfn != state.root)
        for root in roots:
            table, index, spte = self.tables.walk(root, wanted.gfn)
            if spte is not None and fits(self.layout, table, index, wanted.old):
                return table
        if not self.unseen:
            return None
        level = 2 if wanted.old & LARGE else 1
        for table in self.tables.by_place.get(place(0, level, wanted.gfn), ()):
            if not table.detached and fits(self.layout, table, index_of(level, wanted.gfn), wanted.old):
                return table
        return self._unseen_table(wanted._replace(level=level))

    def _unseen_table(self, wanted: Wanted) -> Table:
        """A table of which the trace has not told how it came to be."""
        level = wanted.level or 1
        mask = (1 << level * 9) - 1
        table = Table(level, wanted.as_id or 0, wanted.gfn & ~mask, wanted.event.time, sure=False)
        self.root_level = max(self.root_level, level)
        if level == self.root_level:
            self.tables.roots.append(table)
        self.tables.add(table)
        return table

    def _end_removal(self, pid: int, removal: list[Table], event: Event) -> None:
        """The task does something else: what it has disconnected is empty now, and will be freed.

        KVM freezes each entry of such a table, or, under mmu_lock for write, each that is not empty already.
        """
        for table in removal:
            if table.until is None and table.sure and not self._waiting:
                left = [index for index, spte in table.items() if spte & PRESENT]
                if not left and table.frozen_empty:
                    left = [index for index in range(512) if table.entries.get(index) not in FROZEN]
                if left:
                    self._contradict(
                        event,
                        f"the table of level {table.level} at gfn {table.base:x} has been removed, but the trace does "
                        f"not say so of {len(left)} of its entries, such as gfn {table.gfn(left[0]):x}",
                    )
            self.tables.retire(table, event.time)
        del self._removals[pid]

    # what does not fit

    def _wait(self, wanted: Wanted) -> None:
        self._waiting.append((self._number, wanted))
        if len(self._waiting) > RETRIES:
            self._misfit(self._waiting.pop(0)[1])

    def _retry(self, done: Applied | None) -> list[Applied]:
        """Look again at what did not fit, for as long as anything does."""
        found = [] if done is None else [done]
        again = True
        while again:
            again = False
            for entry in list(self._waiting):
                number, wanted = entry
                if number == self._number and done is None and not found:
                    continue  # it is this very event
                table = self._table_for(wanted, self.tasks.of(wanted.event.task.pid))
                if table is not None:
                    self._waiting.remove(entry)
                    self.explained[Explained.SWAPPED] += 1
                    found.append(self._put(wanted, table))
                    again = True
                elif self._number - number > PATIENCE:
                    self._waiting.remove(entry)
                    self._misfit(wanted)
        return found

    def _misfit(self, wanted: Wanted) -> None:
        there = place(wanted.as_id or 0, wanted.level or 1, wanted.gfn)
        self._contradict(wanted.event, misfit(wanted, self.tables.by_place.get(there, ())))

    def _contradict(self, event: Event, text: str) -> None:
        self.contradicted += 1
        if len(self.contradictions) < KEPT:
            self.contradictions.append(Contradiction(event, text))

    # other events

    def _note(self, event: Event) -> None:
        record = event.record
        state = self.tasks.note(event)
        removal = self._removals.get(event.task.pid)
        if removal is not None and not isinstance(record, KvmMmuPage | Kprobe | Unknown | Lost):
            self._end_removal(event.task.pid, removal, event)
        if isinstance(record, KvmMmuPage):
            if event.name == "kvm_mmu_get_page" and record.created:
                self._note_page(event, record)
        elif isinstance(record, KvmEntry | KvmPageFault):
            lost = self._allocations.ended(event.task.pid)
            if lost and not self.foreign:
                self.explained[Explained.LOST_RACE] += lost
        elif isinstance(record, KvmMmuZapAllFast):
            for root in self.tables.roots:
                root.invalid = True
        elif isinstance(record, Lost):
            self._note_loss()
        elif isinstance(record, Kprobe) and event.name == "load_pgd":
            self._note_load(event, record, state)

    def _note_page(self, event: Event, record: KvmMmuPage) -> None:
        """A page-table page is allocated: a root, or a table that is to be linked next."""
        level, pid = record.level, event.task.pid
        if level >= self.root_level:
            self.root_level = level
            root = Table(level, 0, 0, event.time)
            self.tables.roots.append(root)
            self.tables.add(root)
            self._created.append((pid, root))
            return
        self._allocations.told(pid, record)

    def _note_load(self, event: Event, record: Kprobe, state: TaskState) -> None:
        """A vCPU loads a root: now it is known where that root is."""
        address = record.value("root")
        if address is None:
            return
        pfn = address >> 12 & (1 << 40) - 1
        state.root = pfn
        pid = event.task.pid
        mine = [entry for entry in self._created if entry[0] == pid]
        known = self.root(pfn)
        if not mine and known is not None and not known.invalid:
            return
        entry = mine[-1] if mine else self._created[0] if self._created else None
        if entry is not None:
            self._created.remove(entry)
            self.tables.settle(entry[1], pfn)

    def _note_loss(self) -> None:
        """Events are missing: nothing that is known is certain any more."""
        self.unseen = True
        for tables in self.tables.by_place.values():
            for table in tables:
                table.sure = False
