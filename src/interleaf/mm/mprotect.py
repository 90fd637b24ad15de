"""Changing what a process may do with its memory (mm/mprotect.c, v6.12)."""

from __future__ import annotations

from typing import Any

from interleaf.hw.page_table import pages_per_entry
from interleaf.runtime import BLOCK, Memory, operation, read_marked, routine, say
from interleaf.runtime.cells import Cell

from .huge_memory import Block
from .mm_types import Mm, Prot, Pte, PteKind, blocks_between, hvas_between
from .mmu_notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from .page import Page, ZeroPage
from .unmap import break_block


@operation(
    focus=lambda mm, hva, prot: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, prot, _: f"protects the host's PTE of hva {hva:#x}: {prot.name.lower()}",
)
def _change_pte(memory: Memory, mm: Mm, hva: int, prot: Prot) -> Any:
    return _change(memory, Mm.pte[hva].cell(mm), prot)


@operation(
    focus=lambda mm, block, prot: Mm.huge[block].cell(mm),
    words=lambda mm, block, prot, _: f"protects the host's huge entry at hva {block[1]:#x}: {prot.name.lower()}",
)
def _change_huge_pmd(memory: Memory, mm: Mm, block: Block, prot: Prot) -> Any:
    return _change(memory, Mm.huge[block].cell(mm), prot)


def _change(memory: Memory, cell: Cell, prot: Prot) -> Any:
    entry: Pte = memory.load_cell(cell)
    if entry.kind is PteKind.BUSY:
        return BLOCK
    if entry.vma is not None:
        page = entry.page
        # what nobody shares is made writable at once, which saves a fault (can_change_pte_writable)
        writable = (
            prot is Prot.WRITE
            and page is not None
            and entry.kind is PteKind.PRESENT
            and not isinstance(page, ZeroPage)
            and bool(memory.load(page, Page.exclusive))
        )
        memory.store_cell(cell, entry._replace(vma=entry.vma._replace(prot=prot), writable=writable))
    return None


@routine
def mprotect(mm: Mm, start: int, npages: int, prot: Prot) -> None:
    """Let the process access start <= hva < start + npages as `prot` says from now on. Sleeps."""
    end = start + npages
    areas = read_marked(mm, Mm.areas)
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    for block in blocks_between(areas, start, end):
        if start <= block[1] and block[1] + pages_per_entry(block[0]) <= end:
            _change_huge_pmd(mm, block, prot)
        else:
            break_block(mm, block, True)
    for hva in hvas_between(areas, start, end):
        _change_pte(mm, hva, prot)
    mmu_notifier_invalidate_range_end(mm, start, end)
    say(f"mprotect of hva {start:#x} to {end:#x} returns")
