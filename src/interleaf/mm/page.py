"""Host pages: reference counts, dirty and accessed state, and who maps them.

A page is a frame of 4 KiB, or a compound page of 512 or 512 * 512 frames with one reference count and one state for
all of them. A compound page can be split; its frames then are pages of their own.

Besides what the kernel knows of a page, a page here knows every SPTE that maps it (`spteps`), and whether what is in
it was written to since it was last saved (`saved`). That is not for the kernel's use: by it the model checks I1, that
a page which the host takes back is not mapped in any page table of any VM, and I11, that no page is thrown away that
was written to. Whoever writes an SPTE says so with `note_mapped` and `note_unmapped` in the same operation, and
whatever lets the guest write says so with `note_written`.
"""

from __future__ import annotations

import enum

from interleaf.hw.frames import (
    GIGANTIC_PAGE_PFN_BASE,
    HOST_PAGE_PFN_BASE,
    HUGE_PAGE_PFN_BASE,
    ZERO_PAGE_PFN,
    is_allocated,
)
from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, PageTable, pages_per_entry
from interleaf.runtime import (
    Array,
    Const,
    Marked,
    Memory,
    ModelError,
    Object,
    Violation,
    free,
    new,
    object_of,
    operation,
    say,
    the,
)
from interleaf.runtime.objects import singleton

SpteLocation = tuple[PageTable, int]
"""A table and the index of an entry in it."""


class Saved(enum.Enum):
    """Is there a copy of a page on swap?"""

    NEVER = enum.auto()
    """No: whoever wants the frame has to write one first."""
    CURRENT = enum.auto()
    """Yes, with what is in the page: the frame can be given away as it is."""
    STALE = enum.auto()
    """Yes, but the page was written to since. The host knows this by the page being dirty, or not at all."""


class Page(Object):
    """`struct page` of a page of user memory (the head of a compound page: `struct folio`). The page is freed when
    its last reference is put."""

    freeable = True
    refcount = Marked(0)
    mapcount = Marked(0)
    """How many PTEs of the host map it, each with a reference."""
    dirty = Marked(False)
    accessed = Marked(False)
    exclusive = Marked(True)
    """One process alone may write to it (PageAnonExclusive, or memory of a file); if not, it is shared by copy on
    write."""
    spteps: Marked[frozenset[SpteLocation]] = Marked(frozenset())
    """Ghost: where it is mapped by a leaf SPTE, in whatever state the root is."""
    saved: Marked[Saved] = Marked(Saved.NEVER)
    """What the host does with the page depends on this only through NEVER, and otherwise on `dirty`."""

    @property
    def level(self) -> int:
        """The level of the page-table entry that could map all of it."""
        return PG_LEVEL_4K

    @property
    def pfn(self) -> int:
        """The frame, as a number of 4 KiB pages of host physical memory; of a compound page, the first one."""
        return HOST_PAGE_PFN_BASE + self.serial


class CompoundPage(Page):
    """A compound page. When it is split, this object goes on to stand for the frames, and never is freed."""

    tails: Array[Page | None] = Array(None)
    """After a split: which page each frame is, by the frame's number in the compound page."""


class HugePage(CompoundPage):
    """2 MiB of memory."""

    @property
    def level(self) -> int:
        return PG_LEVEL_2M

    @property
    def pfn(self) -> int:
        return HUGE_PAGE_PFN_BASE + self.serial * pages_per_entry(PG_LEVEL_2M)


class GiganticPage(CompoundPage):
    """1 GiB of memory."""

    @property
    def level(self) -> int:
        return PG_LEVEL_1G

    @property
    def pfn(self) -> int:
        return GIGANTIC_PAGE_PFN_BASE + self.serial * pages_per_entry(PG_LEVEL_1G)


class TailPage(Page):
    """A frame of a compound page that was split."""

    head = Const(CompoundPage)
    index = Const(int)

    @property
    def pfn(self) -> int:
        return self.head.pfn + self.index


class ZeroPage(Page):
    """The page of zeros. Nobody counts references on it, and nobody may write to it."""

    freeable = False

    @property
    def pfn(self) -> int:
        return ZERO_PAGE_PFN


class HostFrame(ZeroPage):
    """Any frame of a real host, where a model follows what that has done: nothing is known of the frame itself, so
    nothing of it is counted. Its number is kept by whoever maps it (`Pte.offset`)."""

    @property
    def pfn(self) -> int:
        return 0


EVERY_FRAME = "every frame is one of a real host"
"""Key of `World.gathered`: each pfn of user memory is a HostFrame."""


def compound_at(pfn: int) -> tuple[type[CompoundPage], int, int] | None:
    """Of which compound page `pfn` is (or was) a frame: class, serial number, and the number of the frame in it."""
    for kind, base, level in (
        (GiganticPage, GIGANTIC_PAGE_PFN_BASE, PG_LEVEL_1G),
        (HugePage, HUGE_PAGE_PFN_BASE, PG_LEVEL_2M),
    ):
        if pfn >= base:
            serial, index = divmod(pfn - base, pages_per_entry(level))
            return kind, serial, index
    return None


