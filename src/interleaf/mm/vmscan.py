"""Reclaim: pages that are not used go to swap, and their frames to somebody else (mm/vmscan.c, mm/rmap.c, v6.12).

A page that has a copy on swap, and was not written to since, needs not be written again. That the guest has written
to it the host learns from its dirty flag, which KVM sets; if that is forgotten, what the guest wrote is lost (I11).
Private pages of 4 KiB are reclaimed here; huge ones have to be split before (split_folio).
"""

from __future__ import annotations

from typing import Any

from interleaf.runtime import BLOCK, Memory, Violation, operation, read_marked, routine, say

from .mm_types import HUGE_LEVELS, Mm, Pte, PteKind, block_of, hvas_between
from .mmu_notifier import (
    mmu_notifier_clear_flush_young,
    mmu_notifier_clear_young,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_test_young,
)
from .page import Page, Saved, ZeroPage, expect_unmapped, free_page, get_page, put_page
from .pte import set_pte_if_same


@operation(
    focus=lambda mm, hva: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, found: (
        f"takes {found.page.name} at hva {hva:#x} off the LRU list" if found else f"finds nothing at hva {hva:#x}"
    ),
)
def folio_isolate_lru(memory: Memory, mm: Mm, hva: int) -> Any:
    """The entry for `hva`, with a reference on its page for the caller, if that is a private page of 4 KiB that is
    mapped nowhere else; otherwise None. Waits while the entry is being changed."""
    entry: Pte = memory.load(mm, Mm.pte[hva])
    if any(memory.load(mm, Mm.huge[block_of(level, hva)]).kind is PteKind.PRESENT for level in HUGE_LEVELS):
        return None
    if entry.kind is PteKind.BUSY:
        return BLOCK
    page = entry.page
    if entry.kind is not PteKind.PRESENT or page is None or isinstance(page, ZeroPage):
        return None
    if entry.vma is None or entry.vma.file is not None or memory.load(page, Page.mapcount) != 1:
        return None
    get_page(memory, page)
    return entry


@operation(focus=Page.accessed.cell, words=lambda page, was: f"finds {page.name} {'' if was else 'not '}referenced")
def folio_test_clear_referenced(memory: Memory, page: Page) -> bool:
    """Was the page marked accessed? It is not any more."""
    was = bool(memory.load(page, Page.accessed))
    memory.store(page, Page.accessed, False)
    return was


@routine
def folio_referenced(mm: Mm, hva: int, page: Page) -> bool:
    """Was the page, which is at `hva` only, used since this was last asked? The caller has a reference."""
    young = mmu_notifier_clear_flush_young(mm, hva, hva + 1)
    return folio_test_clear_referenced(page) or young


@operation(
    focus=Page.dirty.cell, words=lambda page, wrote: f"{'writes' if wrote else 'need not write'} {page.name} to swap"
)
def pageout(memory: Memory, page: Page) -> bool:
    """Write the page to swap, unless what is there is up to date; was it written?"""
    wrote = bool(memory.load(page, Page.dirty)) or memory.load(page, Page.saved) is Saved.NEVER
    memory.store(page, Page.dirty, False)
    if wrote:
        memory.store(page, Page.saved, Saved.CURRENT)
    return wrote


@operation(
    focus=Page.refcount.cell,
    words=lambda page, gone: f"{'takes' if gone else 'cannot take'} {page.name} out of the swap cache",
)
def remove_mapping(memory: Memory, page: Page) -> bool:
    """Take all references away, if they are the caller's and the swap cache's, and the page is not dirty."""
    dirty = memory.load(page, Page.dirty)
    memory.store(page, Page.dirty, dirty)
    if dirty or memory.load(page, Page.refcount) != 2:
        return False
    memory.store(page, Page.refcount, 0)
    memory.order(page, acquire=True)
    expect_unmapped(memory, page, "the host reclaims")
    memory.exercise("I11")
    if memory.load(page, Page.saved) is not Saved.CURRENT:
        message = (
            f"the host gives away {page.name} (pfn {page.pfn:#x}) as clean, because it has a copy on swap, but the "
            "guest has written to it since that was made: what it wrote is lost"
        )
        memory.violate(Violation("I11", message, object=page.name))
    return True


@routine
def shrink_folio(mm: Mm, hva: int, ignore_references: bool) -> bool:
    """Reclaim the page at `hva` if nobody has used it for a while (shrink_folio_list); is it gone? Sleeps."""
    entry: Pte | None = folio_isolate_lru(mm, hva)
    if entry is None:
        return False
    page = entry.page
    assert page is not None
    if not ignore_references and folio_referenced(mm, hva, page):
        put_page(page)
        return False
    locked = entry._replace(kind=PteKind.BUSY)
    mmu_notifier_invalidate_range_start(mm, hva, hva + 1, True)
    unmapped = set_pte_if_same(mm, hva, entry, locked)
    mmu_notifier_invalidate_range_end(mm, hva, hva + 1)
    if not unmapped:
        put_page(page)
        return False
    pageout(page)
    swapped = Pte(PteKind.SWAP, entry.vma)
    if remove_mapping(page):
        set_pte_if_same(mm, hva, locked, swapped)
        free_page(page)
        return True
    set_pte_if_same(mm, hva, locked, swapped._replace(page=page))
    put_page(page)
    return False


@routine
def shrink_list(mm: Mm, start: int, npages: int) -> None:
    """Memory is short: reclaim what is at start <= hva < start + npages and is not used. Sleeps."""
    for hva in hvas_between(read_marked(mm, Mm.areas), start, start + npages):
        shrink_folio(mm, hva, False)


@routine
def madvise_pageout(mm: Mm, start: int, npages: int) -> None:
    """MADV_PAGEOUT: the process will not need start <= hva < start + npages for some time. Sleeps."""
    for hva in hvas_between(read_marked(mm, Mm.areas), start, start + npages):
        shrink_folio(mm, hva, mm.kernel.pageout_ignores_references)
    say(f"madvise(MADV_PAGEOUT) of hva {start:#x} to {start + npages:#x} returns")


def page_idle_clear_pte_refs(mm: Mm, hva: int) -> bool:
    """Idle page tracking: was the page at `hva` used since this was last asked (mm/page_idle.c)?"""
    return mmu_notifier_clear_young(mm, hva, hva + 1)


def damon_young(mm: Mm, hva: int) -> bool:
    """DAMON looks whether the page at `hva` is used (mm/damon/vaddr.c)."""
    return mmu_notifier_test_young(mm, hva)
