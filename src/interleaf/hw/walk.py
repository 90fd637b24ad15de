"""The page walk: how the hardware turns a gfn into a pfn, with the A and D bits that it sets on the way.

One translation, from the look into the TLB to the filling of it, is one indivisible action here. That is less
than the hardware allows only in that an entry cannot change between the reads of two levels of one walk; a
paging-structure cache that is out of date gives those outcomes. A and D bits are set by an atomic OR on the entry
that is in the table then, whatever has become of the entries above it that the processor has cached.
"""

from __future__ import annotations

from dataclasses import dataclass

from interleaf.runtime import Memory, Violation

from . import ept
from .access import ALL_ACCESS, Access, Fault
from .cpu import CachedTable, Cpu, TlbEntry, deepest_cached_table, invalidate_gfn, tlb_fill, tlb_lookup
from .formats import EntryFormat, entry_format, malformation_error, violation_error
from .frames import is_allocated
from .page_table import PageTable, gfn_round_for_level, index_of, pages_per_entry, table_at

__all__ = ["Access", "Fault", "Translation", "starts_from_cache", "translate"]


@dataclass(frozen=True, slots=True)
class Translation:
    """The outcome of a translation: a pfn, or a fault."""

    pfn: int | None = None
    fault: Fault | None = None
    error_code: int = 0
    """Of a fault, as KVM gets it (PFERR_*)."""
    from_tlb: bool = False
    dirtied: bool = False
    """The access has set the D bit of its leaf: page-modification logging logs its gfn."""


def starts_from_cache(memory: Memory, cpu: Cpu, root: PageTable, gfn: int, access: Access) -> bool:
    """Would a translation walk the tables, and start from a cached one? Whether it does is up to the hardware,
    which may have dropped it."""
    return (
        _usable(tlb_lookup(memory, cpu, root, gfn), access) is None
        and deepest_cached_table(memory, cpu, root, gfn) is not None
    )


def translate(
    memory: Memory, cpu: Cpu, root: PageTable, gfn: int, access: Access, from_root: bool, levels: int = 0
) -> Translation:
    """Translate `gfn` for one access by the guest that runs on `cpu` under `root`, a table of level `levels` (the
    length of the walk that the EPT pointer names), or of the platform's highest level.

    `from_root`: the paging-structure cache has lost what it had for this gfn. Reading a freed table is a
    violation of I2.
    """
    hit = _usable(tlb_lookup(memory, cpu, root, gfn), access)
    if hit is not None:
        return Translation(hit.pfn + gfn - hit.gfn, from_tlb=True)
    platform = cpu.platform
    form = entry_format(platform)
    start = None if from_root else deepest_cached_table(memory, cpu, root, gfn)
    table, level, permissions = root, levels or platform.levels, ALL_ACCESS
    if start is not None:
        table, level, permissions = start.table, start.level, start.permissions
    passed: list[CachedTable] = []
    while True:
        entry = _read_entry(memory, cpu, table, level, gfn, start)
        if form.malformed(entry, level, platform.maxphyaddr):
            invalidate_gfn(memory, cpu, root, gfn)
            return Translation(fault=form.malformation, error_code=malformation_error(form, access))
        permissions &= form.permissions(entry)
        if not permissions & access.value:
            invalidate_gfn(memory, cpu, root, gfn)
            return Translation(fault=form.violation, error_code=violation_error(form, access, permissions != 0))
        if ept.is_leaf(entry, level):
            break
        _assist(memory, table, index_of(gfn, level), entry, form.accessed)
        level -= 1
        table = table_at(memory, type(root), ept.pfn_of(entry))
        passed.append(
            CachedTable(
                root, gfn_round_for_level(gfn, level + 1), pages_per_entry(level + 1), level, table, permissions
            )
        )
    dirtied = access is Access.WRITE and bool(form.dirty) and not entry & form.dirty
    assisted = form.accessed | form.dirty if access is Access.WRITE else form.accessed
    entry = _assist(memory, table, index_of(gfn, level), entry, assisted)
    cached = _cached(form, root, gfn, level, entry, permissions)
    tlb_fill(memory, cpu, gfn, cached, tuple(passed))
    return Translation(cached.pfn + gfn - cached.gfn, dirtied=dirtied)


def _cached(form: EntryFormat, root: PageTable, gfn: int, level: int, entry: int, permissions: int) -> TlbEntry:
    """The TLB entry for a leaf that was walked to."""
    return TlbEntry(
        root,
        gfn_round_for_level(gfn, level),
        ept.pfn_of(entry),
        writable=bool(permissions & Access.WRITE.value),
        executable=bool(permissions & Access.EXEC.value),
        dirty=not form.dirty or bool(entry & form.dirty),
        npages=pages_per_entry(level),
    )


def _usable(entry: TlbEntry | None, access: Access) -> TlbEntry | None:
    """The cached translation if it serves this access; a first write through a clean one has to walk."""
    if entry is None or (access is Access.WRITE and not (entry.writable and entry.dirty)):
        return None
    return None if access is Access.EXEC and not entry.executable else entry


def _read_entry(memory: Memory, cpu: Cpu, table: PageTable, level: int, gfn: int, start: CachedTable | None) -> int:
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
