"""How pages leave an address space: munmap, MADV_DONTNEED, and the end of the process.

In each case the notifiers hear of it first; then the host's PTEs are cleared, and each page is freed as soon as
its last reference is put. (The kernel may free the pages, in batches, as late as after the end of the range; the
earliest moment is the strictest for those who use them.)
"""

from __future__ import annotations

from interleaf.linux.refcount import refcount_dec_and_test
from interleaf.runtime import Memory, operation, routine, say

from .mm import Absent, Mm
from .mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_release,
)
from .page import Page, expect_unmapped, put_page


@operation(
    focus=lambda mm, hva, left: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, left, page: f"clears the host's PTE of hva {hva:#x}{f', {page.name}' if page else ''}",
)
def _ptep_clear(memory: Memory, mm: Mm, hva: int, left: Absent) -> Page | None:
    """Clear a PTE of the host; returns the page that was there, of which the PTE had a reference.

    The notifiers have been told, so no SPTE may map the page (I1).
    """
    found = memory.load(mm, Mm.pte[hva])
    if isinstance(found, Page):
        expect_unmapped(memory, found, "the notifiers have returned and the host takes back")
    if found is not Absent.NO_VMA:
        memory.store(mm, Mm.pte[hva], left)
    return found if isinstance(found, Page) else None


@routine
def _zap_page_range(mm: Mm, start: int, end: int, left: Absent) -> None:
    for hva in range(start, end):
        page = _ptep_clear(mm, hva, left)
        if page is not None:
            put_page(page)


@routine
def munmap(mm: Mm, start: int, npages: int, blockable: bool = True) -> None:
    """Unmap the hvas start <= hva < start + npages: looking them up fails afterwards. Sleeps.

    `blockable` False is the OOM reaper's way, whose notifiers must not sleep.
    """
    end = start + npages
    mmu_notifier_invalidate_range_start(mm, start, end, blockable)
    _zap_page_range(mm, start, end, Absent.NO_VMA)
    mmu_notifier_invalidate_range_end(mm, start, end)
    say(f"munmap of hva {start:#x} to {end:#x} returns")


@routine
def madvise_dontneed(mm: Mm, start: int, npages: int) -> None:
    """Give the pages at start <= hva < start + npages back; the next look brings new ones. Sleeps."""
    end = start + npages
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    _zap_page_range(mm, start, end, Absent.NOT_POPULATED)
    mmu_notifier_invalidate_range_end(mm, start, end)
    say(f"madvise(MADV_DONTNEED) of hva {start:#x} to {end:#x} returns")


@routine
def mmput(mm: Mm) -> None:
    """A thread leaves the address space; the last one tears it down (exit_mmap). Sleeps."""
    if refcount_dec_and_test(mm.mm_users):
        say("the last thread of the process is gone: exit_mmap")
        mmu_notifier_release(mm)
        for hva in mm.mapped:
            _zap_page_range(mm, hva, hva + 1, Absent.NO_VMA)
