"""SPTEs as numbers: how KVM makes entries of its page tables, and what it reads off them.

Functions on 64-bit integers. What the bits mean depends on the format of the page tables and on the kernel
(`SpteMasks`), except for those that all formats share: MMU-present (bit 11), writable (bit 1), large page (bit 7) and
the frame number. (kernel arch/x86/kvm/mmu/spte.h and spte.c, v6.12)
"""

from __future__ import annotations

from interleaf.hw import ept
from interleaf.hw.ept import AdType
from interleaf.hw.page_table import PG_LEVEL_4K, gfn_round_for_level, pages_per_entry
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    Kvm,
    KvmMemorySlot,
    KvmMmuPageRole,
    KvmModule,
)
from interleaf.linux.atomic import READ_ONCE
from interleaf.runtime import the, warn

from .masks import SpteMasks

REMADE_SPTE_CLEAN = rule(
    "remade-spte-clean",
    "A writable leaf that replaces an entry which is writable already (or an MMIO SPTE of a writable gfn) is made with "
    "D clear (up to v6.12).",
    "9b51a63024bd",
)
LEAF_WRITABLE_HINT = rule(
    "leaf-writable-hint",
    "Only a writable leaf, not a table, shows that the pages below need not be looked up in the write tracking.",
    "2867eb782cf7",
)

MMIO_SPTE_GEN_LOW_SHIFT = 3
MMIO_SPTE_GEN_LOW_BITS = 8
MMIO_SPTE_GEN_HIGH_SHIFT = 52
MMIO_SPTE_GEN_HIGH_BITS = 11
MMIO_SPTE_GEN_MASK = (1 << MMIO_SPTE_GEN_LOW_BITS + MMIO_SPTE_GEN_HIGH_BITS) - 1
"""What an MMIO SPTE keeps of the generation of the memslots: 19 bits, never the flag of an update in progress."""

SHADOW_ACC_TRACK_SAVED_BITS_MASK = ept.VMX_EPT_READABLE_MASK | ept.VMX_EPT_EXECUTABLE_MASK
"""The permissions that an access-tracked SPTE keeps elsewhere; whether it was writable, it says by MMU-writable."""


def is_shadow_present_pte(spte: int) -> bool:
    """Does KVM map something here? (It may be access-tracked, so that the hardware sees nothing.)"""
    return bool(spte & ept.SPTE_MMU_PRESENT_MASK)


def is_removed_spte(masks: SpteMasks, spte: int) -> bool:
    """Is the entry frozen: owned by a task that is removing what it mapped (is_frozen_spte from v6.12)?"""
    return spte == masks.frozen


def is_large_pte(spte: int) -> bool:
    """Does a present entry of a table above level 1 map a page?"""
    return bool(spte & ept.PT_PAGE_SIZE_MASK)


def is_last_spte(spte: int, level: int) -> bool:
    """Does a present entry of this level map a page, rather than point to a table?"""
    return level == PG_LEVEL_4K or bool(spte & ept.PT_PAGE_SIZE_MASK)


def is_present_leaf(spte: int, level: int) -> bool:
    """Does the entry map a page?"""
    return is_shadow_present_pte(spte) and is_last_spte(spte, level)


def spte_to_pfn(spte: int) -> int:
    """The frame that a present entry points to; the first one for a huge page."""
    return (spte & ept.PFN_MASK) >> ept.PFN_SHIFT


def is_writable_pte(spte: int) -> bool:
    """Does the hardware let the guest write through the entry?"""
    return bool(spte & ept.VMX_EPT_WRITABLE_MASK)


def is_executable_pte(masks: SpteMasks, spte: int) -> bool:
    """Does a present entry allow execution?"""
    return spte & (masks.x | masks.nx) == masks.x


def is_mmu_writable_spte(masks: SpteMasks, spte: int) -> bool:
    """May KVM make the entry writable without mmu_lock (fast page fault)?"""
    return bool(spte & masks.mmu_writable)


