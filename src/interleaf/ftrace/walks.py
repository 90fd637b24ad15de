"""The model's page tables beside a walk through the real ones."""

from __future__ import annotations

from collections.abc import Iterator

from interleaf.hw.page_table import index_of, pages_per_entry
from interleaf.kvm.kvm_host import KvmMmuPage

from .drive import Driver
from .matching import Frames
from .outcome import SnapshotResult
from .snapshots import Snapshot
from .spte import NON_PRESENT, PRESENT, is_leaf, pfn_of, points_to_table


def contents(
    driver: Driver, frames: Frames, sp: KvmMmuPage
) -> Iterator[tuple[tuple[int, int], tuple[KvmMmuPage, int]]]:
    """What is below a table: level and gfn, the table that has the entry, and the entry as the trace would have it."""
    role = driver.memory.peek(KvmMmuPage.role.cell(sp))
    base = driver.memory.peek(KvmMmuPage.gfn.cell(sp)) & -pages_per_entry(role.level + 1)
    for index in sorted(KvmMmuPage.spt.touched(sp)):
        entry = driver.entry(sp, index)
        if entry in NON_PRESENT:
            continue
        yield (role.level, base + index * pages_per_entry(role.level)), (sp, frames.spte(entry, role.level))
        if points_to_table(entry, role.level):
            child = driver.table_of_pfn(pfn_of(entry))
            if child is not None:
                yield from contents(driver, frames, child)


def first_frame(driver: Driver, frames: Frames, gfn: int, level: int) -> int | None:
    """The frame that a huge page of `level` at `gfn` would begin with, by any smaller page that is mapped there."""
    for sp in driver.tables_at(level, gfn):
        entry = driver.entry(sp, index_of(gfn, level))
        child = driver.table_of_pfn(pfn_of(entry)) if points_to_table(entry, level) else None
        if child is None:
            continue
        for (low, first), (_sp, spte) in contents(driver, frames, child):
            if is_leaf(spte, low):
                return pfn_of(spte) - (first - gfn)
    return None


def compare_tables(driver: Driver, frames: Frames, snapshot: Snapshot, volatile: int) -> SnapshotResult:
    """Compare all entries below a root. A and D bits that only the real tables have are the hardware's: the model's get
    them, too."""
    result = SnapshotResult(snapshot.number, snapshot.label)
    if snapshot.root is None:
        return result
    roots = [sp for level in (5, 4) for sp in driver.tables_at(level, 0) if frames.real.get(sp.pfn) == snapshot.root]
    if not roots:
        result.differences.append(f"the model has no root in the frame {snapshot.root:x}")
        return result
    mine = dict(contents(driver, frames, roots[-1]))
    for level, gfn in sorted({*mine, *snapshot.entries}, key=lambda place: (-place[0], place[1])):
        sp, said = mine.get((level, gfn), (None, 0))
        real = snapshot.entries.get((level, gfn), 0)
        if said == real or {said, real} <= NON_PRESENT:
            result.entries += 1
        elif sp is not None and said & real & PRESENT and said | real & volatile == real:
            result.entries += 1
            index = index_of(gfn, level)
            driver.set_entry(sp, index, driver.entry(sp, index) | real & volatile)
        else:
            result.differences.append(f"gfn {gfn:x}, level {level}: the model says {said:x}, the snapshot {real:x}")
    return result
