"""Moving memory to other addresses, pages and all (mm/mremap.c, v6.12)."""

from __future__ import annotations

from typing import Any

from interleaf.hw.page_table import pages_per_entry
from interleaf.runtime import BLOCK, Memory, ModelError, operation, read_marked, routine, say
from interleaf.runtime.cells import Cell

from .huge_memory import Block
from .mm_types import AddressSpace, Area, Mm, Pte, PteKind, blocks_between, hvas_between
from .mmu_notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from .page import Page, ZeroPage, expect_unmapped
from .unmap import break_block


@operation(
    focus=lambda mm, area: Mm.areas.cell(mm),
    words=lambda mm, area, _: f"makes room at hva {area.start:#x}",
)
def _add_area(memory: Memory, mm: Mm, area: Area) -> None:
    """copy_vma(): the new range is known."""
    memory.store(mm, Mm.areas, (*memory.load(mm, Mm.areas), area))


@operation(
    focus=lambda mm, hva, to: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, to, _: f"moves the host's PTE of hva {hva:#x} to hva {to:#x}",
)
def _move_pte(memory: Memory, mm: Mm, hva: int, to: int) -> Any:
    vma = memory.load(mm, Mm.pte[hva]).vma
    moved = _move(memory, Mm.pte[hva].cell(mm), Mm.pte[to].cell(mm), hva - to)
    if moved is None and vma is not None and vma.file is not None:
        mapped = memory.load(vma.file, AddressSpace.i_mmap)
        memory.store(vma.file, AddressSpace.i_mmap, (*mapped, (mm, to, 1, hva + vma.pgoff)))
    return moved


@operation(
    focus=lambda mm, block, to: Mm.huge[block].cell(mm),
    words=lambda mm, block, to, _: f"moves the host's huge entry at hva {block[1]:#x} to hva {to:#x}",
)
def _move_huge_pmd(memory: Memory, mm: Mm, block: Block, to: int) -> Any:
    return _move(memory, Mm.huge[block].cell(mm), Mm.huge[block[0], to].cell(mm), block[1] - to)


def _move(memory: Memory, old: Cell, new: Cell, by: int) -> Any:
    entry: Pte = memory.load_cell(old)
    if entry.kind is PteKind.BUSY:
        return BLOCK
    page = entry.page if entry.kind is PteKind.PRESENT else None
    if page is not None and not isinstance(page, ZeroPage) and memory.load(page, Page.mapcount) == 1:
        expect_unmapped(memory, page, "the notifiers have returned and the host moves")
    vma = entry.vma and entry.vma._replace(pgoff=entry.vma.pgoff + by)
    memory.store_cell(old, Pte())
    memory.store_cell(new, entry._replace(vma=vma))
    return None


@routine
def mremap(mm: Mm, start: int, npages: int, to: int) -> None:
    """Move what is at start <= hva < start + npages to the hvas from `to` on, where nothing ever was mapped
    (MREMAP_FIXED). Sleeps. Raises ModelError if something was."""
    end, by = start + npages, to - start
    areas = read_marked(mm, Mm.areas)
    if any(area.start < to + npages and to < area.end for area in areas):
        raise ModelError(f"memory is to be moved to hva {to:#x}, where something was mapped before.")
    hvas = hvas_between(areas, start, end)
    blocks = blocks_between(areas, start, end)
    levels = tuple(sorted({level for level, _hva in blocks if by % pages_per_entry(level) == 0}, reverse=True))
    shared = any(area.shared for area in areas if area.start < end and start < area.end)
    _add_area(mm, Area(to, to + npages, tuple(hva + by for hva in hvas), levels, shared))
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    for block in blocks:
        covered = pages_per_entry(block[0])
        if start <= block[1] and block[1] + covered <= end and by % covered == 0:
            _move_huge_pmd(mm, block, block[1] + by)
        else:
            break_block(mm, block, True)
    for hva in hvas:
        _move_pte(mm, hva, hva + by)
    mmu_notifier_invalidate_range_end(mm, start, end)
    say(f"mremap of hva {start:#x} to hva {to:#x} returns")
