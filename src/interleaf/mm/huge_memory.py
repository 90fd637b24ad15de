"""Transparent huge pages, seen from the host: how they are mapped in small pieces, and split (mm/huge_memory.c, v6.12).

Mapping a huge page by PTEs instead of one huge entry changes nothing about the page. Splitting it makes a page of
each frame; that is possible only while nobody but the entries has references on it.
"""

from __future__ import annotations

from interleaf.hw.page_table import pages_per_entry
from interleaf.runtime import Memory, new, operation, read_marked, routine, say

from .mm_types import Mm, Pte, PteKind, hvas_between
from .mmu_notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from .page import CompoundPage, Page, TailPage, get_page, page_ref_freeze, put_page
from .pte import page_add_rmap, read_pte, set_pte_if_same

Block = tuple[int, int]
"""A huge entry: level, and first hva."""


@operation(
    focus=lambda mm, block, hvas: Mm.huge[block].cell(mm),
    words=lambda mm, block, hvas, done: (
        f"maps the huge page at hva {block[1]:#x} by small entries" if done else "finds no huge entry to split"
    ),
)
def _split_huge_pmd_locked(memory: Memory, mm: Mm, block: Block, hvas: tuple[int, ...]) -> bool:
    """__split_huge_pmd_locked(): every small entry has a reference; the huge one had one."""
    cell = Mm.huge[block].cell(mm)
    huge: Pte = memory.load_cell(cell)
    if huge.kind is not PteKind.PRESENT:
        return False
    assert huge.page is not None
    get_page(memory, huge.page, len(hvas) - 1)
    page_add_rmap(memory, huge.page, len(hvas) - 1)
    for hva in hvas:
        small: Pte = memory.load(mm, Mm.pte[hva])
        memory.store(mm, Mm.pte[hva], huge._replace(vma=small.vma and huge.vma, offset=hva - block[1]))
    memory.store_cell(cell, Pte(PteKind.TABLE))
    return True


@routine
def split_huge_pmd(mm: Mm, block: Block) -> None:
    """Map a huge page by small entries, telling the notifiers (__split_huge_pmd). Sleeps."""
    start, end = block[1], block[1] + pages_per_entry(block[0])
    hvas = hvas_between(read_marked(mm, Mm.areas), start, end)
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    _split_huge_pmd_locked(mm, block, hvas)
    mmu_notifier_invalidate_range_end(mm, start, end)


@operation(words=lambda head, tails, _: f"makes a page of each frame of {head.name}")
def _split_page(memory: Memory, head: CompoundPage, tails: tuple[TailPage, ...]) -> None:
    """__split_huge_page(): the frames take over the state of the compound page."""
    state = {field: memory.load(head, field) for field in (Page.dirty, Page.accessed, Page.exclusive, Page.saved)}
    for tail in tails:
        for field, value in state.items():
            memory.store(tail, field, value)
        memory.store_cell(CompoundPage.tails.element(head, tail.index), tail)


@routine
def split_folio(mm: Mm, block: Block) -> bool:
    """Split the huge page at `block`, which is mapped there only. False if it is not mapped there (any more), or if
    somebody else has a reference on it: then it is mapped as before, but by small entries. Sleeps."""
    split_huge_pmd(mm, block)
    start, end = block[1], block[1] + pages_per_entry(block[0])
    hvas = hvas_between(read_marked(mm, Mm.areas), start, end)
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    pieces = tuple((hva, piece) for hva in hvas if (piece := _unmap_piece(mm, hva)) is not None)
    mmu_notifier_invalidate_range_end(mm, start, end)
    heads = {piece.page for _hva, piece in pieces}
    head = heads.pop() if len(heads) == 1 else None
    if not isinstance(head, CompoundPage) or not page_ref_freeze(head, len(pieces)):
        for hva, piece in pieces:
            set_pte_if_same(mm, hva, piece._replace(kind=PteKind.BUSY), piece)
        return False
    tails = {hva - start: new(TailPage, head=head, index=hva - start, refcount=1) for hva in hvas}
    _split_page(head, tuple(tails.values()))
    say(f"{head.name} is split")
    for hva, piece in pieces:
        page = tails.pop(piece.offset)
        set_pte_if_same(mm, hva, piece._replace(kind=PteKind.BUSY), piece._replace(page=page, offset=0))
    for unused in tails.values():
        put_page(unused)
    return True


def _unmap_piece(mm: Mm, hva: int) -> Pte | None:
    """Take a piece of a compound page out of the page table, leaving a migration entry that keeps others waiting;
    returns what was there if it was one."""
    found: Pte = read_pte(mm, hva)
    if found.kind is not PteKind.PRESENT or not isinstance(found.page, CompoundPage):
        return None
    return found if set_pte_if_same(mm, hva, found, found._replace(kind=PteKind.BUSY)) else None
