"""How pages leave an address space: munmap, MADV_DONTNEED, the OOM reaper, and the end of the process.

In each case the notifiers hear of it first; then the host's PTEs are cleared, and each page is freed as soon as
its last reference is put. (The kernel may free the pages, in batches, as late as after the end of the range; the
earliest moment is the strictest for those who use them.)
"""

from __future__ import annotations

from interleaf.hw.page_table import pages_per_entry
from interleaf.linux.refcount import refcount_dec_and_test
from interleaf.runtime import ModelError, read_marked, routine, say

from .huge_memory import Block, split_huge_pmd
from .mm_types import Kind, Mm, Pte, PteKind, blocks_between, hvas_between
from .mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_release,
)
from .page import put_page
from .pte import pmdp_clear, ptep_clear, read_huge, set_huge_if_same


@routine
def zap_page_range(mm: Mm, start: int, end: int, left: PteKind | None) -> None:
    """Clear what maps start <= hva < end; `left` NONE keeps the memory mapped, None does not. The notifiers know."""
    areas = read_marked(mm, Mm.areas)
    for block in blocks_between(areas, start, end):
        if start <= block[1] and block[1] + pages_per_entry(block[0]) <= end:
            _put(pmdp_clear(mm, block, left))
        else:
            break_block(mm, block, left is None)
    for hva in hvas_between(areas, start, end):
        _put(ptep_clear(mm, hva, left))


def _put(old: Pte) -> None:
    if old.page is not None and old.kind in (PteKind.PRESENT, PteKind.SWAP):
        put_page(old.page)


@routine
def break_block(mm: Mm, block: Block, for_good: bool) -> None:
    """A part of a huge entry is about to be changed: map what is there by small entries. `for_good`: no huge entry
    can be here any more, because the parts differ from now on."""
    found: Pte = read_huge(mm, block)
    if found.kind is PteKind.PRESENT:
        assert found.vma is not None
        if found.vma.kind is Kind.HUGETLB:
            raise ModelError(f"a part of the huge page at hva {block[1]:#x} is to be unmapped, which cannot be split.")
        split_huge_pmd(mm, block)
    elif found.kind is PteKind.NONE and for_good:
        set_huge_if_same(mm, block, found, Pte(PteKind.TABLE))


@routine
def munmap(mm: Mm, start: int, npages: int) -> None:
    """Unmap the hvas start <= hva < start + npages: looking them up fails afterwards. Sleeps."""
    end = start + npages
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    zap_page_range(mm, start, end, None)
    mmu_notifier_invalidate_range_end(mm, start, end)
    say(f"munmap of hva {start:#x} to {end:#x} returns")


@routine
def madvise_dontneed(mm: Mm, start: int, npages: int) -> None:
    """Give the pages at start <= hva < start + npages back; the next look brings new ones. Sleeps."""
    end = start + npages
    mmu_notifier_invalidate_range_start(mm, start, end, True)
    zap_page_range(mm, start, end, PteKind.NONE)
    mmu_notifier_invalidate_range_end(mm, start, end)
    say(f"madvise(MADV_DONTNEED) of hva {start:#x} to {end:#x} returns")


@routine
def oom_reap_task_mm(mm: Mm) -> None:
    """The OOM reaper takes the memory of a process that is being killed, which may still run: its private pages go,
    and nobody can look anything up any more (MMF_UNSTABLE). The notifiers must not sleep."""
    for area in read_marked(mm, Mm.areas):
        mmu_notifier_invalidate_range_start(mm, area.start, area.end, False)
        zap_page_range(mm, area.start, area.end, None)
        mmu_notifier_invalidate_range_end(mm, area.start, area.end)
    say("the OOM reaper is done")


@routine
def mmput(mm: Mm) -> None:
    """A thread leaves the address space; the last one tears it down (exit_mmap). Sleeps."""
    if refcount_dec_and_test(mm.mm_users):
        say("the last thread of the process is gone: exit_mmap")
        mmu_notifier_release(mm)
        for area in read_marked(mm, Mm.areas):
            zap_page_range(mm, area.start, area.end, None)