def is_host_writable_spte(masks: SpteMasks, spte: int) -> bool:
    """Does the host allow the page to be written?"""
    return bool(spte & masks.host_writable)


def spte_ad_enabled(masks: SpteMasks, spte: int) -> bool:
    """Do the A and D bits of a present entry mean something?"""
    return spte & masks.ad_type != AdType.DISABLED << ept.SPTE_TDP_AD_SHIFT


def is_access_track_spte(masks: SpteMasks, spte: int) -> bool:
    """Are the permissions of the entry put aside, so that the next access faults?"""
    return not spte_ad_enabled(masks, spte) and not spte & masks.acc_track


def is_accessed_spte(masks: SpteMasks, spte: int) -> bool:
    """Has the page been accessed through the entry since that was last cleared?"""
    return bool(spte & masks.accessed) if spte_ad_enabled(masks, spte) else bool(spte & masks.acc_track)


def is_dirty_spte(masks: SpteMasks, spte: int) -> bool:
    """Has the page been written through the entry since that was last cleared?"""
    return bool(spte & (masks.dirty if spte_ad_enabled(masks, spte) else ept.VMX_EPT_WRITABLE_MASK))


def spte_has_volatile_bits(masks: SpteMasks, spte: int) -> bool:
    """Can a present leaf change without mmu_lock: by a fast page fault, by the hardware setting A or D, or, in
    kernels that age without the lock, by aging (spte_needs_atomic_update from v6.15)?"""
    writable = spte & ept.VMX_EPT_WRITABLE_MASK
    if not writable and spte & masks.mmu_writable:
        return True
    if not spte_ad_enabled(masks, spte):
        return not masks.volatile_accessed or not spte & masks.acc_track
    if masks.volatile_accessed and not spte & masks.accessed:
        return True
    return bool(writable) and not spte & masks.dirty


def check_spte_writable_invariants(masks: SpteMasks, spte: int) -> None:
    """Writable implies MMU-writable, which implies host-writable. WARNs if not."""
    if spte & masks.mmu_writable:
        wrong, what = not spte & masks.host_writable, "MMU-writable, but not host-writable"
    else:
        wrong, what = is_writable_pte(spte), "writable, but not MMU-writable"
    warn("spte-writable-invariants", wrong, f"an SPTE ({spte:#x}) is {what}" if wrong else "")


def mark_spte_for_access_track(masks: SpteMasks, spte: int) -> int:
    """The present entry as one that has not been accessed: without its A bit, or, where there are none, without the
    permissions that let the hardware use it."""
    if spte_ad_enabled(masks, spte):
        return spte & ~masks.accessed
    if is_access_track_spte(masks, spte):
        return spte
    check_spte_writable_invariants(masks, spte)
    saved = SHADOW_ACC_TRACK_SAVED_BITS_MASK << ept.SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
    left = bool(spte & saved)
    warn("access-track-saved-bits", left, f"an SPTE ({spte:#x}) has saved permissions, but is not access-tracked")
    spte |= (spte & SHADOW_ACC_TRACK_SAVED_BITS_MASK) << ept.SHADOW_ACC_TRACK_SAVED_BITS_SHIFT
    return spte & ~(masks.acc_track | masks.accessed)


def restore_acc_track_spte(masks: SpteMasks, spte: int) -> int:
    """The access-tracked entry with its permissions back, but not writable: only a write fault makes it that."""
    saved = spte >> ept.SHADOW_ACC_TRACK_SAVED_BITS_SHIFT & SHADOW_ACC_TRACK_SAVED_BITS_MASK
    spte &= ~(masks.acc_track | SHADOW_ACC_TRACK_SAVED_BITS_MASK << ept.SHADOW_ACC_TRACK_SAVED_BITS_SHIFT)
    return spte | saved


