"""The machine that a VM runs on, as far as two-dimensional paging is concerned.

A platform is a constant of a VM. What software makes of it (which bits it uses for what) is not decided here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Paging(enum.Enum):
    """Whose page-table format it is."""

    EPT = "ept"
    """Intel's extended page tables (SDM volume 3, "The extended page table mechanism")."""
    NPT = "npt"
    """AMD's nested page tables: the format of ordinary page tables (APM volume 2, "Nested paging")."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A machine. `Platform()` is an Intel one with accessed and dirty bits and four-level tables."""

    name: str = "EPT"
    paging: Paging = Paging.EPT
    ad_bits: bool = True
    """The hardware sets accessed and dirty bits. NPT always does."""
    pml: bool = False
    """The hardware logs the gfns whose dirty bit it sets (page-modification logging; Intel, needs `ad_bits`)."""
    levels: int = 4
    """Level of the root tables, 4 or 5."""
    maxphyaddr: int = 52
    """Width of host physical addresses, in bits."""


EPT = Platform()
EPT_PML = Platform("EPT with PML", pml=True)
EPT_NO_AD = Platform("EPT without A/D bits", ad_bits=False)
EPT_5_LEVEL = Platform("five-level EPT", levels=5)
NPT = Platform("NPT", Paging.NPT, maxphyaddr=48)

PLATFORMS = (EPT, EPT_PML, EPT_NO_AD, EPT_5_LEVEL, NPT)
