"""The physical memory map: which host frames the machine uses for what.

A page table and a host page are model objects; their pfn is made from the object's serial number, so an
entry of a page table is a plain number, as it is for the hardware, and still leads back to the object.
"""

from __future__ import annotations

from interleaf.runtime import Memory, Object
from interleaf.runtime.memory import ALIVE

HOST_PAGE_PFN_BASE = 0x1000
"""First frame that backs user memory (16 MiB)."""

PAGE_TABLE_PFN_BASE = 0x100000
"""First frame that holds page tables (4 GiB)."""

HUGE_PAGE_PFN_BASE = 1 << 24
"""First frame of the 2 MiB pages of user memory (64 GiB)."""

GIGANTIC_PAGE_PFN_BASE = 1 << 30
"""First frame of the 1 GiB pages of user memory (4 TiB)."""

ZERO_PAGE_PFN = HOST_PAGE_PFN_BASE - 1
"""The frame of zeros that the host maps wherever anonymous memory has only been read."""

PFN_LIMIT = 1 << 40
"""Physical addresses have 52 bits, of which 12 lie inside the page."""


def is_allocated(memory: Memory, owner: Object) -> bool:
    """Inside an operation: is `owner` allocated, as what is never freed always is? For the accesses of the
    hardware, which go to the frame whether or not it still holds what it did."""
    return owner.life is None or bool(memory.look(owner.life) == ALIVE)
