"""Page faults of the host: what happens when a page is looked up that is not there, or not for writing.

(mm/memory.c, mm/huge_memory.c, mm/shmem.c; v6.12. Huge pages as with `use_zero_page` off: a read gets a page, too.)
"""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_4K, pages_per_entry
from interleaf.runtime import Memory, free, new, operation, read_marked, routine, the

from .huge_memory import split_huge_pmd
from .mm_types import AddressSpace, Kind, Mm, Prot, Pte, PteKind, block_of
from .mmu_notifier import (
    mmu_notifier_change_pte,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from .page import Page, Saved, ZeroPage, alloc_page, get_page, put_page
from .pte import (
    forget_saved,
    huge_page_reuse,
    read_huge,
    replace_entry,
    set_huge_if_same,
    set_pte_if_same,
    wp_page_reuse,
)


@routine
def handle_mm_fault(mm: Mm, hva: int, write: bool, entry: Pte) -> bool:
    """Make progress with an access to `hva` that `entry`, found there, does not serve; then it is to be looked at
    again. False if the process may not make the access. Sleeps."""
    vma = entry.vma
    if vma is None or not entry.allows(write):
        return False
    if entry.kind is PteKind.SWAP:
        do_swap_page(mm, hva, entry, write)
    elif entry.kind is PteKind.PRESENT:
        assert entry.page is not None
        if entry.page.level > PG_LEVEL_4K and do_huge_pmd_wp_page(mm, hva, entry.page.level):
            return True
        do_wp_page(mm, hva, entry)
    elif vma.level > PG_LEVEL_4K and do_huge_pmd_anonymous_page(mm, hva, entry):
        return True
    elif vma.file is not None:
        do_shmem_fault(mm, hva, entry, vma.file)
    else:
        do_anonymous_page(mm, hva, write, entry)
    return True


@routine
def do_anonymous_page(mm: Mm, hva: int, write: bool, entry: Pte) -> None:
    """The first look at private memory."""
    assert entry.vma is not None
    if entry.vma.kind is Kind.ANONYMOUS and not write:
        set_pte_if_same(mm, hva, entry, entry._replace(kind=PteKind.PRESENT, page=the(ZeroPage), writable=False))
        return
    page = alloc_page()
    writable = entry.vma.prot is Prot.WRITE
    if not set_pte_if_same(mm, hva, entry, entry._replace(kind=PteKind.PRESENT, page=page, writable=writable)):
        free(page)


@routine
def do_huge_pmd_anonymous_page(mm: Mm, hva: int, entry: Pte) -> bool:
    """The first look at private memory that is to be in huge pages; False if there cannot be one here any more."""
    vma = entry.vma
    assert vma is not None
    block = block_of(vma.level, hva)
    first, behind = block[1], block[1] + pages_per_entry(vma.level)
    if not any(area.start <= first and behind <= area.end for area in read_marked(mm, Mm.areas)):
        return False
    found = read_huge(mm, block)
    if found.kind is PteKind.NONE:
        page = alloc_page(vma.level)
        huge = Pte(PteKind.PRESENT, vma, page, vma.prot is Prot.WRITE)
        if not set_huge_if_same(mm, block, found, huge):
            free(page)
        return True
    return bool(found.kind is PteKind.PRESENT)


@operation(
    focus=lambda mm, hva, entry, file, fresh: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, entry, file, fresh, page: (
        f"maps {page.name} of {file.name} at hva {hva:#x}" if page else f"finds no page of {file.name} for hva {hva:#x}"
    ),
)
def _map_file_page(memory: Memory, mm: Mm, hva: int, entry: Pte, file: AddressSpace, fresh: Page | None) -> Page | None:
    """Map the page of the file at `hva`, if the PTE is still `entry`; `fresh` becomes that page if there is none.
    Returns the page that the file has."""
    assert entry.vma is not None
    pages = AddressSpace.pages[hva + entry.vma.pgoff].cell(file)
    page: Page | None = memory.load_cell(pages)
    if page is None:
        if fresh is None:
            return None
        page = fresh
        memory.store_cell(pages, page)
    pte = Mm.pte[hva].cell(mm)
    if memory.load_cell(pte) == entry:
        get_page(memory, page)
        writable = entry.vma.prot is Prot.WRITE
        replace_entry(memory, pte, entry, entry._replace(kind=PteKind.PRESENT, page=page, writable=writable))
    return page


@routine
def do_shmem_fault(mm: Mm, hva: int, entry: Pte, file: AddressSpace) -> None:
    """A look at a page of a file in memory, which may have to be made."""
    if _map_file_page(mm, hva, entry, file, None) is None:
        page = alloc_page()
        if _map_file_page(mm, hva, entry, file, page) is not page:
            free(page)


@operation(
    focus=lambda mm, hva, entry, page, write: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, entry, page, write, won: (
        f"{'maps' if won else 'does not get to map'} {page.name}, which comes from swap, at hva {hva:#x}"
    ),
)
def _map_swapped_page(memory: Memory, mm: Mm, hva: int, entry: Pte, page: Page, write: bool) -> bool:
    cell = Mm.pte[hva].cell(mm)
    if memory.load_cell(cell) != entry:
        return False
    assert entry.vma is not None
    owned = memory.load(page, Page.exclusive) or memory.load(page, Page.refcount) == 1
    writable = owned and entry.vma.prot is Prot.WRITE and (write or mm.kernel.swap_in_writable)
    if writable:
        memory.store(page, Page.exclusive, True)
    if writable and write:
        forget_saved(memory, page)
    replace_entry(memory, cell, entry, entry._replace(kind=PteKind.PRESENT, page=page, writable=writable))
    return True


@routine
def do_swap_page(mm: Mm, hva: int, entry: Pte, write: bool) -> None:
    """A look at a page that is on swap: it comes back, into another frame unless the swap cache has it still."""
    page = entry.page or new(Page, refcount=1, saved=Saved.CURRENT)
    if not _map_swapped_page(mm, hva, entry, page, write) and entry.page is None:
        free(page)


@routine
def do_wp_page(mm: Mm, hva: int, entry: Pte) -> None:
    """A write to a page that may only be read: by copy, if others use it. `entry` is not writable."""
    if not wp_page_reuse(mm, hva, entry):
        wp_page_copy(mm, hva, entry)


@routine
def wp_page_copy(mm: Mm, hva: int, entry: Pte) -> None:
    """Replace a page that others use by a copy of it, telling the notifiers."""
    page = alloc_page()
    copied = entry._replace(page=page, writable=True, offset=0)
    mmu_notifier_invalidate_range_start(mm, hva, hva + 1, True)
    won = set_pte_at_notify(mm, hva, entry, copied)
    mmu_notifier_invalidate_range_end(mm, hva, hva + 1)
    if not won:
        free(page)
    elif entry.page is not None:
        put_page(entry.page)


@routine
def set_pte_at_notify(mm: Mm, hva: int, old: Pte, new: Pte) -> bool:
    """Replace a PTE if it still is `old`, inside an invalidation; up to v6.9 the notifiers hear of the new one, with
    the page table locked."""
    if not mm.kernel.set_pte_at_notify:
        return bool(set_pte_if_same(mm, hva, old, new))
    locked = old._replace(kind=PteKind.BUSY)
    if not set_pte_if_same(mm, hva, old, locked):
        return False
    mmu_notifier_change_pte(mm, hva, new)
    set_pte_if_same(mm, hva, locked, new)
    return True


@routine
def do_huge_pmd_wp_page(mm: Mm, hva: int, level: int) -> bool:
    """A write to a huge page that may only be read; False if it is not mapped as a whole here. If others use it, it
    is mapped in small pieces first, one of which is then copied."""
    block = block_of(level, hva)
    huge = read_huge(mm, block)
    if huge.kind is not PteKind.PRESENT:
        return False
    if not huge.writable and not huge_page_reuse(mm, block, huge):
        split_huge_pmd(mm, block)
    return True