def is_nx_huge_page_enabled(kvm: Kvm) -> bool:
    """Are huge pages not executable (module parameter nx_huge_pages, unless the VM is trusted)?"""
    return not kvm.params.disable_nx_huge_pages and READ_ONCE(the(KvmModule), KvmModule.nx_huge_pages)


def ad_need_write_protect(kvm: Kvm, role: KvmMmuPageRole) -> bool:
    """Do the tables of this role belong to a nested guest, whose writes PML does not log
    (kvm_mmu_page_ad_need_write_protect)?"""
    return role.guest_mode and kvm.platform.pml


def make_spte(
    kvm: Kvm,
    role: KvmMmuPageRole,
    slot: KvmMemorySlot | None,
    access: int,
    gfn: int,
    pfn: int,
    old_spte: int,
    prefetch: bool = False,
    host_writable: bool = True,
    level: int = PG_LEVEL_4K,
) -> tuple[int, bool]:
    """The leaf of `level` that maps `gfn` to `pfn` (the page's own, also in a huge one), in a table of `role`.

    `access` is a mask of ACC_*; without `host_writable` the leaf is never writable. `old_spte` is what it replaces.
    Accessed is set because a fault is an access, unless it is a `prefetch`; dirty is set with writable, so that the
    first write needs no assist. Returns the leaf, and whether it is write-protected although writing is asked for,
    because writes to the page are tracked. The caller logs the page as dirty if the leaf is writable. mmu_lock held.
    """
    masks = kvm.masks
    spte = ept.SPTE_MMU_PRESENT_MASK | masks.present | masks.memory_type
    if role.ad_disabled:
        spte |= AdType.DISABLED << ept.SPTE_TDP_AD_SHIFT
    elif ad_need_write_protect(kvm, role):
        spte |= AdType.WRITE_PROTECT_ONLY << ept.SPTE_TDP_AD_SHIFT
    if not prefetch and not role.ad_disabled:
        spte |= masks.accessed
    if level > PG_LEVEL_4K:
        spte |= ept.PT_PAGE_SIZE_MASK
        if access & ACC_EXEC_MASK and is_nx_huge_page_enabled(kvm):
            access &= ~ACC_EXEC_MASK
    spte |= masks.x if access & ACC_EXEC_MASK else masks.nx
    if access & ACC_USER_MASK:
        spte |= masks.user
    spte |= gfn_round_for_level(pfn, level) << ept.PFN_SHIFT
    wrprot = False
    if host_writable:
        spte |= masks.host_writable
        if access & ACC_WRITE_MASK:
            hint = is_writable_pte(old_spte)
            if hint and kvm.design.obeys(LEAF_WRITABLE_HINT):
                hint = is_last_spte(old_spte, level)
            wrprot = not hint and slot is not None and bool(slot.gfn_write_track[gfn])
            if not wrprot:
                spte |= ept.VMX_EPT_WRITABLE_MASK | masks.mmu_writable
                if not role.ad_disabled and not (hint and kvm.design.obeys(REMADE_SPTE_CLEAN)):
                    spte |= masks.dirty
    if prefetch:
        spte = mark_spte_for_access_track(masks, spte)
    return spte, wrprot


def make_huge_page_split_spte(kvm: Kvm, huge_spte: int, role: KvmMmuPageRole, index: int) -> int:
    """Entry `index` of the table of `role` that replaces the huge page of `huge_spte`: the same translation.

    4 KiB pages become executable again, if it was the size of the page that forbade it (make_small_spte from v6.13).
    """
    child = huge_spte + (index * pages_per_entry(role.level) << ept.PFN_SHIFT)
    if role.level > PG_LEVEL_4K:
        return child
    child &= ~ept.PT_PAGE_SIZE_MASK
    if role.access & ACC_EXEC_MASK and is_nx_huge_page_enabled(kvm):
        masks = kvm.masks
        child = child & ~masks.nx | masks.x
    return child


