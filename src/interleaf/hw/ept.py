"""Entries of Intel's extended page tables (EPT), bit by bit.

The low bits and the frame number are the hardware's (Intel SDM volume 3, "Format of EPT paging-structure
entries"); the hardware ignores bits 11 and 52 to 62, and KVM keeps its own marks there (kernel
arch/x86/kvm/mmu/spte.h, v5.13 and later).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from interleaf.runtime import ModelError

from .frames import PFN_LIMIT
from .page_table import PG_LEVEL_4K, pages_per_entry

VMX_EPT_READABLE_MASK = 1 << 0
VMX_EPT_WRITABLE_MASK = 1 << 1
VMX_EPT_EXECUTABLE_MASK = 1 << 2
VMX_EPT_RWX_MASK = VMX_EPT_READABLE_MASK | VMX_EPT_WRITABLE_MASK | VMX_EPT_EXECUTABLE_MASK
VMX_EPT_MT_SHIFT = 3
VMX_EPT_MT_MASK = 7 << VMX_EPT_MT_SHIFT
VMX_EPT_IPAT_BIT = 1 << 6
"""The guest's PAT does not change the memory type."""
PT_PAGE_SIZE_MASK = 1 << 7
"""The entry maps a large page (levels 2 and 3)."""
VMX_EPT_ACCESS_BIT = 1 << 8
VMX_EPT_DIRTY_BIT = 1 << 9
SPTE_MMU_PRESENT_MASK = 1 << 11
"""KVM's mark of a shadow-present entry."""
PFN_SHIFT = 12
PFN_MASK = PFN_LIMIT - 1 << PFN_SHIFT
SPTE_TDP_AD_SHIFT = 52
SPTE_TDP_AD_MASK = 3 << SPTE_TDP_AD_SHIFT
SHADOW_ACC_TRACK_SAVED_BITS_SHIFT = 54
"""Where an access-tracked entry keeps its R and X bits (bits 54 and 56)."""
EPT_SPTE_HOST_WRITABLE = 1 << 57
EPT_SPTE_MMU_WRITABLE = 1 << 58
EPT_SUPPRESS_VE_BIT = 1 << 63
LARGE_PAGE_LEVELS = (2, 3)
RESERVED_MEMORY_TYPES = (2, 3, 7)


class MemoryType(enum.IntEnum):
    """EPT memory types."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6


class AdType(enum.IntEnum):
    """KVM's note, in bits 52 and 53, on whether the A and D bits of the entry mean something."""

    ENABLED = 0
    DISABLED = 1
    WRITE_PROTECT_ONLY = 2
    """Accessed by the A bit, dirty by write protection (nested guests with PML)."""


@dataclass(frozen=True, slots=True)
class EptEntry:
    """An entry taken apart. `bits` puts it together again; `decode(entry).bits == entry` for every entry that
    sets no bit without a name here."""

    pfn: int = 0
    readable: bool = False
    writable: bool = False
    executable: bool = False
    memory_type: MemoryType = MemoryType.UC
    ignore_pat: bool = False
    large: bool = False
    accessed: bool = False
    dirty: bool = False
    mmu_present: bool = False
    ad_type: AdType = AdType.ENABLED
    saved_readable: bool = False
    saved_executable: bool = False
    host_writable: bool = False
    mmu_writable: bool = False
    suppress_ve: bool = False

    @property
    def bits(self) -> int:
        """The entry as the 64-bit number in the table. Raises ModelError if the pfn does not fit."""
        if not 0 <= self.pfn < PFN_LIMIT:
            raise ModelError(f"pfn {self.pfn:#x} does not fit into bits 12 to 51 of an EPT entry.")
        return (
            self.readable * VMX_EPT_READABLE_MASK
            | self.writable * VMX_EPT_WRITABLE_MASK
            | self.executable * VMX_EPT_EXECUTABLE_MASK
            | self.memory_type << VMX_EPT_MT_SHIFT
            | self.ignore_pat * VMX_EPT_IPAT_BIT
            | self.large * PT_PAGE_SIZE_MASK
            | self.accessed * VMX_EPT_ACCESS_BIT
            | self.dirty * VMX_EPT_DIRTY_BIT
            | self.mmu_present * SPTE_MMU_PRESENT_MASK
            | self.pfn << PFN_SHIFT
            | self.ad_type << SPTE_TDP_AD_SHIFT
            | self.saved_readable * VMX_EPT_READABLE_MASK << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
            | self.saved_executable * VMX_EPT_EXECUTABLE_MASK << SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
            | self.host_writable * EPT_SPTE_HOST_WRITABLE
            | self.mmu_writable * EPT_SPTE_MMU_WRITABLE
            | self.suppress_ve * EPT_SUPPRESS_VE_BIT
        )


