"""Small pages become a huge one: khugepaged and MADV_COLLAPSE (mm/khugepaged.c, v6.12)."""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_2M, pages_per_entry
from interleaf.runtime import Memory, free, operation, read_marked, routine, say

from .mm_types import Mm, Prot, Pte, PteKind, Vma, block_of, hvas_between
from .mmu_notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from .page import Page, ZeroPage, alloc_page, free_page
from .pte import read_huge, replace_entry, set_huge_if_same


@operation(words=lambda mm, hvas, found: f"{'takes' if found else 'cannot take'} the small pages out of the table")
def _isolate_and_clear(memory: Memory, mm: Mm, hvas: tuple[int, ...]) -> tuple[Vma, tuple[Page, ...]] | None:
    """__collapse_huge_page_isolate() and the clearing of the PTEs, all under the lock of the table, which nobody can
    find: the pages, of which all references are taken away, if nobody else uses any of them."""
    entries: list[Pte] = [memory.load(mm, Mm.pte[hva]) for hva in hvas]
    vmas = {entry.vma for entry in entries}
    pages = [entry.page for entry in entries if entry.page is not None and not isinstance(entry.page, ZeroPage)]
    vma = vmas.pop()
    if vmas or vma is None or vma.file is not None or vma.prot is not Prot.WRITE or not pages:
        return None
    if any(entry.kind not in (PteKind.NONE, PteKind.PRESENT) for entry in entries):
        return None
    if any(memory.load(page, Page.refcount) != 1 or memory.load(page, Page.mapcount) != 1 for page in pages):
        return None
    for hva, entry in zip(hvas, entries, strict=True):
        replace_entry(memory, Mm.pte[hva].cell(mm), entry, Pte(vma=vma))
    for page in pages:
        memory.store(page, Page.refcount, 0)
        memory.order(page, acquire=True)
    return vma, tuple(pages)


@routine
def collapse_huge_page(mm: Mm, hva: int) -> bool:
    """Put a huge page where the small pages around `hva` are. False if there is no table of small entries, or if
    something else stands in the way. Sleeps."""
    block = block_of(PG_LEVEL_2M, hva)
    start, end = block[1], block[1] + pages_per_entry(PG_LEVEL_2M)
    table: Pte = read_huge(mm, block)
    if table.kind is not PteKind.TABLE:
        return False
    huge = alloc_page(PG_LEVEL_2M)
    locked = Pte(PteKind.BUSY)
    # the huge entry is empty from here on: nobody finds the table, and page faults wait (mmap_lock)
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    taken = set_huge_if_same(mm, block, table, locked)
    mmu_notifier_invalidate_range_end(mm, start, end)
    if not taken:
        free(huge)
        return False
    found = _isolate_and_clear(mm, hvas_between(read_marked(mm, Mm.areas), start, end))
    if found is None:
        set_huge_if_same(mm, block, locked, table)
        free(huge)
        return False
    vma, pages = found
    set_huge_if_same(mm, block, locked, Pte(PteKind.PRESENT, vma, huge, True))
    for page in pages:
        free_page(page)
    say(f"{len(pages)} small pages from hva {start:#x} on have become {huge.name}")
    return True
