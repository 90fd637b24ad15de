"""What an address space consists of (include/linux/mm_types.h): entries of the host's page tables, and the mm.

Host virtual addresses (hva) are numbers of 4 KiB pages. What the kernel keeps in the VMA of an address (may it be
written, where do its pages come from) is kept beside its page-table entry here, so that one look at an address finds
both; what serves to find a VMA is not modelled.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, pages_per_entry
from interleaf.linux.refcount import refcount_t
from interleaf.linux.srcu import srcu_struct
from interleaf.runtime import Array, Const, Embedded, Marked, Memory, Object

from .page import Page

if TYPE_CHECKING:
    from .mmu_notifier import MmuNotifier

HUGE_LEVELS = (PG_LEVEL_1G, PG_LEVEL_2M)


class Prot(enum.IntEnum):
    """What the process may do with its memory (PROT_*)."""

    NONE = 0
    READ = 1
    WRITE = 3
    """PROT_READ | PROT_WRITE"""


class Kind(enum.Enum):
    """Where the pages of a mapping come from."""

    PROVIDED = "userfaultfd"
    """Private memory, each page of which userspace provides when it is missing (UFFDIO_COPY): a page of its own at
    the first look, whether for reading or for writing."""
    ANONYMOUS = "anonymous"
    """Private memory that is zero at first: the shared page of zeros until it is written."""
    SHMEM = "shmem"
    """Shared memory: pages of a file that is nowhere but in memory."""
    HUGETLB = "hugetlb"
    """Private memory in huge pages, which are never split."""


class AddressSpace(Object):
    """`struct address_space` of a file in memory (shmem): its pages by their index in the file. A page that is here
    has a reference from here."""

    pages: Array[Page | None] = Array(None)
    i_mmap: Marked[tuple[tuple[Mm, int, int, int], ...]] = Marked(())
    """Where it is mapped: (mm, first hva, pages, index of the first page)."""


class Vma(NamedTuple):
    """What `struct vm_area_struct` says of an address."""

    prot: Prot = Prot.WRITE
    kind: Kind = Kind.PROVIDED
    level: int = PG_LEVEL_4K
    """With what level of page-table entry it is populated, where alignment allows."""
    file: AddressSpace | None = None
    pgoff: int = 0
    """Index in the file minus hva."""


class PteKind(enum.Enum):
    """What is in an entry of the host's page tables."""

    NONE = "nothing"
    PRESENT = "a page"
    SWAP = "on swap"
    """The page is on swap; if the entry names a page, that is in the swap cache still, with a reference from there."""
    BUSY = "being changed"
    """Whoever finds it must wait: somebody replaces the page (a migration entry, or the page or the page table is
    locked)."""
    TABLE = "a table"
    """Of a huge entry: there is a table of smaller ones below."""


class Pte(NamedTuple):
    """An entry of the host's page tables, of whatever level."""

    kind: PteKind = PteKind.NONE
    vma: Vma | None = None
    page: Page | None = None
    writable: bool = False
    offset: int = 0
    """Which frame of a compound page the entry begins with."""

    @property
    def pfn(self) -> int:
        assert self.page is not None
        return self.page.pfn + self.offset

    def allows(self, write: bool) -> bool:
        """May the process make such an access at all?"""
        return self.vma is not None and self.vma.prot >= (Prot.WRITE if write else Prot.READ)

    def serves(self, write: bool) -> bool:
        """Can the access be made through this entry as it is?"""
        return self.kind is PteKind.PRESENT and self.allows(write) and (self.writable or not write)


class Area(NamedTuple):
    """A range of addresses that was mapped at some time, and those of its hvas that are ever looked at by themselves.

    As with `Kvm.gfns`, nobody ever touches the others, so nothing is said about them; what a huge page is mapped to
    as a whole is known through any of them.
    """

    start: int
    end: int
    hvas: tuple[int, ...]
    levels: tuple[int, ...] = ()
    """Levels of huge entries that may be in it, largest first."""
    shared: bool = False
    """It is a mapping of a file in memory, which a child of the process shares."""


@dataclass(frozen=True, slots=True)
class MmKernel:
    """What differs between kernels in what they do to a process's memory. `MmKernel()` is v6.12."""

    set_pte_at_notify: bool = False
    """Whoever replaces a page by another one tells the notifiers of the new PTE, too (up to v6.9)."""
    swap_in_writable: bool = True
    """A page that comes back from swap because it is read is mapped writable, if the process may write to it."""
    pageout_ignores_references: bool = True
    """MADV_PAGEOUT does not ask whether the pages are used."""


class Mm(Object):
    """`struct mm_struct`. The structure itself outlives the model (KVM holds a reference on it by mmgrab)."""

    kernel: Const[MmKernel] = Const(MmKernel, MmKernel())
    mm_users = Embedded(refcount_t)
    """Threads that live in this address space; with the last one it is torn down (exit_mmap)."""
    pte: Array[Pte] = Array(Pte())
    """By hva."""
    huge: Array[Pte] = Array(Pte())
    """By level and first hva."""
    areas: Marked[tuple[Area, ...]] = Marked(())
    """What was ever mapped."""
    notifiers: Marked[tuple[MmuNotifier, ...]] = Marked(())
    """The registered notifiers, an RCU list in the kernel: read under `notifier_srcu`."""
    notifier_srcu = Embedded(srcu_struct)


def block_of(level: int, hva: int) -> tuple[int, int]:
    """The huge entry of a level in which `hva` is: an index of `Mm.huge`."""
    return level, hva & -pages_per_entry(level)


def load_pte(memory: Memory, mm: Mm, hva: int) -> Pte:
    """Inside an operation: the entry for `hva`, whatever its level; a part of a huge one reads as one of 4 KiB."""
    for level in HUGE_LEVELS:
        block = block_of(level, hva)
        huge: Pte = memory.load(mm, Mm.huge[block])
        if huge.kind in (PteKind.PRESENT, PteKind.BUSY):
            return huge._replace(offset=huge.offset + hva - block[1])
    found: Pte = memory.load(mm, Mm.pte[hva])
    return found


def hvas_between(areas: tuple[Area, ...], start: int, end: int) -> tuple[int, ...]:
    """The hvas start <= hva < end that are ever looked at."""
    return tuple(sorted({hva for area in areas for hva in area.hvas if start <= hva < end}))


def blocks_between(areas: tuple[Area, ...], start: int, end: int) -> tuple[tuple[int, int], ...]:
    """The huge entries that may be in use for any hva with start <= hva < end, largest first."""
    found = {
        block_of(level, hva)
        for area in areas
        for level in area.levels
        for hva in area.hvas
        if block_of(level, hva)[1] < end and start < block_of(level, hva)[1] + pages_per_entry(level)
    }
    return tuple(sorted(found, key=lambda block: (-block[0], block[1])))