def make_huge_spte(kvm: Kvm, small_spte: int, level: int) -> int:
    """The huge page of `level` that the page of `small_spte` is a part of, with the same permissions, but not
    executable where huge pages are not (v6.13 on)."""
    huge = (small_spte | ept.PT_PAGE_SIZE_MASK) & ~(pages_per_entry(level) - 1 << ept.PFN_SHIFT)
    if is_nx_huge_page_enabled(kvm):
        masks = kvm.masks
        huge = huge & ~masks.x | masks.nx
    return huge


def make_nonleaf_spte(masks: SpteMasks, child_pfn: int, ad_disabled: bool) -> int:
    """The entry that points to the table at `child_pfn`; permissions are the leafs' business."""
    return (
        ept.SPTE_MMU_PRESENT_MASK
        | masks.present
        | ept.VMX_EPT_WRITABLE_MASK
        | masks.user
        | masks.x
        | (AdType.DISABLED << ept.SPTE_TDP_AD_SHIFT if ad_disabled else masks.accessed)
        | child_pfn << ept.PFN_SHIFT
    )


def is_mmio_spte(masks: SpteMasks, spte: int) -> bool:
    """Does the entry say that its gfn has no memory?"""
    return bool(masks.mmio_value) and spte & masks.mmio_mask == masks.mmio_value


def make_mmio_spte(kvm: Kvm, generation: int, gfn: int, access: int) -> int:
    """The entry for a `gfn` that is in no memslot of the given generation: the hardware faults on it in its own way,
    so that KVM sees from the entry alone that the access is MMIO."""
    masks = kvm.masks
    low = generation & (1 << MMIO_SPTE_GEN_LOW_BITS) - 1
    high = (generation & MMIO_SPTE_GEN_MASK) >> MMIO_SPTE_GEN_LOW_BITS
    spte = low << MMIO_SPTE_GEN_LOW_SHIFT | high << MMIO_SPTE_GEN_HIGH_SHIFT
    return spte | masks.mmio_value | access & masks.mmio_access | gfn << ept.PFN_SHIFT


def get_mmio_spte_generation(masks: SpteMasks, spte: int) -> int:
    """The generation of the memslots, modulo 2**19, for which an MMIO SPTE was made."""
    low = spte >> MMIO_SPTE_GEN_LOW_SHIFT & (1 << MMIO_SPTE_GEN_LOW_BITS) - 1
    high = spte >> MMIO_SPTE_GEN_HIGH_SHIFT & (1 << MMIO_SPTE_GEN_HIGH_BITS) - 1
    return high << MMIO_SPTE_GEN_LOW_BITS | low


def get_mmio_spte_gfn(masks: SpteMasks, spte: int) -> int:
    """The gfn of an MMIO SPTE."""
    return spte_to_pfn(spte & ~masks.mmio_mask)


def get_mmio_spte_access(masks: SpteMasks, spte: int) -> int:
    """Which of ACC_* an MMIO SPTE keeps."""
    return spte & masks.mmio_access


def show_spte(masks: SpteMasks, spte: int, level: int) -> str:
    """An entry for people: what it maps, and how."""
    if is_removed_spte(masks, spte):
        return "frozen"
    if is_mmio_spte(masks, spte):
        return f"MMIO of generation {get_mmio_spte_generation(masks, spte)}"
    if not is_shadow_present_pte(spte):
        return "non-present"
    if not is_last_spte(spte, level):
        return f"table {spte_to_pfn(spte):#x}"
    tracked = is_access_track_spte(masks, spte)
    letters = (
        ("R", not tracked),
        ("W", is_writable_pte(spte)),
        ("X", not tracked and is_executable_pte(masks, spte)),
        ("A", spte & masks.accessed),
        ("D", spte & masks.dirty),
    )
    size = "" if level == PG_LEVEL_4K else f", level {level}"
    return f"pfn {spte_to_pfn(spte):#x} ({''.join(letter for letter, on in letters if on)}{size})"
