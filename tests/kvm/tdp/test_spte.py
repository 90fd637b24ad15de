"""SPTEs are the bits that real kernels write."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from interleaf.designs import V5_18, V6_12
from interleaf.hw import ept
from interleaf.hw.platform import EPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, Kvm, KvmMmuPageRole
from interleaf.kvm.tdp.masks import spte_masks
from interleaf.kvm.tdp.spte import (
    is_accessed_spte,
    is_dirty_spte,
    is_last_spte,
    is_removed_spte,
    is_shadow_present_pte,
    is_writable_pte,
    make_nonleaf_spte,
    make_spte,
    show_spte,
    spte_has_volatile_bits,
    spte_to_pfn,
)

LARGE_NOT_EXECUTABLE = 0x0600_0001_1240_0BF3
"""An entry of a real kernel: 2 MiB at pfn 0x112400, writable, accessed and dirty, not executable."""

ROLE = KvmMmuPageRole(level=1)
OLD = spte_masks(V5_18, EPT)
NEW = spte_masks(V6_12, EPT)


def vm(design: Design, platform: Platform = EPT) -> Kvm:
    """What make_spte() wants to know of a VM."""
    known = SimpleNamespace(design=design, platform=platform, masks=spte_masks(design, platform))
    return cast("Kvm", known)


def leaf(
    design: Design,
    pfn: int,
    access: int = ACC_ALL,
    host_writable: bool = True,
    old_spte: int = 0,
    platform: Platform = EPT,
) -> int:
    """A 4 KiB leaf that a fault makes."""
    spte, wrprot = make_spte(vm(design, platform), ROLE, None, access, 0, pfn, old_spte, host_writable=host_writable)
    assert not wrprot
    return spte


def test_a_writable_leaf_is_bit_exact() -> None:
    assert leaf(V5_18, 0x112400) == 0x0600_0001_1240_0B77
    assert leaf(V6_12, 0x112400) == 0x8600_0001_1240_0B77


def test_a_leaf_differs_from_the_real_large_one_in_size_and_execution_only() -> None:
    made = leaf(V5_18, 0x112400)
    assert made ^ LARGE_NOT_EXECUTABLE == ept.PT_PAGE_SIZE_MASK | ept.VMX_EPT_EXECUTABLE_MASK


def test_a_page_that_the_host_does_not_let_write_is_never_writable() -> None:
    spte = leaf(V5_18, 7, host_writable=False)
    assert spte == 0x7975
    assert not is_writable_pte(spte)
    assert not is_dirty_spte(OLD, spte)
    assert not spte_has_volatile_bits(OLD, spte)


def test_permissions_follow_the_access() -> None:
    spte = leaf(V5_18, 7, ACC_EXEC_MASK | ACC_USER_MASK)
    assert spte & ept.VMX_EPT_RWX_MASK == 0b101
    assert not spte & ept.EPT_SPTE_MMU_WRITABLE


def test_a_table_is_present_accessed_and_no_leaf() -> None:
    spte = make_nonleaf_spte(OLD, 0x100003, False)
    assert spte == 0x1_0000_3907
    assert is_shadow_present_pte(spte)
    assert not is_last_spte(spte, 2)
    assert spte_to_pfn(spte) == 0x100003


def test_special_values_are_not_present() -> None:
    for value in (V5_18.removed_spte, V5_18.shadow_nonpresent_value, V6_12.removed_spte, V6_12.shadow_nonpresent_value):
        assert not is_shadow_present_pte(value)
        assert not ept.is_present(value)


def test_special_values_are_those_of_the_version() -> None:
    assert (V5_18.removed_spte, V5_18.shadow_nonpresent_value) == (0x5A0, 0)
    assert (V6_12.removed_spte, V6_12.shadow_nonpresent_value) == (0x8000_0000_0000_05A0, 0x8000_0000_0000_0000)
    assert is_removed_spte(NEW, 0x8000_0000_0000_05A0)
    assert not is_removed_spte(NEW, 0x5A0)


def test_a_leaf_whose_dirty_bit_is_clear_may_change_any_time() -> None:
    spte = leaf(V5_18, 7)
    assert not spte_has_volatile_bits(OLD, spte)
    assert spte_has_volatile_bits(OLD, spte & ~ept.VMX_EPT_DIRTY_BIT)
    assert spte_has_volatile_bits(OLD, spte & ~ept.VMX_EPT_ACCESS_BIT)
    write_protected = spte & ~ept.VMX_EPT_WRITABLE_MASK
    assert spte_has_volatile_bits(OLD, write_protected), "a fast page fault may make it writable again"
    assert not spte_has_volatile_bits(OLD, write_protected & ~ept.EPT_SPTE_MMU_WRITABLE)


def test_an_access_tracked_leaf_is_present_for_kvm_only() -> None:
    disabled = ept.AdType.DISABLED << ept.SPTE_TDP_AD_SHIFT
    tracked = (leaf(V5_18, 7) & ~ept.VMX_EPT_RWX_MASK) | disabled
    assert is_shadow_present_pte(tracked)
    assert not ept.is_present(tracked)
    assert not is_accessed_spte(OLD, tracked)
    assert not is_dirty_spte(OLD, tracked)
    assert spte_has_volatile_bits(OLD, tracked)
    assert is_accessed_spte(OLD, tracked | ept.VMX_EPT_READABLE_MASK)


def test_an_entry_reads_well() -> None:
    assert show_spte(OLD, leaf(V5_18, 7), 1) == "pfn 0x7 (RWXAD)"
    assert show_spte(OLD, LARGE_NOT_EXECUTABLE, 2) == "pfn 0x112400 (RWAD, level 2)"
    assert show_spte(OLD, make_nonleaf_spte(OLD, 9, False), 2) == "table 0x9"
    assert show_spte(OLD, 0x5A0, 1) == "frozen"
    assert show_spte(NEW, 1 << 63, 1) == "non-present"
