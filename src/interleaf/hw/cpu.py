"""A logical processor: what it has cached of the page tables, and how cached translations go away.

All functions that take a `Memory` are parts of an operation: the hardware's action is indivisible as far as
software can see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from interleaf.runtime import Const, Memory, Object, Plain

from .page_table import PageTable
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

    def part(self, start: int, end: int) -> TlbEntry:
        """The same translation, for its gfns start <= gfn < end only."""
        return self._replace(gfn=start, pfn=self.pfn + start - self.gfn, npages=end - start)

    def says_nothing_beside(self, other: TlbEntry) -> bool:
        """Does this one allow nothing that `other` does not, where both cover a gfn?"""
        return (
            self.pfn - self.gfn == other.pfn - other.gfn
            and self.writable <= other.writable
            and self.executable <= other.executable
            and self.dirty <= other.dirty
        )


class CachedTable(NamedTuple):
    """An entry of the paging-structure cache: for the `npages` gfns from `gfn` on, a walk from `root` may start at
    `table`, of `level`.

    They are all that the table covers, less those that were flushed since: a flush promises nothing for other gfns
    than it names. (A processor that has one entry for all of them forgets more. But ranges are flushed by a hypervisor
    below, which may shadow the tables, and promises no more than that.)
    """

    root: PageTable
    gfn: int
    npages: int
    level: int
    table: PageTable
    permissions: int
    """What the entries on the way to the table allow, as a mask of `Access`."""

    def covers(self, root: PageTable, gfn: int) -> bool:
        return self.gfn <= gfn < self.gfn + self.npages and self.root is root

    def part(self, start: int, end: int) -> CachedTable:
        """The same table, for its gfns start <= gfn < end only."""
        return self._replace(gfn=start, npages=end - start)

    def replaces(self, other: CachedTable) -> bool:
        """Is `other` what was left of the same entry after a flush?"""
        return self.table is other.table and self.root is other.root and self.permissions == other.permissions


E = TypeVar("E", TlbEntry, CachedTable)


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
        known = memory.load(cpu, Cpu.paging_structures)
        others = {cached for cached in known if not any(table.replaces(cached) for table in tables)}
        memory.store(cpu, Cpu.paging_structures, frozenset(others | set(tables)))


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
    """Drop the translations of the gfns start <= gfn < end, and do not start a walk for any of them at a cached table.
    As with `flush_all`, walks that were under way are over."""
    memory.order(cpu, acquire=True)
    translations = memory.load(cpu, Cpu.tlb)
    memory.store(cpu, Cpu.tlb, frozenset(entry for entry in translations if not _overlap(entry, start, end)))
    tables = memory.load(cpu, Cpu.paging_structures)
    memory.store(
        cpu, Cpu.paging_structures, frozenset(piece for table in tables for piece in _without(table, start, end))
    )


def _overlap(entry: TlbEntry | CachedTable, start: int, end: int) -> bool:
    return entry.gfn < end and start < entry.gfn + entry.npages


def _without(entry: E, start: int, end: int) -> Iterator[E]:
    """What is left of a cached entry without the gfns start <= gfn < end."""
    if not _overlap(entry, start, end):
        yield entry
        return
    if entry.gfn < start:
        yield entry.part(entry.gfn, start)
    last = entry.gfn + entry.npages
    if end < last:
        yield entry.part(end, last)
