"""Files in memory: pages that leave the file leave all mappings (mm/shmem.c, mm/truncate.c, v6.12)."""

from __future__ import annotations

from interleaf.runtime import Memory, checkpoint, operation, read_marked, routine, say

from .mm_types import AddressSpace, PteKind
from .mmu_notifier import mmu_notifier_invalidate_range_end, mmu_notifier_invalidate_range_start
from .page import Page, put_page
from .unmap import zap_page_range


@routine
def unmap_mapping_pages(file: AddressSpace, start: int, npages: int) -> None:
    """Unmap the pages start <= index < start + npages of the file wherever they are mapped. Sleeps."""
    for mm, hva, mapped, first in read_marked(file, AddressSpace.i_mmap):
        begin, end = max(start, first) - first + hva, min(start + npages, first + mapped) - first + hva
        if begin < end:
            mmu_notifier_invalidate_range_start(mm, begin, end, True)
            zap_page_range(mm, begin, end, PteKind.NONE)
            mmu_notifier_invalidate_range_end(mm, begin, end)


@operation(
    focus=lambda file, index: AddressSpace.pages[index].cell(file),
    words=lambda file, index, page: f"takes page {index} out of {file.name}" if page else f"leaves page {index}",
)
def _delete_from_page_cache(memory: Memory, file: AddressSpace, index: int) -> tuple[bool, Page | None]:
    """The page, with its reference, if no PTE maps it; (False, None) if one does."""
    page: Page | None = memory.load(file, AddressSpace.pages[index])
    if page is not None and memory.load(page, Page.mapcount):
        return False, None
    memory.store(file, AddressSpace.pages[index], None)
    return True, page


@routine
def shmem_fallocate_punch_hole(file: AddressSpace, start: int, npages: int) -> None:
    """Free the pages start <= index < start + npages of the file (FALLOC_FL_PUNCH_HOLE); who looks at them again
    finds zeros. Sleeps."""
    unmap_mapping_pages(file, start, npages)
    index = start
    while index < start + npages:
        checkpoint()
        done, page = _delete_from_page_cache(file, index)
        if not done:
            # somebody has mapped it again
            unmap_mapping_pages(file, index, 1)
        else:
            if page is not None:
                put_page(page)
            index += 1
        del done, page
    say(f"a hole is punched into {file.name}")
