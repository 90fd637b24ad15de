"""A logical processor: what it has cached of the page tables, and how cached translations go away.

All functions that take a `Memory` are parts of an operation: the hardware's action is indivisible as far as
software can see.
"""

from __future__ import annotations

from typing import NamedTuple

from interleaf.runtime import Const, Memory, Object, Plain

from .page_table import PageTable, pages_per_entry


class TlbEntry(NamedTuple):
    """A cached translation of one gfn, tagged with the root that it was made from (the SDM's EP4TA)."""

    root: PageTable
    gfn: int
    pfn: int
    writable: bool
    executable: bool
    dirty: bool
    """The D bit of the leaf is known to be set; if not, a write walks the tables again to set it."""


class CachedTable(NamedTuple):
    """An entry of the paging-structure cache: for the gfns that `table`, of `level`, covers from `base` on, a
    walk from `root` may start at `table`."""

    root: PageTable
    base: int
    level: int
    table: PageTable
    permissions: int
    """What the entries on the way to the table allow, as EPT bits R, W and X."""

    def covers(self, root: PageTable, gfn: int) -> bool:
        return self.root is root and self.base <= gfn < self.base + pages_per_entry(self.level + 1)


class Cpu(Object):
    """A processor. Its caches change by its own accesses and by flushes only, each in one operation."""

    index = Const(int)
    tlb: Plain[frozenset[TlbEntry]] = Plain(frozenset())
    paging_structures: Plain[frozenset[CachedTable]] = Plain(frozenset())


def tlb_lookup(memory: Memory, cpu: Cpu, root: PageTable, gfn: int) -> TlbEntry | None:
    """The cached translation of `gfn` under `root`."""
    for entry in memory.load(cpu, Cpu.tlb):
        if entry.gfn == gfn and entry.root is root:
            return entry  # type: ignore[no-any-return]
    return None


def deepest_cached_table(memory: Memory, cpu: Cpu, root: PageTable, gfn: int) -> CachedTable | None:
    """The cached paging structure from which a walk for `gfn` under `root` would start."""
    covering = [cached for cached in memory.load(cpu, Cpu.paging_structures) if cached.covers(root, gfn)]
    return min(covering, key=lambda cached: cached.level, default=None)


def tlb_fill(memory: Memory, cpu: Cpu, entry: TlbEntry, tables: tuple[CachedTable, ...]) -> None:
    """Remember a translation, in place of an older one of the same gfn, and the tables that led to it."""
    others = {old for old in memory.load(cpu, Cpu.tlb) if (old.root, old.gfn) != (entry.root, entry.gfn)}
    memory.store(cpu, Cpu.tlb, frozenset(others | {entry}))
    if tables:
        kept = memory.load(cpu, Cpu.paging_structures)
        memory.store(cpu, Cpu.paging_structures, kept | frozenset(tables))


def invalidate_gfn(memory: Memory, cpu: Cpu, root: PageTable, gfn: int) -> None:
    """Drop what would be used to translate `gfn` under `root`, as an EPT violation does (SDM, "Operations that
    invalidate cached mappings")."""
    translations = memory.load(cpu, Cpu.tlb)
    memory.store(cpu, Cpu.tlb, translations - {e for e in translations if e.root is root and e.gfn == gfn})
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
    memory.store(cpu, Cpu.tlb, translations - {e for e in translations if start <= e.gfn < end})
    tables = memory.load(cpu, Cpu.paging_structures)
    touched = {c for c in tables if c.base < end and start < c.base + pages_per_entry(c.level + 1)}
    memory.store(cpu, Cpu.paging_structures, tables - touched)