def decode(entry: int) -> EptEntry:
    """Take an entry apart. Raises ValueError for a reserved memory type or A/D type."""
    saved = entry >> SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
    return EptEntry(
        pfn=pfn_of(entry),
        readable=bool(entry & VMX_EPT_READABLE_MASK),
        writable=bool(entry & VMX_EPT_WRITABLE_MASK),
        executable=bool(entry & VMX_EPT_EXECUTABLE_MASK),
        memory_type=MemoryType((entry & VMX_EPT_MT_MASK) >> VMX_EPT_MT_SHIFT),
        ignore_pat=bool(entry & VMX_EPT_IPAT_BIT),
        large=bool(entry & PT_PAGE_SIZE_MASK),
        accessed=bool(entry & VMX_EPT_ACCESS_BIT),
        dirty=bool(entry & VMX_EPT_DIRTY_BIT),
        mmu_present=bool(entry & SPTE_MMU_PRESENT_MASK),
        ad_type=AdType((entry & SPTE_TDP_AD_MASK) >> SPTE_TDP_AD_SHIFT),
        saved_readable=bool(saved & VMX_EPT_READABLE_MASK),
        saved_executable=bool(saved & VMX_EPT_EXECUTABLE_MASK),
        host_writable=bool(entry & EPT_SPTE_HOST_WRITABLE),
        mmu_writable=bool(entry & EPT_SPTE_MMU_WRITABLE),
        suppress_ve=bool(entry & EPT_SUPPRESS_VE_BIT),
    )


def pfn_of(entry: int) -> int:
    """The frame that the entry points to (spte_to_pfn)."""
    return (entry & PFN_MASK) >> PFN_SHIFT


def is_present(entry: int) -> bool:
    """Does the hardware use the entry at all? It does if any of R, W and X is set."""
    return bool(entry & VMX_EPT_RWX_MASK)


def is_leaf(entry: int, level: int) -> bool:
    """Does an entry of a table of this level map a page, rather than point to a table (is_last_spte)?"""
    return level == PG_LEVEL_4K or bool(entry & PT_PAGE_SIZE_MASK)


def permissions(entry: int) -> int:
    """What the hardware allows a guest to do through the entry, as a mask of `Access`; 0 if it is not present."""
    return entry & VMX_EPT_RWX_MASK


def is_misconfigured(entry: int, level: int, maxphyaddr: int) -> bool:
    """Would using a present entry be an EPT misconfiguration?

    It is one that is writable but not readable, has a reserved memory type, or sets a reserved bit: of an address
    that the processor does not have, inside a large page, or, of an entry that points to a table, one of bits 3 to 7.
    """
    if not entry & VMX_EPT_RWX_MASK:
        return False
    if entry & VMX_EPT_WRITABLE_MASK and not entry & VMX_EPT_READABLE_MASK:
        return True
    reserved = PFN_MASK & -(1 << maxphyaddr)
    if level == PG_LEVEL_4K or (level in LARGE_PAGE_LEVELS and entry & PT_PAGE_SIZE_MASK):
        reserved |= pages_per_entry(level) - 1 << PFN_SHIFT
        if (entry & VMX_EPT_MT_MASK) >> VMX_EPT_MT_SHIFT in RESERVED_MEMORY_TYPES:
            return True
    else:
        reserved |= VMX_EPT_MT_MASK | VMX_EPT_IPAT_BIT | PT_PAGE_SIZE_MASK
    return bool(entry & reserved)
