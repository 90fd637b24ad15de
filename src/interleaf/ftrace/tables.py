"""Page tables as a trace tells of them.

A table is known by the frame that it occupies (the entry that points to it says so) and by its place: address space,
level, and which gfns it covers. Several tables may stand in one place: of several roots, or one that has been
disconnected and is still being emptied beside the one that replaces it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .spte import NON_PRESENT, is_leaf, pfn_of, points_to_table, split_child

LEVEL_BITS = 9
LINGERING = 64
"""Tables that are known to be gone and are still remembered, because events may be late."""


def place(as_id: int, level: int, gfn: int) -> int:
    """A number for the place of the table of this level that covers `gfn`."""
    return ((gfn >> level * LEVEL_BITS) << 3 | level) << 1 | as_id


def index_of(level: int, gfn: int) -> int:
    """Which entry of such a table leads to `gfn`."""
    return gfn >> (level - 1) * LEVEL_BITS & 511


@dataclass(slots=True, eq=False)
class Table:
    """One page-table page, from being linked (for a root: created) until the trace shows it to be gone."""

    level: int
    as_id: int
    base: int
    """The first gfn that it covers."""
    since: int
    """Time at which it was linked or created."""
    pfn: int | None = None
    """None: a root of which the trace does not say where it is."""
    parent: Table | None = None
    entries: dict[int, int] = field(default_factory=dict)
    """Index -> entry, of those that have been written."""
    huge: int | None = None
    """If the table has replaced a huge page, that page's entry: what is not in `entries` follows from it."""
    sure: bool = True
    """False: it may hold entries that the trace does not tell of."""
    detached: bool = False
    """Nothing points to it any more."""
    invalid: bool = False
    """A root that was in use when all roots became invalid."""
    frozen: int = 0
    """How many entries have been frozen since it was detached."""
    frozen_empty: int = 0
    """How many of those had been empty before."""
    until: int | None = None
    """Time at which it was seen to be gone."""

    def read(self, index: int) -> int | None:
        """An entry; None if nothing has been written to it."""
        known = self.entries.get(index)
        if known is None and self.huge is not None:
            return split_child(self.huge, self.level + 1, index)
        return known

    def root(self) -> Table:
        """The root above it; of a detached table, the highest detached one."""
        table = self
        while table.parent is not None and not table.detached:
            table = table.parent
        return table

    def live(self) -> bool:
        """Can it be reached from a root?"""
        return not self.root().detached

    def gfn(self, index: int) -> int:
        """The first gfn that an entry leads to."""
        return self.base + (index << (self.level - 1) * LEVEL_BITS)

    def items(self) -> Iterator[tuple[int, int]]:
        """Index and value of all entries that are not empty, by index."""
        indexes = range(512) if self.huge is not None else sorted(self.entries)
        for index in indexes:
            spte = self.read(index)
            if spte is not None and spte not in NON_PRESENT:
                yield index, spte


class PageTables:
    """All tables that are known at one moment."""

    def __init__(self) -> None:
        self.roots: list[Table] = []
        """In order of creation; those that have been seen to be gone are not here."""
        self.by_pfn: dict[int, Table] = {}
        self.by_place: dict[int, list[Table]] = {}
        self._gone: deque[Table] = deque()

    def add(self, table: Table) -> None:
        """A new table. Whatever was known to be in its frame is gone."""
        self.by_place.setdefault(place(table.as_id, table.level, table.base), []).append(table)
        if table.pfn is not None:
            self.settle(table, table.pfn)

    def settle(self, table: Table, pfn: int) -> None:
        """Note which frame a table occupies."""
        former = self.by_pfn.get(pfn)
        if former is not None and former is not table:
            self.forget(former)
        table.pfn = pfn
        self.by_pfn[pfn] = table

    def retire(self, table: Table, time: int) -> None:
        """A table has been emptied: it is gone, but late events may still speak of it."""
        if table.until is None:
            table.until = time
            if table in self.roots:
                self.roots.remove(table)
            self._gone.append(table)
            if len(self._gone) > LINGERING:
                self.forget(self._gone.popleft())

    def revive(self, root: Table) -> None:
        """A root that was thought to be gone is in use after all."""
        root.until = None
        if root in self._gone:
            self._gone.remove(root)
        self.roots.append(root)

    def forget(self, table: Table) -> None:
        """Nothing will be heard of a table any more."""
        where = place(table.as_id, table.level, table.base)
        known = self.by_place.get(where)
        if known is not None and table in known:
            known.remove(table)
            if not known:
                del self.by_place[where]
        if table.pfn is not None and self.by_pfn.get(table.pfn) is table:
            del self.by_pfn[table.pfn]
        if table in self.roots:
            self.roots.remove(table)

    def child(self, table: Table, spte: int) -> Table | None:
        """The table that a non-leaf entry of `table` points to."""
        found = self.by_pfn.get(pfn_of(spte))
        return found if found is not None and found.parent is table else None

    def walk(self, root: Table, gfn: int) -> tuple[Table, int, int | None]:
        """As the hardware does: the last table on the way from `root` to `gfn`, the index in it, and the entry."""
        table = root
        while True:
            index = index_of(table.level, gfn)
            spte = table.read(index)
            if spte is None or not points_to_table(spte, table.level):
                return table, index, spte
            below = self.child(table, spte)
            if below is None:
                return table, index, spte
            table = below

    def contents(self, root: Table) -> Iterator[tuple[int, int, int]]:
        """Level, gfn and value of all entries that are not empty and can be reached from `root`, depth first."""
        for index, spte in root.items():
            yield root.level, root.gfn(index), spte
            if points_to_table(spte, root.level):
                below = self.child(root, spte)
                if below is not None:
                    yield from self.contents(below)

    def leafs(self, root: Table) -> Iterator[tuple[int, int, int]]:
        """The same, of leafs alone."""
        for level, gfn, spte in self.contents(root):
            if spte & 1 << 11 and is_leaf(spte, level):
                yield level, gfn, spte
