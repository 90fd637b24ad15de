"""A logical processor: what it has cached of the page tables, and how cached translations go away.

All functions that take a `Memory` are parts of an operation: the hardware's action is indivisible as far as
software can see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from interleaf.runtime import Const, Memory, Object, Plain

from .page_table import PageTable, pages_per_entry
from .platform import EPT, Platform


class TlbEntry(NamedTuple):
    """A cached translation of `npages` gfns from `gfn` on to as many pfns from `pfn` on, tagged with the root that it
    was made from (the SDM's EP4TA).

    A huge page is cached as a whole, so that gfns which were never accessed hit it too, and a flush of a part of it
    drops all of it. (What KVM relies on: where it flushes a range that is smaller than a huge page that it has zapped,
    the platform flushes at least that page.)
    """

    root: PageTable
    gfn: int
    pfn: int
    writable: bool
    executable: bool
    dirty: bool
    """The D bit of the leaf is known to be set (or there is none); if not, a write walks the tables again to set
    it."""
    npages: int = 1

    def covers(self, root: PageTable, gfn: int) -> bool:
        return self.gfn <= gfn < self.gfn + self.npages and self.root is root

    def says_nothing_beside(self, other: TlbEntry) -> bool:
        """Does this one allow nothing that `other` does not, where both cover a gfn?"""
        return (
            self.pfn - self.gfn == other.pfn - other.gfn
            and self.writable <= other.writable
            and self.executable <= other.executable
            and self.dirty <= other.dirty
        )


class CachedTable(NamedTuple):
    """An entry of the paging-structure cache: for the gfns that `table`, of `level`, covers from `base` on, a
    walk from `root` may start at `table`."""

    root: PageTable
    base: int
    level: int
    table: PageTable
    permissions: int
    """What the entries on the way to the table allow, as a mask of `Access`."""

    def covers(self, root: PageTable, gfn: int) -> bool:
        return self.root is root and self.base <= gfn < self.base + pages_per_entry(self.level + 1)


class Cpu(Object):
    """A processor. Its caches change by its own accesses and by flushes only, each in one operation."""

    index = Const(int)
    platform: Const[Platform] = Const(Platform, EPT)
    """The machine that it belongs to."""
    tlb: Plain[frozenset[TlbEntry]] = Plain(frozenset())
    paging_structures: Plain[frozenset[CachedTable]] = Plain(frozenset())


def tlb_lookup(memory: Memory, cpu: Cpu, root: PageTable, gfn: int) -> TlbEntry | None:
    """The cached translation of `gfn` under `root`.

    There can be two, a small page's and a huge page's that has taken its place. The small one, which is the older,
    is used: software must flush before it relies on either.
    """
    found: TlbEntry | None = None
    for entry in memory.load(cpu, Cpu.tlb):
        if entry.covers(root, gfn) and (found is None or entry.npages < found.npages):
            found = entry
    return found


def deepest_cached_table(memory: Memory, cpu: Cpu, root: PageTable, gfn: int) -> CachedTable | None:
    """The cached paging structure from which a walk for `gfn` under `root` would start."""
    covering = [cached for cached in memory.load(cpu, Cpu.paging_structures) if cached.covers(root, gfn)]
    return min(covering, key=lambda cached: cached.level, default=None)


def tlb_fill(memory: Memory, cpu: Cpu, gfn: int, entry: TlbEntry, tables: tuple[CachedTable, ...]) -> None:
    """Remember a translation that an access to `gfn` needed, and the tables that led to it.

    It takes the place of older ones of `gfn`, and of older ones that allow no more; others that it covers stay,
    although they are out of date.
    """
    kept = set()
    for old in memory.load(cpu, Cpu.tlb):
        if old.root is not entry.root or not _overlap(old, entry.gfn, entry.gfn + entry.npages):
            kept.add(old)
        elif old.says_nothing_beside(entry):
            kept.update(_without(old, entry.gfn, entry.gfn + entry.npages))
        else:
            kept.update(_without(old, gfn, gfn + 1))
    memory.store(cpu, Cpu.tlb, frozenset(kept | {entry}))
    if tables:
        memory.store(cpu, Cpu.paging_structures, memory.load(cpu, Cpu.paging_structures) | frozenset(tables))


def invalidate_gfn(memory: Memory, cpu: Cpu, root: PageTable, gfn: int) -> None:
    """Drop what would be used to translate `gfn` under `root`, as an EPT violation does (SDM, "Operations that
    invalidate cached mappings")."""
    translations = memory.load(cpu, Cpu.tlb)
    if any(entry.covers(root, gfn) for entry in translations):
        left = {piece for e in translations for piece in (_without(e, gfn, gfn + 1) if e.root is root else (e,))}
        memory.store(cpu, Cpu.tlb, frozenset(left))
    tables = memory.load(cpu, Cpu.paging_structures)
    memory.store(cpu, Cpu.paging_structures, tables - {c for c in tables if c.covers(root, gfn)})


def flush_all(memory: Memory, cpu: Cpu) -> None:
    """Drop everything (INVEPT, all contexts). Whoever does so has waited for the processor: its walks are over."""
    memory.order(cpu, acquire=True)
    memory.store(cpu, Cpu.tlb, frozenset())
    memory.store(cpu, Cpu.paging_structures, frozenset())


def flush_range(memory: Memory, cpu: Cpu, start: int, end: int) -> None:
    """Drop the translations of the gfns start <= gfn < end, and the cached tables that cover any of them.
    As with `flush_all`, walks that were under way are over."""
    memory.order(cpu, acquire=True)
    translations = memory.load(cpu, Cpu.tlb)
    memory.store(cpu, Cpu.tlb, frozenset(entry for entry in translations if not _overlap(entry, start, end)))
    tables = memory.load(cpu, Cpu.paging_structures)
    touched = {c for c in tables if c.base < end and start < c.base + pages_per_entry(c.level + 1)}
    memory.store(cpu, Cpu.paging_structures, tables - touched)


def _overlap(entry: TlbEntry, start: int, end: int) -> bool:
    return entry.gfn < end and start < entry.gfn + entry.npages


def _without(entry: TlbEntry, start: int, end: int) -> Iterator[TlbEntry]:
    """What is left of a translation without the gfns start <= gfn < end."""
    if not _overlap(entry, start, end):
        yield entry
        return
    if entry.gfn < start:
        yield entry._replace(npages=start - entry.gfn)
    last = entry.gfn + entry.npages
    if end < last:
        yield entry._replace(gfn=end, pfn=entry.pfn + end - entry.gfn, npages=last - end)
