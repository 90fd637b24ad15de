"""Changing entries of the host's page tables: each function is what the kernel does under one page-table lock.

The entry takes its reference on the page along: whoever takes an entry away gets its reference, and whoever puts one
in gives one. (mm/memory.c, mm/rmap.c, include/linux/pgtable.h; v6.12)
"""

from __future__ import annotations

from typing import Any

from interleaf.runtime import BLOCK, Memory, ModelError, operation
from interleaf.runtime.cells import Cell

from .mm_types import HUGE_LEVELS, Mm, Pte, PteKind, block_of
from .page import Page, Saved, ZeroPage, expect_unmapped


def show_pte(entry: Pte | None) -> str:
    """An entry for people."""
    if entry is None:
        return "?"
    if entry.vma is None:
        return "nothing mapped"
    if entry.kind is PteKind.PRESENT and entry.page is not None:
        offset = f"+{entry.offset}" if entry.offset else ""
        return f"{entry.page.name}{offset} ({'writable' if entry.writable else 'read-only'})"
    return {PteKind.NONE: "no page", PteKind.SWAP: "a page on swap", PteKind.BUSY: "being changed"}.get(
        entry.kind, "a table"
    )


def page_add_rmap(memory: Memory, page: Page, entries: int = 1) -> None:
    """Inside an operation: so many more entries map the page."""
    if not isinstance(page, ZeroPage):
        memory.store(page, Page.mapcount, memory.load(page, Page.mapcount) + entries)


def page_remove_rmap(memory: Memory, page: Page) -> None:
    """Inside an operation: one entry less maps the page. With the last one, no SPTE may map it any more: the
    notifiers have been told (I1)."""
    if isinstance(page, ZeroPage):
        return
    left = memory.load(page, Page.mapcount) - 1
    memory.store(page, Page.mapcount, left)
    if left == 0:
        expect_unmapped(memory, page, "the notifiers have returned and the host takes back")


def replace_entry(memory: Memory, cell: Cell, old: Pte, new: Pte) -> None:
    """Inside an operation: write `new` over `old`, and count which pages are mapped."""
    was = old.page if old.kind is PteKind.PRESENT else None
    now = new.page if new.kind is PteKind.PRESENT else None
    if was is not now:
        if was is not None:
            page_remove_rmap(memory, was)
        if now is not None:
            page_add_rmap(memory, now)
    if old != new:
        memory.store_cell(cell, new)


@operation(
    focus=lambda mm, hva, left: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, left, old: (
        f"clears the host's PTE of hva {hva:#x}" + (f", {old.page.name}" if old and old.kind is PteKind.PRESENT else "")
    ),
)
def ptep_clear(memory: Memory, mm: Mm, hva: int, left: PteKind | None) -> Any:
    """Clear a PTE of the host, leaving an entry of the kind `left`, or nothing mapped at all for None; returns what
    was there, with its reference (zap_pte_range, ptep_clear_flush).

    The notifiers have been told, so if no other PTE maps the page, no SPTE may (I1). Waits while somebody else is
    changing the entry.
    """
    cell = Mm.pte[hva].cell(mm)
    old: Pte = memory.load_cell(cell)
    if old.kind is PteKind.BUSY:
        return BLOCK
    expect_small(memory, mm, hva)
    replace_entry(memory, cell, old, Pte() if left is None else Pte(vma=old.vma))
    return old


@operation(
    focus=lambda mm, block, left: Mm.huge[block].cell(mm),
    words=lambda mm, block, left, old: (
        f"clears the host's huge entry at hva {block[1]:#x}"
        + (f", {old.page.name}" if old and old.kind is PteKind.PRESENT else "")
    ),
)
def pmdp_clear(memory: Memory, mm: Mm, block: tuple[int, int], left: PteKind | None) -> Any:
    """The same for a huge entry (zap_huge_pmd). For None, a table of small entries goes away, too (free_pgtables)."""
    cell = Mm.huge[block].cell(mm)
    old: Pte = memory.load_cell(cell)
    if old.kind is PteKind.BUSY:
        return BLOCK
    if old.kind is PteKind.PRESENT or left is None:
        replace_entry(memory, cell, old, Pte())
    return old


