"""A logical processor: what it has cached of the guest's page tables."""

from __future__ import annotations

from typing import NamedTuple

from interleaf.runtime import Const, Object, Plain

from .page_table import PageTable


class TlbEntry(NamedTuple):
    """A cached translation; it is tagged with the root that it was made from (EP4TA)."""

    root: PageTable
    gfn: int
    pfn: int
    writable: bool
    executable: bool
    dirty: bool
    """The D bit was set through this entry; if not, a write walks the tables again to set it."""


class CachedTable(NamedTuple):
    """A paging-structure-cache entry: the table of `level` that covers the gfns from `base` on."""

    root: PageTable
    base: int
    level: int
    table: PageTable


class Cpu(Object):
    """A processor that runs one vCPU's guest code."""

    index = Const(int)
    tlb: Plain[frozenset[TlbEntry]] = Plain(frozenset())
    paging_structures: Plain[frozenset[CachedTable]] = Plain(frozenset())
