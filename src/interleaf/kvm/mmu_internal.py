"""A page fault of the guest while it is handled, and what has become of it (arch/x86/kvm/mmu/mmu_internal.h, v6.12).

gfns and pfns are numbers of 4 KiB pages.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from interleaf.hw.access import PFERR_FETCH_MASK, PFERR_PRESENT_MASK, PFERR_RSVD_MASK, PFERR_WRITE_MASK
from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_4K

from .kvm_host import PFERR_PRIVATE_ACCESS, KvmMemorySlot


class RetPf(enum.IntEnum):
    """What a page-fault handler tells its caller (RET_PF_*, in v6.12's order)."""

    CONTINUE = 0
    RETRY = 1
    EMULATE = 2
    WRITE_PROTECTED = 3
    """The guest writes to a page whose writes are tracked: the write is emulated (EMULATE, up to v6.11)."""
    INVALID = 4
    FIXED = 5
    SPURIOUS = 6


@dataclass(frozen=True, slots=True)
class KvmPageFault:
    """`struct kvm_page_fault`: a fault and what its handling has found out so far."""

    gfn: int
    error_code: int = 0
    """What the hardware says of the access (PFERR_*)."""
    prefetch: bool = False
    """Nobody accesses the page now."""
    nx_huge_page_workaround_enabled: bool = False
    max_level: int = PG_LEVEL_1G
    """Larger pages must not be mapped, whatever the host has."""
    mmu_seq: int = 0
    """`mmu_invalidate_seq` when handling began."""
    slot: KvmMemorySlot | None = None
    pfn: int | None = None
    """The frame of the page itself, also inside a huge page."""
    hva: int = 0
    """The address of the page in the process, where the fault has a slot."""
    map_writable: bool = True
    """The host allows the page to be written."""
    huge_page_disallowed: bool = False
    """Execution from a huge page is not allowed: smaller ones must be mapped."""
    req_level: int = PG_LEVEL_4K
    """The level that could be mapped if that were not so."""
    goal_level: int = PG_LEVEL_4K
    """The level to map."""

    @property
    def write(self) -> bool:
        return bool(self.error_code & PFERR_WRITE_MASK)

    @property
    def exec(self) -> bool:
        return bool(self.error_code & PFERR_FETCH_MASK)

    @property
    def present(self) -> bool:
        """The hardware has found a present entry, which does not allow the access."""
        return bool(self.error_code & PFERR_PRESENT_MASK)

    @property
    def rsvd(self) -> bool:
        """The hardware has found reserved bits: an MMIO SPTE."""
        return bool(self.error_code & PFERR_RSVD_MASK)

    @property
    def is_private(self) -> bool:
        """The access is to private memory of the guest."""
        return bool(self.error_code & PFERR_PRIVATE_ACCESS)