@operation(
    focus=lambda mm, hva, old, new: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, old, new, won: (
        f"{'sets' if won else 'does not get to set'} the host's PTE of hva {hva:#x}: {show_pte(new)}"
    ),
)
def set_pte_if_same(memory: Memory, mm: Mm, hva: int, old: Pte, new: Pte) -> bool:
    """Set a PTE to `new` if it still is `old` (pte_same under the page-table lock)."""
    cell = Mm.pte[hva].cell(mm)
    if memory.load_cell(cell) != old:
        return False
    replace_entry(memory, cell, old, new)
    return True


@operation(
    focus=lambda mm, block, old, new: Mm.huge[block].cell(mm),
    words=lambda mm, block, old, new, won: (
        f"{'sets' if won else 'does not get to set'} the host's huge entry at hva {block[1]:#x}: {show_pte(new)}"
    ),
)
def set_huge_if_same(memory: Memory, mm: Mm, block: tuple[int, int], old: Pte, new: Pte) -> bool:
    """The same for a huge entry (pmd_same, under its lock)."""
    cell = Mm.huge[block].cell(mm)
    if memory.load_cell(cell) != old:
        return False
    replace_entry(memory, cell, old, new)
    return True


@operation(
    focus=lambda mm, block: Mm.huge[block].cell(mm),
    words=lambda mm, block, found: f"reads the host's huge entry at hva {block[1]:#x}: {show_pte(found)}",
)
def read_huge(memory: Memory, mm: Mm, block: tuple[int, int]) -> Any:
    """A huge entry (pmdp_get_lockless, under the lock if it must not change). Waits while it is being changed."""
    found: Pte = memory.load(mm, Mm.huge[block])
    return BLOCK if found.kind is PteKind.BUSY else found


@operation(
    focus=lambda mm, hva: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, found: f"reads the host's PTE of hva {hva:#x}: {show_pte(found)}",
)
def read_pte(memory: Memory, mm: Mm, hva: int) -> Any:
    """A PTE (ptep_get). Waits while it is being changed."""
    found: Pte = memory.load(mm, Mm.pte[hva])
    return BLOCK if found.kind is PteKind.BUSY else found


@operation(
    focus=lambda mm, hva, entry: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, entry, reused: (
        f"{'makes' if reused else 'must not make'} the host's PTE of hva {hva:#x} writable as it is"
    ),
)
def wp_page_reuse(memory: Memory, mm: Mm, hva: int, entry: Pte) -> bool:
    """Make the read-only `entry` for `hva` writable, if it is still there and its page is used by nobody else."""
    return _reuse(memory, Mm.pte[hva].cell(mm), entry)


@operation(
    focus=lambda mm, block, entry: Mm.huge[block].cell(mm),
    words=lambda mm, block, entry, reused: (
        f"{'makes' if reused else 'must not make'} the host's huge entry at hva {block[1]:#x} writable as it is"
    ),
)
def huge_page_reuse(memory: Memory, mm: Mm, block: tuple[int, int], entry: Pte) -> bool:
    """The same for a huge entry (do_huge_pmd_wp_page)."""
    return _reuse(memory, Mm.huge[block].cell(mm), entry)


def _reuse(memory: Memory, cell: Cell, entry: Pte) -> bool:
    page = entry.page
    if page is None or isinstance(page, ZeroPage) or memory.load_cell(cell) != entry:
        return False
    if not memory.load(page, Page.exclusive):
        if memory.load(page, Page.refcount) != 1:
            return False
        memory.store(page, Page.exclusive, True)
    forget_saved(memory, page)
    memory.store_cell(cell, entry._replace(writable=True))
    return True


def forget_saved(memory: Memory, page: Page) -> None:
    """Inside an operation: the page is about to be written, so its copy on swap is given up (folio_free_swap)."""
    if memory.load(page, Page.saved) is not Saved.NEVER:
        memory.store(page, Page.saved, Saved.NEVER)


def expect_small(memory: Memory, mm: Mm, hva: int) -> None:
    """Inside an operation on the small entry of `hva`: no huge entry may have come over it since the caller looked.
    mmap_lock sees to that in the kernel, and is not modelled, so a scenario must not do it either (ModelError)."""
    for level in HUGE_LEVELS:
        if memory.load(mm, Mm.huge[block_of(level, hva)]).kind in (PteKind.PRESENT, PteKind.BUSY):
            raise ModelError(
                f"the small entry of hva {hva:#x} is changed below a huge one: mappings are changed by two tasks at "
                "once, which mmap_lock would not allow. Let one task do both, or use other addresses."
            )
