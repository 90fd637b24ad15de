"""The page walk: how the hardware turns a gfn into a pfn, with the A and D bits that it sets on the way.

One translation, from the look into the TLB to the filling of it, is one indivisible action here. That is less
than the hardware allows only in that an entry cannot change between the reads of two levels of one walk; a
paging-structure cache that is out of date gives those outcomes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from interleaf.runtime import Memory, Violation

from . import ept
from .cpu import CachedTable, Cpu, TlbEntry, deepest_cached_table, invalidate_gfn, tlb_fill, tlb_lookup
from .frames import is_allocated
from .page_table import PG_LEVEL_4K, ROOT_LEVEL, PageTable, gfn_round_for_level, index_of, table_at


class Access(enum.Enum):
    """What the guest does with a page."""

    READ = ept.VMX_EPT_READABLE_MASK
    WRITE = ept.VMX_EPT_WRITABLE_MASK
    EXEC = ept.VMX_EPT_EXECUTABLE_MASK

    @property
    def verb(self) -> str:
        """As in "vCPU0 writes gfn 0"."""
        return {"READ": "reads", "WRITE": "writes", "EXEC": "executes"}[self.name]


class Fault(enum.Enum):
    """Why a translation ends in a VM exit."""

    VIOLATION = "EPT violation"
    MISCONFIG = "EPT misconfiguration"


@dataclass(frozen=True, slots=True)
class Translation:
    """The outcome of a translation: a pfn, or a fault."""

    pfn: int | None = None
    fault: Fault | None = None
    from_tlb: bool = False


def starts_from_cache(memory: Memory, cpu: Cpu, root: PageTable, gfn: int, access: Access) -> bool:
    """Would a translation walk the tables, and start from a cached one? Whether it does is up to the hardware,
    which may have dropped it."""
    return (
        _usable(tlb_lookup(memory, cpu, root, gfn), access) is None
        and deepest_cached_table(memory, cpu, root, gfn) is not None
    )


def translate(memory: Memory, cpu: Cpu, root: PageTable, gfn: int, access: Access, from_root: bool) -> Translation:
    """Translate `gfn` for one access by the guest that runs on `cpu` under `root`.

    `from_root`: the paging-structure cache has lost what it had for this gfn. Reading a freed table is a
    violation of I2.
    """
    hit = _usable(tlb_lookup(memory, cpu, root, gfn), access)
    if hit is not None:
        return Translation(hit.pfn, from_tlb=True)
    start = None if from_root else deepest_cached_table(memory, cpu, root, gfn)
    table, level, permissions = root, ROOT_LEVEL, ept.VMX_EPT_RWX_MASK
    if start is not None:
        table, level, permissions = start.table, start.level, start.permissions
    passed: list[CachedTable] = []
    while True:
        entry = _read_entry(memory, cpu, root, table, level, gfn, start)
        if ept.is_misconfigured(entry):
            return Translation(fault=Fault.MISCONFIG)
        permissions &= entry
        if not permissions & access.value:
            invalidate_gfn(memory, cpu, root, gfn)
            return Translation(fault=Fault.VIOLATION)
        if ept.is_leaf(entry, level):
            break
        _assist(memory, table, index_of(gfn, level), entry, ept.VMX_EPT_ACCESS_BIT)
        level -= 1
        table = table_at(memory, type(root), ept.pfn_of(entry))
        passed.append(CachedTable(root, gfn_round_for_level(gfn, level + 1), level, table, permissions))
    assisted = ept.VMX_EPT_ACCESS_BIT | (ept.VMX_EPT_DIRTY_BIT if access is Access.WRITE else 0)
    entry = _assist(memory, table, index_of(gfn, level), entry, assisted)
    pfn = ept.pfn_of(entry) + (gfn - gfn_round_for_level(gfn, level) if level > PG_LEVEL_4K else 0)
    cached = TlbEntry(
        root,
        gfn,
        pfn,
        writable=bool(permissions & ept.VMX_EPT_WRITABLE_MASK),
        executable=bool(permissions & ept.VMX_EPT_EXECUTABLE_MASK),
        dirty=bool(entry & ept.VMX_EPT_DIRTY_BIT),
    )
    tlb_fill(memory, cpu, cached, tuple(passed))
    return Translation(pfn)


def _usable(entry: TlbEntry | None, access: Access) -> TlbEntry | None:
    """The cached translation if it serves this access; a first write through a clean one has to walk."""
    if entry is None or (access is Access.WRITE and not (entry.writable and entry.dirty)):
        return None
    return None if access is Access.EXEC and not entry.executable else entry


def _read_entry(
    memory: Memory, cpu: Cpu, root: PageTable, table: PageTable, level: int, gfn: int, start: CachedTable | None
) -> int:
    memory.exercise("I2")
    if not is_allocated(memory, table):
        way = "starting from its paging-structure cache" if start is not None else "from the root"
        message = (
            f"CPU{cpu.index} walks the page tables for gfn {gfn:#x}, {way}, and reads a table of level {level} that is "
            "freed"
        )
        memory.violate(Violation("I2", message, object=table.name))
    return memory.load_cell(PageTable.spt.element(table, index_of(gfn, level)))  # type: ignore[no-any-return]


def _assist(memory: Memory, table: PageTable, index: int, entry: int, bits: int) -> int:
    """Set A or D bits of the entry in the table where they are not set yet: an atomic read-modify-write."""
    if entry & bits != bits:
        memory.store_cell(PageTable.spt.element(table, index), entry | bits)
    return entry | bits
