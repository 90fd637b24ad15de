"""Page tables of the machine: four or five levels of 512 entries, and the addresses by which they name each other.

A gfn is a guest frame number and a pfn a host frame number, both in 4 KiB pages. Level 1 holds the entries
that map 4 KiB pages; the entries of level n+1 point to tables of level n. (Intel SDM volume 3, "EPT
translation mechanism"; AMD APM volume 2, "Nested paging"; both share this geometry.)
"""

from __future__ import annotations

import bisect
from typing import TypeVar

from interleaf.runtime import Array, Memory, ModelError, Object

from .frames import PAGE_TABLE_PFN_BASE

LEVEL_BITS = 9
ENTRIES_PER_TABLE = 1 << LEVEL_BITS

PG_LEVEL_4K = 1
PG_LEVEL_2M = 2
PG_LEVEL_1G = 3
ROOT_LEVEL = 4
"""Four-level paging: a root table covers 2**36 pages."""
ALL_ENTRIES = tuple(range(ENTRIES_PER_TABLE))


class PageTable(Object):
    """One 4 KiB page of 512 entries. Freed tables are poisoned: the hardware must not walk them either.

    A subclass may add what an operating system knows of the table; it must not have `Const` fields, because a
    table is found again by its pfn.
    """

    freeable = True
    spt = Array(0)
    """The entries by index, as the bits that the hardware sees."""

    @property
    def pfn(self) -> int:
        """The frame that this table occupies."""
        return PAGE_TABLE_PFN_BASE + self.serial


P = TypeVar("P", bound=PageTable)


def pages_per_entry(level: int) -> int:
    """How many 4 KiB pages one entry of a table of this level covers (KVM_PAGES_PER_HPAGE)."""
    return 1 << (level - 1) * LEVEL_BITS


def index_of(gfn: int, level: int) -> int:
    """Which entry of a table of this level leads to `gfn` (SPTE_INDEX)."""
    return gfn >> (level - 1) * LEVEL_BITS & ENTRIES_PER_TABLE - 1


def gfn_round_for_level(gfn: int, level: int) -> int:
    """The first gfn that the entry of this level for `gfn` covers (kernel function of that name)."""
    return gfn & -pages_per_entry(level)


def next_entry(gfns: tuple[int, ...] | None, start: int, end: int, level: int) -> int | None:
    """The first gfn of the first entry of a table of `level` from `start` on, where an entry begins, that leads to one
    of `gfns` (ascending; None: to any); None if that is not before `end`."""
    if gfns is not None:
        position = bisect.bisect_left(gfns, start)
        if position == len(gfns):
            return None
        start = gfns[position] & -(1 << (level - 1) * LEVEL_BITS)
    return start if start < end else None


def entries_for(gfns: tuple[int, ...] | None, base: int, level: int) -> tuple[int, ...]:
    """The indices, ascending, of those entries of the table at `base` and `level` that lead to one of `gfns` (sorted;
    None: to any)."""
    if gfns is None:
        return ALL_ENTRIES
    end = base + pages_per_entry(level + 1)
    found = []
    gfn = next_entry(gfns, base, end, level)
    while gfn is not None:
        found.append(index_of(gfn, level))
        gfn = next_entry(gfns, gfn + pages_per_entry(level), end, level)
    return tuple(found)


def table_at(memory: Memory, kind: type[P], pfn: int) -> P:
    """Inside an operation: the table of class `kind` that occupies frame `pfn`."""
    found = memory.world.serials.get((kind, pfn - PAGE_TABLE_PFN_BASE))
    if not isinstance(found, kind):
        raise ModelError(f"no {kind.__name__} was ever at pfn {pfn:#x}; a page-table entry must point to a table.")
    return found
