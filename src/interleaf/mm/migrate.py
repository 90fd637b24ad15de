"""Migration: the contents of a page move to another frame, for NUMA balancing, compaction or move_pages()
(mm/migrate.c, v6.12)."""

from __future__ import annotations

from interleaf.runtime import Memory, free, operation, routine, say

from .mm_types import Mm, Pte, PteKind
from .mmu_notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from .page import CompoundPage, Page, ZeroPage, alloc_page, free_page, page_ref_freeze
from .pte import read_pte, set_pte_if_same


@operation(
    focus=lambda page, to: Page.refcount.cell(page), words=lambda page, to, _: f"copies {page.name} to {to.name}"
)
def _migrate_flags(memory: Memory, page: Page, to: Page) -> None:
    """The new page is what the old one was (folio_migrate_flags). Nobody has a reference on either."""
    memory.load(page, Page.refcount)
    for field in (Page.dirty, Page.accessed, Page.exclusive, Page.saved):
        memory.store(to, field, memory.load(page, field))


@routine
def migrate_page(mm: Mm, hva: int) -> bool:
    """Move the private page at `hva` to another frame. False if there is none, or if others use it. Sleeps."""
    found: Pte = read_pte(mm, hva)
    page = found.page
    if found.kind is not PteKind.PRESENT or page is None or isinstance(page, ZeroPage | CompoundPage):
        return False
    if found.vma is None or found.vma.file is not None:
        return False
    waiting = found._replace(kind=PteKind.BUSY)
    mmu_notifier_invalidate_range_start(mm, hva, hva + 1, True)
    unmapped = set_pte_if_same(mm, hva, found, waiting)
    mmu_notifier_invalidate_range_end(mm, hva, hva + 1)
    if not unmapped:
        return False
    to = alloc_page()
    if not page_ref_freeze(page, 1):
        set_pte_if_same(mm, hva, waiting, found)
        free(to)
        return False
    _migrate_flags(page, to)
    set_pte_if_same(mm, hva, waiting, found._replace(page=to))
    free_page(page)
    say(f"the page at hva {hva:#x} has moved")
    return True