def pfn_to_page(memory: Memory, pfn: int) -> Page:
    """Inside an operation: the page at frame `pfn`, which may be freed by now. Raises ModelError if no page ever
    was there."""
    if EVERY_FRAME in memory.world.gathered:
        return singleton(memory.world, HostFrame)
    if pfn == ZERO_PAGE_PFN:
        return singleton(memory.world, ZeroPage)
    compound = compound_at(pfn)
    kind, serial, index = compound or (Page, pfn - HOST_PAGE_PFN_BASE, 0)
    found = memory.world.serials.get((kind, serial))
    if not isinstance(found, Page):
        raise ModelError(f"pfn {pfn:#x} never was a page of user memory.")
    if not isinstance(found, CompoundPage):
        return found
    tail: Page | None = memory.look(CompoundPage.tails.element(found, index))
    return tail or found


def page_at(pfn: int) -> Page:
    """The same, outside operations; no scheduling point."""
    zero: ZeroPage = the(ZeroPage)
    if EVERY_FRAME in zero.world.gathered:
        return the(HostFrame)
    if pfn == ZERO_PAGE_PFN:
        return zero
    if compound_at(pfn) is not None:
        found: Page = _compound_page_at(pfn)
        return found
    return object_of(Page, pfn - HOST_PAGE_PFN_BASE)


@operation(marked=False)
def _compound_page_at(memory: Memory, pfn: int) -> Page:
    return pfn_to_page(memory, pfn)


def note_mapped(memory: Memory, pfn: int, where: SpteLocation) -> None:
    """Inside the operation that makes the SPTE at `where` map `pfn`. Mapping a freed page violates I1."""
    page = pfn_to_page(memory, pfn)
    if isinstance(page, ZeroPage):
        return
    memory.exercise("I1")
    if not is_allocated(memory, page):
        message = f"an SPTE is made to map {page.name} (pfn {pfn:#x}), which the host has freed"
        memory.violate(Violation("I1", message, object=page.name))
    cell = Page.spteps.cell(page)
    memory.commute_cell(cell, memory.peek(cell) | {where})


def note_unmapped(memory: Memory, pfn: int, where: SpteLocation) -> None:
    """Inside the operation after which the SPTE at `where` does not map `pfn` any more."""
    page = pfn_to_page(memory, pfn)
    if not isinstance(page, ZeroPage) and is_allocated(memory, page):
        cell = Page.spteps.cell(page)
        memory.commute_cell(cell, memory.peek(cell) - {where})


def note_written(memory: Memory, pfn: int) -> None:
    """Inside the operation in which the guest writes to frame `pfn`, which is allocated.

    The host must have agreed that this guest writes to the page (I1), and has to learn of it by the dirty flag (I11).
    """
    page = pfn_to_page(memory, pfn)
    memory.exercise("I1")
    if isinstance(page, ZeroPage) or not memory.look(Page.exclusive.cell(page)):
        message = f"the guest writes to {page.name} (pfn {pfn:#x}), which others share until they write to it"
        memory.violate(Violation("I1", message, object=page.name))
    saved = Page.saved.cell(page)
    if memory.look(saved) is Saved.CURRENT:
        memory.writes |= saved.bit
        memory.set(saved, Saved.STALE)


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


def alloc_page(level: int = PG_LEVEL_4K) -> Page:
    """A new page with one reference, which is the caller's."""
    kind = {PG_LEVEL_4K: Page, PG_LEVEL_2M: HugePage, PG_LEVEL_1G: GiganticPage}[level]
    return new(kind, refcount=1)


def get_page(memory: Memory, page: Page, references: int = 1) -> None:
    """Inside an operation: take references on a page that the caller knows to be in use."""
    if not isinstance(page, ZeroPage):
        memory.store(page, Page.refcount, memory.load(page, Page.refcount) + references)


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
    if not isinstance(page, ZeroPage) and put_page_testzero(page):
        free_page(page)


def free_page(page: Page) -> None:
    """Free a page that has no reference any more."""
    say(f"{page.name} (pfn {page.pfn:#x}) is freed")
    free(page)


@operation(
    focus=lambda page, expected: Page.refcount.cell(page),
    words=lambda page, expected, done: (
        f"freezes {page.name}" if done else f"does not freeze {page.name}: somebody else uses it"
    ),
)
def page_ref_freeze(memory: Memory, page: Page, expected: int) -> bool:
    """Take all references away if they are the `expected` ones, which are the caller's; else nothing."""
    if memory.load(page, Page.refcount) != expected:
        return False
    memory.store(page, Page.refcount, 0)
    memory.order(page, acquire=True)
    expect_unmapped(memory, page, "the host replaces")
    return True


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
