"""A process's address space: which page is behind which host virtual address.

Host virtual addresses (hva) are numbers of 4 KiB pages. Looking an address up and taking a reference on its page
is indivisible here, as it is in the kernel (get_user_pages_fast against the clearing of the PTE). mmap_lock is
not modelled: what it orders (changes of the mappings among each other) is not what KVM relies on.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from interleaf.linux.lockdep import might_sleep
from interleaf.linux.refcount import refcount_set, refcount_t
from interleaf.linux.srcu import srcu_struct
from interleaf.runtime import Array, Embedded, Marked, Memory, Object, Plain, checkpoint, free, new, operation, routine

from .page import Page, alloc_page

if TYPE_CHECKING:
    from .mmu_notifier import MmuNotifier


class Absent(enum.Enum):
    """What is at an address that has no page."""

    NO_VMA = enum.auto()
    """Nothing is mapped there."""
    NOT_POPULATED = enum.auto()
    """Anonymous memory is mapped there; the next look brings a new page."""


class Mm(Object):
    """`struct mm_struct`. The structure itself outlives the model (KVM holds a reference on it by mmgrab)."""

    mm_users = Embedded(refcount_t)
    """Threads that live in this address space; with the last one it is torn down (exit_mmap)."""
    pte: Array[Page | Absent] = Array(Absent.NO_VMA)
    """By hva."""
    mapped: Plain[tuple[int, ...]] = Plain(())
    """The hvas that were ever mapped."""
    notifiers: Marked[tuple[MmuNotifier, ...]] = Marked(())
    """The registered notifiers, an RCU list in the kernel: read under `notifier_srcu`."""
    notifier_srcu = Embedded(srcu_struct)


def mm_alloc(users: int) -> Mm:
    """A new address space that `users` threads live in (mm_alloc, mmget)."""
    mm = new(Mm)
    refcount_set(mm.mm_users, users)
    return mm


def mmap(mm: Mm, start: int, npages: int) -> None:
    """Map anonymous memory, populated, at the hvas start <= hva < start + npages. While one thread runs only."""
    hvas = tuple(range(start, start + npages))
    mm.mapped = (*mm.mapped, *hvas)
    for hva in hvas:
        mm.pte[hva] = alloc_page()


@operation(
    focus=lambda mm, hva: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, found: f"looks up hva {hva:#x}: {found if isinstance(found, Page) else 'no page'}",
)
def _follow_pte(memory: Memory, mm: Mm, hva: int) -> Page | Absent:
    found: Page | Absent = memory.load(mm, Mm.pte[hva])
    if isinstance(found, Page):
        memory.store(found, Page.refcount, memory.load(found, Page.refcount) + 1)
    return found


@operation(
    focus=lambda mm, hva, page: Mm.pte[hva].cell(mm),
    words=lambda mm, hva, page, won: f"{'populates' if won else 'does not get to populate'} hva {hva:#x}",
)
def _populate(memory: Memory, mm: Mm, hva: int, page: Page) -> bool:
    if memory.load(mm, Mm.pte[hva]) is not Absent.NOT_POPULATED:
        return False
    memory.store(mm, Mm.pte[hva], page)
    return True


@routine
def get_user_page(mm: Mm, hva: int) -> Page | None:
    """The page at `hva` with a reference for the caller, None if nothing is mapped there (get_user_pages).

    Brings a new page where memory is mapped that has none. May sleep.
    """
    might_sleep()
    while True:
        checkpoint()
        found = _follow_pte(mm, hva)
        if isinstance(found, Page):
            return found
        if found is Absent.NO_VMA:
            return None
        page = alloc_page()
        if not _populate(mm, hva, page):
            free(page)
        del found, page
