"""Entries of AMD's nested page tables (NPT), bit by bit: those of ordinary 64-bit page tables.

The meaning of the low bits, of the frame number and of bit 63 is the hardware's (AMD APM volume 2, "Long-mode page
translation"); it ignores bits 9 to 11 and 52 to 62, and KVM keeps its own marks in the former (kernel
arch/x86/kvm/mmu/spte.h, v5.13 and later).
"""

from __future__ import annotations

from dataclasses import dataclass

from interleaf.runtime import ModelError

from .access import ALL_ACCESS, Access
from .ept import PFN_MASK, PFN_SHIFT, PT_PAGE_SIZE_MASK, SPTE_MMU_PRESENT_MASK
from .frames import PFN_LIMIT
from .page_table import PG_LEVEL_4K, pages_per_entry

PT_PRESENT_MASK = 1 << 0
PT_WRITABLE_MASK = 1 << 1
PT_USER_MASK = 1 << 2
PT_PWT_MASK = 1 << 3
PT_PCD_MASK = 1 << 4
PT_ACCESSED_MASK = 1 << 5
PT_DIRTY_MASK = 1 << 6
PT_GLOBAL_MASK = 1 << 8
DEFAULT_SPTE_HOST_WRITABLE = 1 << 9
DEFAULT_SPTE_MMU_WRITABLE = 1 << 10
PT64_NX_MASK = 1 << 63
LARGE_PAGE_LEVELS = (2, 3)


@dataclass(frozen=True, slots=True)
class NptEntry:
    """An entry taken apart. `bits` puts it together again; `decode(entry).bits == entry` for every entry that
    sets no bit without a name here."""

    pfn: int = 0
    present: bool = False
    writable: bool = False
    user: bool = False
    write_through: bool = False
    cache_disabled: bool = False
    accessed: bool = False
    dirty: bool = False
    large: bool = False
    global_page: bool = False
    host_writable: bool = False
    mmu_writable: bool = False
    mmu_present: bool = False
    no_execute: bool = False

    @property
    def bits(self) -> int:
        """The entry as the 64-bit number in the table. Raises ModelError if the pfn does not fit."""
        if not 0 <= self.pfn < PFN_LIMIT:
            raise ModelError(f"pfn {self.pfn:#x} does not fit into bits 12 to 51 of an NPT entry.")
        return (
            self.present * PT_PRESENT_MASK
            | self.writable * PT_WRITABLE_MASK
            | self.user * PT_USER_MASK
            | self.write_through * PT_PWT_MASK
            | self.cache_disabled * PT_PCD_MASK
            | self.accessed * PT_ACCESSED_MASK
            | self.dirty * PT_DIRTY_MASK
            | self.large * PT_PAGE_SIZE_MASK
            | self.global_page * PT_GLOBAL_MASK
            | self.host_writable * DEFAULT_SPTE_HOST_WRITABLE
            | self.mmu_writable * DEFAULT_SPTE_MMU_WRITABLE
            | self.mmu_present * SPTE_MMU_PRESENT_MASK
            | self.pfn << PFN_SHIFT
            | self.no_execute * PT64_NX_MASK
        )


def decode(entry: int) -> NptEntry:
    """Take an entry apart."""
    return NptEntry(
        pfn=(entry & PFN_MASK) >> PFN_SHIFT,
        present=bool(entry & PT_PRESENT_MASK),
        writable=bool(entry & PT_WRITABLE_MASK),
        user=bool(entry & PT_USER_MASK),
        write_through=bool(entry & PT_PWT_MASK),
        cache_disabled=bool(entry & PT_PCD_MASK),
        accessed=bool(entry & PT_ACCESSED_MASK),
        dirty=bool(entry & PT_DIRTY_MASK),
        large=bool(entry & PT_PAGE_SIZE_MASK),
        global_page=bool(entry & PT_GLOBAL_MASK),
        host_writable=bool(entry & DEFAULT_SPTE_HOST_WRITABLE),
        mmu_writable=bool(entry & DEFAULT_SPTE_MMU_WRITABLE),
        mmu_present=bool(entry & SPTE_MMU_PRESENT_MASK),
        no_execute=bool(entry & PT64_NX_MASK),
    )


def permissions(entry: int) -> int:
    """What the hardware allows a guest to do through a present entry, as a mask of `Access`: a guest is a user."""
    if not entry & PT_PRESENT_MASK or not entry & PT_USER_MASK:
        return 0
    allowed = ALL_ACCESS
    if not entry & PT_WRITABLE_MASK:
        allowed &= ~Access.WRITE.value
    if entry & PT64_NX_MASK:
        allowed &= ~Access.EXEC.value
    return allowed


def has_reserved_bits(entry: int, level: int, maxphyaddr: int) -> bool:
    """Does a present entry set a bit that is reserved: of an address that the processor does not have, the large-page
    bit where there are no large pages, or an address inside a large page (bit 12 there is PAT)?"""
    if not entry & PT_PRESENT_MASK:
        return False
    reserved = PFN_MASK & -(1 << maxphyaddr)
    if level > PG_LEVEL_4K and entry & PT_PAGE_SIZE_MASK:
        if level not in LARGE_PAGE_LEVELS:
            return True
        reserved |= (pages_per_entry(level) - 1 << PFN_SHIFT) & ~(1 << PFN_SHIFT)
    return bool(entry & reserved)
