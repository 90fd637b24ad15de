"""Same-page merging: pages with the same contents become one, which nobody may write to (mm/ksm.c, v6.12)."""

from __future__ import annotations

from interleaf.runtime import Memory, operation, routine, say

from .memory import set_pte_at_notify
from .mm_types import Mm, Pte, PteKind
from .mmu_notifier import (
    mmu_notifier_change_pte,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from .page import Page, get_page, put_page
from .pte import replace_entry, set_pte_if_same
from .vmscan import folio_isolate_lru


@operation(
    focus=lambda mm, hva, entry: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, entry, alone: (
        f"{'locks' if alone else 'leaves alone'} {entry.page.name}{'' if alone else ', which others use'}"
    ),
)
def _lock_unused(memory: Memory, mm: Mm, hva: int, entry: Pte) -> bool:
    """Lock the PTE, if it is still `entry` and nobody but it and the caller has a reference on the page: whoever
    looked it up may be going to write to it."""
    cell = Mm.pte[hva].cell(mm)
    page = entry.page
    if page is None or memory.load_cell(cell) != entry or memory.load(page, Page.refcount) != 2:
        return False
    memory.store(page, Page.exclusive, False)
    replace_entry(memory, cell, entry, entry._replace(kind=PteKind.BUSY))
    return True


@routine
def write_protect_page(mm: Mm, hva: int, entry: Pte) -> bool:
    """Let nobody write to the page any more; False if somebody else uses it just now. Sleeps."""
    protected = entry._replace(writable=False)
    mmu_notifier_invalidate_range_start(mm, hva, hva + 1, True)
    locked = _lock_unused(mm, hva, entry)
    if locked:
        if mm.kernel.set_pte_at_notify:
            mmu_notifier_change_pte(mm, hva, protected)
        set_pte_if_same(mm, hva, entry._replace(kind=PteKind.BUSY), protected)
    mmu_notifier_invalidate_range_end(mm, hva, hva + 1)
    return bool(locked)


@operation(focus=Page.refcount.cell, words=lambda page, _: f"takes a reference on {page.name}")
def _folio_get(memory: Memory, page: Page) -> None:
    get_page(memory, page)


@routine
def replace_page(mm: Mm, hva: int, entry: Pte, kpage: Page) -> bool:
    """Map `kpage` at `hva` in place of a page with the same contents; False if `entry` has changed. Sleeps."""
    _folio_get(kpage)
    mmu_notifier_invalidate_range_start(mm, hva, hva + 1, True)
    replaced = set_pte_at_notify(mm, hva, entry, entry._replace(page=kpage, writable=False))
    mmu_notifier_invalidate_range_end(mm, hva, hva + 1)
    unused = entry.page if replaced else kpage
    assert unused is not None
    put_page(unused)
    return replaced


@routine
def try_to_merge_two_pages(mm: Mm, hva: int, other: int) -> bool:
    """Make one page of the private pages at `hva` and `other`, which have the same contents. False if one of them is
    not there, or in use, or gets written to before it is done. Sleeps."""
    found: Pte | None = folio_isolate_lru(mm, hva)
    if found is None:
        return False
    second: Pte | None = folio_isolate_lru(mm, other)
    merged = second is not None and _merge(mm, hva, found, other, second)
    for entry in (found, second):
        if entry is not None and entry.page is not None:
            put_page(entry.page)
    if merged:
        say(f"the pages at hva {hva:#x} and {other:#x} are one")
    return merged


@routine
def _merge(mm: Mm, hva: int, found: Pte, other: int, second: Pte) -> bool:
    assert found.page is not None
    if not write_protect_page(mm, hva, found) or not write_protect_page(mm, other, second):
        return False
    return replace_page(mm, other, second._replace(writable=False), found.page)
