"""Host pages: reference counts, dirty and accessed state, and who maps them.

Besides what the kernel knows of a page, a page here knows every SPTE that maps it (`spteps`). That is not for the
kernel's use: by it the model checks I1, that a page which the host takes back is not mapped in any page table of
any VM. Whoever writes an SPTE says so with `note_mapped` and `note_unmapped` in the same operation.
"""

from __future__ import annotations

from interleaf.hw.frames import HOST_PAGE_PFN_BASE, is_allocated
from interleaf.hw.page_table import PageTable
from interleaf.runtime import Marked, Memory, ModelError, Object, Violation, free, new, object_of, operation, say

SpteLocation = tuple[PageTable, int]
"""A table and the index of an entry in it."""


class Page(Object):
    """`struct page` of a page of user memory. The page is freed when its last reference is put."""

    freeable = True
    refcount = Marked(0)
    dirty = Marked(False)
    accessed = Marked(False)
    spteps: Marked[frozenset[SpteLocation]] = Marked(frozenset())
    """Ghost: where it is mapped by a leaf SPTE, in whatever state the root is."""

    @property
    def pfn(self) -> int:
        """The frame, as a number of 4 KiB pages of host physical memory."""
        return HOST_PAGE_PFN_BASE + self.serial


def pfn_to_page(memory: Memory, pfn: int) -> Page:
    """Inside an operation: the page at frame `pfn`, which may be freed by now. Raises ModelError if no page ever
    was there."""
    found = memory.world.serials.get((Page, pfn - HOST_PAGE_PFN_BASE))
    if not isinstance(found, Page):
        raise ModelError(f"pfn {pfn:#x} never was a page of user memory.")
    return found


def page_at(pfn: int) -> Page:
    """The same, outside operations; no access to shared state."""
    return object_of(Page, pfn - HOST_PAGE_PFN_BASE)


def note_mapped(memory: Memory, pfn: int, where: SpteLocation) -> None:
    """Inside the operation that makes the SPTE at `where` map `pfn`. Mapping a freed page violates I1."""
    page = pfn_to_page(memory, pfn)
    memory.exercise("I1")
    if not is_allocated(memory, page):
        message = f"an SPTE is made to map {page.name} (pfn {pfn:#x}), which the host has freed"
        memory.violate(Violation("I1", message, object=page.name))
    cell = Page.spteps.cell(page)
    memory.commute_cell(cell, memory.peek(cell) | {where})


def note_unmapped(memory: Memory, pfn: int, where: SpteLocation) -> None:
    """Inside the operation after which the SPTE at `where` does not map `pfn` any more."""
    page = pfn_to_page(memory, pfn)
    if is_allocated(memory, page):
        cell = Page.spteps.cell(page)
        memory.commute_cell(cell, memory.peek(cell) - {where})


def expect_unmapped(memory: Memory, page: Page, event: str) -> None:
    """Inside an operation by which the host takes `page` back, which is only right if no SPTE maps it (I1)."""
    memory.exercise("I1")
    cell = Page.spteps.cell(page)
    mapped = memory.load_cell(cell)
    memory.store_cell(cell, mapped)  # a look at what commuting writes have made: it conflicts with each of them
    if mapped:
        still = "an SPTE still maps it" if len(mapped) == 1 else f"{len(mapped)} SPTEs still map it"
        message = f"{event} {page.name} (pfn {page.pfn:#x}), but {still}"
        memory.violate(Violation("I1", message, object=page.name))


def alloc_page() -> Page:
    """A new page with one reference, which is the caller's."""
    return new(Page, refcount=1)


@operation(focus=Page.refcount.cell, words=lambda page, last: f"puts {page.name}")
def put_page_testzero(memory: Memory, page: Page) -> bool:
    """Give a reference back; was it the last? (Kernel function of that name.)"""
    left = memory.load(page, Page.refcount) - 1
    memory.store(page, Page.refcount, left)
    memory.order(page, release=True, acquire=left == 0)
    if left == 0:
        expect_unmapped(memory, page, "the host frees")
    return bool(left == 0)


def put_page(page: Page) -> None:
    """Give a reference on a page back, and free the page if it was the last."""
    if put_page_testzero(page):
        say(f"{page.name} (pfn {page.pfn:#x}) is freed")
        free(page)


@operation(focus=Page.dirty.cell, words=lambda page, _: f"marks {page.name} dirty")
def set_page_dirty(memory: Memory, page: Page) -> None:
    """The page was written to. Doing this to a freed page violates I1."""
    _expect_allocated(memory, page, "dirty")
    memory.commute_cell(Page.dirty.cell(page), True)


@operation(focus=Page.accessed.cell, words=lambda page, _: f"marks {page.name} accessed")
def mark_page_accessed(memory: Memory, page: Page) -> None:
    """The page was used. Doing this to a freed page violates I1."""
    _expect_allocated(memory, page, "accessed")
    memory.commute_cell(Page.accessed.cell(page), True)


def _expect_allocated(memory: Memory, page: Page, state: str) -> None:
    memory.exercise("I1")
    if not is_allocated(memory, page):
        message = f"{state} state is written back to {page.name} (pfn {page.pfn:#x}), which the host has freed"
        memory.violate(Violation("I1", message, object=page.name))
