"""SPTEs as numbers: how KVM makes entries of its page tables, and what it reads off them.

Pure functions on 64-bit integers; none of them touches shared state. The bits are those of EPT with A and D
bits enabled (kernel arch/x86/kvm/mmu/spte.h and spte.c, v6.12).
"""

from __future__ import annotations

from interleaf.hw import ept
from interleaf.hw.ept import AdType, MemoryType
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import ACC_EXEC_MASK, ACC_WRITE_MASK


def is_shadow_present_pte(spte: int) -> bool:
    """Does KVM map something here? (It may be access-tracked, so that the hardware sees nothing.)"""
    return bool(spte & ept.SPTE_MMU_PRESENT_MASK)


def is_removed_spte(design: Design, spte: int) -> bool:
    """Is the entry frozen: owned by a task that is removing what it mapped (is_frozen_spte from v6.12)?"""
    return spte == design.removed_spte


def is_last_spte(spte: int, level: int) -> bool:
    """Does a present entry of this level map a page, rather than point to a table?"""
    return ept.is_leaf(spte, level)


def is_present_leaf(spte: int, level: int) -> bool:
    """Does the entry map a page?"""
    return is_shadow_present_pte(spte) and is_last_spte(spte, level)


def spte_to_pfn(spte: int) -> int:
    """The frame that a present entry points to."""
    return ept.pfn_of(spte)


def is_writable_pte(spte: int) -> bool:
    """Does the hardware let the guest write through the entry?"""
    return bool(spte & ept.VMX_EPT_WRITABLE_MASK)


def is_mmu_writable_spte(spte: int) -> bool:
    """May KVM make the entry writable without mmu_lock (fast page fault)?"""
    return bool(spte & ept.EPT_SPTE_MMU_WRITABLE)


def spte_ad_enabled(spte: int) -> bool:
    """Do the A and D bits of the entry mean something?"""
    return spte & ept.SPTE_TDP_AD_MASK == AdType.ENABLED << ept.SPTE_TDP_AD_SHIFT


def is_access_track_spte(spte: int) -> bool:
    """Are the permissions of the entry put aside, so that the next access faults?"""
    return not spte_ad_enabled(spte) and not spte & ept.VMX_EPT_RWX_MASK


def is_accessed_spte(spte: int) -> bool:
    """Has the page been accessed through the entry since that was last cleared?"""
    return bool(spte & ept.VMX_EPT_ACCESS_BIT) if spte_ad_enabled(spte) else not is_access_track_spte(spte)


def is_dirty_spte(spte: int) -> bool:
    """Has the page been written through the entry since that was last cleared?"""
    return bool(spte & ept.VMX_EPT_DIRTY_BIT) if spte_ad_enabled(spte) else is_writable_pte(spte)


def spte_has_volatile_bits(spte: int) -> bool:
    """Can the entry change without mmu_lock: by a fast page fault, or by the hardware setting A or D?"""
    if is_access_track_spte(spte) or (not is_writable_pte(spte) and is_mmu_writable_spte(spte)):
        return True
    return spte_ad_enabled(spte) and (
        not spte & ept.VMX_EPT_ACCESS_BIT or (is_writable_pte(spte) and not spte & ept.VMX_EPT_DIRTY_BIT)
    )


def make_spte(design: Design, pfn: int, access: int, host_writable: bool) -> int:
    """The entry that maps 4 KiB of guest memory to `pfn` for a fault (not a prefetch).

    `access` is a mask of ACC_EXEC_MASK and ACC_WRITE_MASK; without `host_writable` it is never writable.
    Accessed is set because the fault is an access, and dirty with writable, so that the first write needs no
    assist.
    """
    spte = ept.SPTE_MMU_PRESENT_MASK | ept.VMX_EPT_READABLE_MASK | design.shadow_nonpresent_value
    spte |= ept.VMX_EPT_ACCESS_BIT | MemoryType.WB << ept.VMX_EPT_MT_SHIFT | ept.VMX_EPT_IPAT_BIT
    spte |= pfn << ept.PFN_SHIFT
    if access & ACC_EXEC_MASK:
        spte |= ept.VMX_EPT_EXECUTABLE_MASK
    if host_writable:
        spte |= ept.EPT_SPTE_HOST_WRITABLE
        if access & ACC_WRITE_MASK:
            spte |= ept.VMX_EPT_WRITABLE_MASK | ept.EPT_SPTE_MMU_WRITABLE | ept.VMX_EPT_DIRTY_BIT
    return spte


def make_nonleaf_spte(design: Design, child_pfn: int) -> int:
    """The entry that points to the table at `child_pfn`; permissions are the leafs' business."""
    return (
        ept.SPTE_MMU_PRESENT_MASK
        | ept.VMX_EPT_RWX_MASK
        | ept.VMX_EPT_ACCESS_BIT
        | design.shadow_nonpresent_value
        | child_pfn << ept.PFN_SHIFT
    )


def show_spte(design: Design, spte: int, level: int) -> str:
    """An entry for people: what it maps, and how."""
    if is_removed_spte(design, spte):
        return "frozen"
    if not is_shadow_present_pte(spte):
        return "non-present"
    if not is_last_spte(spte, level):
        return f"table {spte_to_pfn(spte):#x}"
    letters = (
        ("R", ept.VMX_EPT_READABLE_MASK),
        ("W", ept.VMX_EPT_WRITABLE_MASK),
        ("X", ept.VMX_EPT_EXECUTABLE_MASK),
        ("A", ept.VMX_EPT_ACCESS_BIT),
        ("D", ept.VMX_EPT_DIRTY_BIT),
    )
    size = "" if level == PG_LEVEL_4K else f", level {level}"
    return f"pfn {spte_to_pfn(spte):#x} ({''.join(letter for letter, bit in letters if spte & bit)}{size})"
