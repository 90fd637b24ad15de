"""A process's address space: making one, mapping memory, and looking up what is behind an address.

Host virtual addresses (hva) are numbers of 4 KiB pages. Looking an address up and taking a reference on its page
is indivisible here, as it is in the kernel (get_user_pages_fast against the clearing of the PTE, which waits for
it or makes it look again). mmap_lock is not modelled: what it orders (changes of the mappings among each other, and
against page faults) is not what KVM relies on. Where it keeps page faults out while a page is being replaced, the
entry says so (`PteKind.BUSY`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.linux.lockdep import might_sleep
from interleaf.linux.refcount import refcount_set
from interleaf.runtime import BLOCK, Memory, ModelError, checkpoint, new, operation, routine

from .memory import handle_mm_fault
from .mm_types import (
    HUGE_LEVELS,
    AddressSpace,
    Area,
    Kind,
    Mm,
    MmKernel,
    Prot,
    Pte,
    PteKind,
    Vma,
    block_of,
    load_pte,
)
from .page import Page, alloc_page, get_page, put_page
from .pte import show_pte

__all__ = [
    "AddressSpace",
    "Kind",
    "Mm",
    "MmKernel",
    "PinnedPage",
    "Prot",
    "Pte",
    "PteKind",
    "get_user_page",
    "host_mapping_level",
    "mm_alloc",
    "mmap",
]

LATEST = MmKernel()


class PinnedPage(NamedTuple):
    """A page that was looked up, with a reference on it for whoever did."""

    page: Page
    """If it is a compound page, all of it."""
    pfn: int
    """The frame of the very address."""
    writable: bool
    """The process may write to it right now, so a read may map it for writing, too."""


def mm_alloc(users: int, kernel: MmKernel = LATEST) -> Mm:
    """A new address space that `users` threads live in (mm_alloc, mmget)."""
    mm = new(Mm, kernel=kernel)
    refcount_set(mm.mm_users, users)
    return mm


def mmap(
    mm: Mm,
    start: int,
    npages: int,
    kind: Kind = Kind.PROVIDED,
    *,
    level: int = PG_LEVEL_4K,
    prot: Prot = Prot.WRITE,
    file: AddressSpace | None = None,
    pgoff: int = 0,
    populate: bool = True,
    hvas: tuple[int, ...] = (),
) -> None:
    """Map memory at the hvas start <= hva < start + npages. While one thread runs only.

    `level` is that of the pages to use where they fit (huge pages for ANONYMOUS and HUGETLB memory), `pgoff` the
    index of the first page in `file`. `populate`: the process has written it all. `hvas` are those that anybody ever
    looks at; without them, it is all of them, which in huge pages is many.
    """
    if kind is Kind.SHMEM and file is None:
        raise ModelError("SHMEM memory is mapped from a file: pass a new AddressSpace.")
    touched = hvas or tuple(range(start, start + npages))
    levels = tuple(huge for huge in HUGE_LEVELS if huge <= level)
    mm.areas = (*mm.areas, Area(start, start + npages, touched, levels, file is not None))
    vma = Vma(prot, kind, level, file, pgoff - start)
    if file is not None:
        file.i_mmap = (*file.i_mmap, (mm, start, npages, pgoff))
    for hva in touched:
        mm.pte[hva] = Pte(vma=vma)
        if populate and level == PG_LEVEL_4K and kind is not Kind.SHMEM:
            page = alloc_page()
            page.mapcount = 1
            mm.pte[hva] = Pte(PteKind.PRESENT, vma, page, prot is Prot.WRITE)
        elif populate:
            pinned = get_user_page(mm, hva, prot is Prot.WRITE)
            assert pinned is not None
            put_page(pinned.page)


@operation(
    focus=lambda mm, hva, write: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, write, found: (
        f"looks up hva {hva:#x}: {found.page.name if isinstance(found, PinnedPage) else show_pte(found)}"
    ),
)
def _follow_pte(memory: Memory, mm: Mm, hva: int, write: bool) -> Any:
    """The page at `hva` with a reference, or the entry that does not serve the access. Waits while that is being
    changed."""
    entry = load_pte(memory, mm, hva)
    if entry.kind is PteKind.BUSY:
        return BLOCK
    if not entry.serves(write):
        return entry
    assert entry.page is not None
    get_page(memory, entry.page)
    return PinnedPage(entry.page, entry.pfn, entry.writable)


@routine
def get_user_page(mm: Mm, hva: int, write: bool) -> PinnedPage | None:
    """The page at `hva`, for reading or for writing, with a reference for the caller; None if the process may not
    make such an access there (get_user_pages).

    Brings a page where there is none, and a copy where it may not be written. May sleep.
    """
    might_sleep()
    while True:
        checkpoint()
        found = _follow_pte(mm, hva, write)
        if isinstance(found, PinnedPage):
            return found
        if not handle_mm_fault(mm, hva, write, found):
            return None
        del found


@operation(words=lambda mm, hva, level: f"finds hva {hva:#x} mapped by a host entry of level {level}")
def host_mapping_level(memory: Memory, mm: Mm, hva: int) -> int:
    """The level of the host's entry for `hva`: what maps it now may be mapped as large as that in a guest.

    Only a hint, unless no notifier can be between its start and its end (host_pfn_mapping_level). Any context.
    """
    for level in HUGE_LEVELS:
        huge: Pte = memory.load(mm, Mm.huge[block_of(level, hva)])
        if huge.kind is PteKind.PRESENT:
            return level
    return PG_LEVEL_4K
