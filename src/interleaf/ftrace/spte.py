"""What can be seen of an SPTE without knowing which machine and which kernel wrote it (v5.13 and later).

Both formats share the marks that matter here; where they differ, the format is told from the first entry that points
to a table: such an entry of EPT is accessed in bit 8, one of NPT in bit 5.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from interleaf.hw.page_table import pages_per_entry
from interleaf.hw.platform import Paging

PRESENT = 1 << 11
"""KVM's own mark of a present entry (SPTE_MMU_PRESENT_MASK)."""
LARGE = 1 << 7
WRITABLE = 1 << 1
"""The same bit in both formats."""
PFN_SHIFT = 12
PFN_MASK = (1 << 52) - (1 << PFN_SHIFT)

NON_PRESENT = frozenset({0, 1 << 63})
"""SHADOW_NONPRESENT_VALUE up to v6.9, and from v6.10 on."""

FROZEN = frozenset({0x5A0, 1 << 63 | 0x5A0})
"""FROZEN_SPTE (REMOVED_SPTE), likewise."""


def is_present(spte: int) -> bool:
    """Does the entry map a page or a table? An MMIO entry does not."""
    return bool(spte & PRESENT)


def is_leaf(spte: int, level: int) -> bool:
    """Does a present entry of this level map a page?"""
    return level == 1 or bool(spte & LARGE)


def points_to_table(spte: int, level: int) -> bool:
    """Is the entry present, and no leaf?"""
    return bool(spte & PRESENT) and level > 1 and not spte & LARGE


def links_as_5_12(spte: int, level: int) -> bool:
    """Does this point to a table, as 5.12 and older kernels wrote it: without the bit that marks present entries?"""
    return level > 1 and spte & 7 == 7 and not spte & (PRESENT | LARGE) and pfn_of(spte) != 0


def pfn_of(spte: int) -> int:
    """The frame that a present entry points to."""
    return (spte & PFN_MASK) >> PFN_SHIFT


@dataclass(frozen=True, slots=True)
class Layout:
    """Which bits the hardware sets by itself, and how execution is allowed."""

    paging: Paging
    accessed: int
    dirty: int
    nx: int
    """Set: no execution (NPT)."""
    x: int
    """Set: execution (EPT)."""

    @property
    def volatile(self) -> int:
        """The bits that the hardware sets without any event."""
        return self.accessed | self.dirty

    def executable(self, spte: int) -> int:
        """The entry, with execution allowed."""
        return (spte & ~self.nx) | self.x


NPT = Layout(Paging.NPT, accessed=1 << 5, dirty=1 << 6, nx=1 << 63, x=0)
EPT = Layout(Paging.EPT, accessed=1 << 8, dirty=1 << 9, nx=0, x=1 << 2)


def layout_for(paging: Paging) -> Layout:
    """The layout of a format."""
    return NPT if paging is Paging.NPT else EPT


def layout_of(spte: int) -> Layout:
    """The format of an entry that points to a table.

    KVM sets A in those, unless the machine has no A/D bits, which only Intel's may lack.
    """
    return NPT if spte & NPT.accessed and not spte & EPT.accessed else EPT


def split_child(huge: int, level: int, index: int) -> int:
    """The entry number `index` of the table that replaces the huge page `huge` of `level` (make_huge_page_split_spte).

    Where NX huge pages are on, the kernel makes it executable besides, which cannot be seen from `huge` alone.
    """
    child = huge + (index * pages_per_entry(level - 1) << PFN_SHIFT)
    return child & ~LARGE if level == 2 else child


class Shape(enum.Enum):
    """What an entry is."""

    NOTHING = "non-present"
    FROZEN = "frozen"
    MMIO = "MMIO"
    TABLE = "table"
    LEAF = "leaf"


def shape(spte: int, level: int) -> Shape:
    """What an entry of this level is."""
    if spte & PRESENT:
        return Shape.LEAF if is_leaf(spte, level) else Shape.TABLE
    if spte in NON_PRESENT:
        return Shape.NOTHING
    return Shape.FROZEN if spte in FROZEN else Shape.MMIO


class Change(enum.StrEnum):
    """What a change of an entry amounts to."""

    MAP = "map"
    """Nothing (or MMIO) becomes a leaf."""
    ZAP = "zap"
    """A leaf becomes nothing."""
    LINK = "link"
    """Nothing becomes a table."""
    UNLINK = "unlink"
    """A table becomes nothing."""
    SPLIT = "split"
    """A leaf becomes a table."""
    COLLAPSE = "collapse"
    """A table becomes a leaf."""
    PROTECT = "protect"
    """A leaf may no longer be written."""
    ALLOW = "allow"
    """A leaf may be written now."""
    REMAP = "remap"
    """A leaf maps another page directly: KVM must never do that."""
    ADJUST = "adjust"
    """Other bits of a leaf or of a pointer to a table change, such as A and D."""
    MMIO = "mmio"
    """An MMIO entry comes, goes or is renewed."""
    FREEZE = "freeze"
    """An entry that maps nothing is frozen, or thawed."""


def change(old: int, new: int, level: int) -> Change:
    """What becomes of an entry of this level that was `old` and is `new`."""
    before, after = shape(old, level), shape(new, level)
    if before is Shape.LEAF:
        if after is Shape.LEAF:
            if (old ^ new) & PFN_MASK:
                return Change.REMAP
            if (old ^ new) & WRITABLE:
                return Change.ALLOW if new & WRITABLE else Change.PROTECT
            return Change.ADJUST
        return Change.SPLIT if after is Shape.TABLE else Change.ZAP
    if before is Shape.TABLE:
        if after is Shape.TABLE:
            return Change.ADJUST
        return Change.COLLAPSE if after is Shape.LEAF else Change.UNLINK
    if after is Shape.LEAF:
        return Change.MAP
    if after is Shape.TABLE:
        return Change.LINK
    return Change.MMIO if Shape.MMIO in (before, after) else Change.FREEZE
