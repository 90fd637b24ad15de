"""A process gets a child, which shares its memory until one of them writes to it (kernel/fork.c, mm/memory.c, v6.12).

KVM goes on to belong to the parent. Private pages may not be written through anybody's page tables any more when the
notifiers have returned: whoever writes first gets a copy.
"""

from __future__ import annotations

from typing import Any

from interleaf.runtime import BLOCK, Memory, operation, read_marked, routine, say
from interleaf.runtime.cells import Cell

from .huge_memory import Block
from .mm import mm_alloc
from .mm_types import AddressSpace, Area, Mm, Pte, PteKind, blocks_between
from .mmu_notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from .page import Page, ZeroPage, get_page
from .pte import page_add_rmap, read_pte


@operation(
    focus=lambda mm, child, hva: Mm.pte[hva].cell(mm),
    words=lambda mm, child, hva, _: f"copies the host's PTE of hva {hva:#x} to the child, read-only for both",
)
def copy_present_pte(memory: Memory, mm: Mm, child: Mm, hva: int) -> Any:
    """Share one page. Waits while the entry is being changed."""
    return _copy(memory, Mm.pte[hva].cell(mm), Mm.pte[hva].cell(child))


@operation(
    focus=lambda mm, child, block: Mm.huge[block].cell(mm),
    words=lambda mm, child, block, _: f"copies the host's huge entry at hva {block[1]:#x} to the child",
)
def copy_huge_pmd(memory: Memory, mm: Mm, child: Mm, block: Block) -> Any:
    """Share one huge page. Waits while the entry is being changed."""
    return _copy(memory, Mm.huge[block].cell(mm), Mm.huge[block].cell(child))


def _copy(memory: Memory, parents: Cell, childs: Cell) -> Any:
    entry: Pte = memory.load_cell(parents)
    if entry.kind is PteKind.BUSY:
        return BLOCK
    page = entry.page
    copied = Pte(vma=entry.vma)
    if entry.kind is PteKind.TABLE:
        copied = entry
    elif entry.kind is PteKind.SWAP:
        # the child reads its own page from swap
        copied = entry._replace(page=None)
    elif page is not None and entry.vma is not None and entry.vma.file is None:
        get_page(memory, page)
        page_add_rmap(memory, page)
        copied = entry._replace(writable=False)
        if not isinstance(page, ZeroPage):
            memory.store(page, Page.exclusive, False)
        if entry.writable:
            memory.store_cell(parents, copied)
    memory.store_cell(childs, copied)
    return None


@operation(words=lambda mm, child, area, file, _: f"maps {file.name} for the child, too")
def _link_file(memory: Memory, mm: Mm, child: Mm, area: Area, file: AddressSpace) -> None:
    mapped = memory.load(file, AddressSpace.i_mmap)
    copies = tuple((child, *where[1:]) for where in mapped if where[0] is mm and where[1] == area.start)
    memory.store(file, AddressSpace.i_mmap, (*mapped, *copies))


@routine
def fork(mm: Mm) -> Mm:
    """The child's address space, with one thread, which is the caller's to end by mmput(). Sleeps."""
    child = mm_alloc(1, mm.kernel)
    areas = read_marked(mm, Mm.areas)
    child.areas = areas
    for area in areas:
        if area.shared:
            vma = read_pte(mm, area.hvas[0]).vma
            if vma is not None and vma.file is not None:
                _link_file(mm, child, area, vma.file)
            _copy_area(mm, child, area)
            continue
        mmu_notifier_invalidate_range_start(mm, area.start, area.end, True)
        _copy_area(mm, child, area)
        mmu_notifier_invalidate_range_end(mm, area.start, area.end)
    say("fork returns")
    return child


@routine
def _copy_area(mm: Mm, child: Mm, area: Area) -> None:
    """copy_page_range()"""
    for block in blocks_between((area,), area.start, area.end):
        copy_huge_pmd(mm, child, block)
    for hva in area.hvas:
        copy_present_pte(mm, child, hva)
