"""SPTEs are the bits that real kernels write."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from interleaf.designs import V5_18, V6_1, V6_12, V6_18
from interleaf.hw import ept
from interleaf.hw.platform import EPT, EPT_NO_AD, EPT_PML, NPT, Paging, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    DEFAULT_PARAMS,
    Kvm,
    KvmMmuPageRole,
    KvmModule,
)
from interleaf.kvm.tdp.masks import spte_masks
from interleaf.kvm.tdp.spte import (
    check_spte_writable_invariants,
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_access_track_spte,
    is_accessed_spte,
    is_dirty_spte,
    is_last_spte,
    is_mmio_spte,
    is_removed_spte,
    is_shadow_present_pte,
    is_writable_pte,
    make_huge_page_split_spte,
    make_huge_spte,
    make_mmio_spte,
    make_nonleaf_spte,
    make_spte,
    mark_spte_for_access_track,
    restore_acc_track_spte,
    show_spte,
    spte_ad_enabled,
    spte_has_volatile_bits,
    spte_to_pfn,
)
from interleaf.runtime import spawn, the

from .stage import Stage, make_vm, run_alone

LARGE_NOT_EXECUTABLE = 0x0600_0001_1240_0BF3
"""An entry of a real kernel: 2 MiB at pfn 0x112400, writable, accessed and dirty, not executable."""

ROLE = KvmMmuPageRole(level=1)
OLD = spte_masks(V5_18, EPT)
NEW = spte_masks(V6_12, EPT)


def vm(design: Design, platform: Platform = EPT) -> Kvm:
    """What make_spte() wants to know of a VM."""
    known = SimpleNamespace(
        design=design,
        platform=platform,
        masks=spte_masks(design, platform),
        params=replace(DEFAULT_PARAMS, disable_nx_huge_pages=True),
    )
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


def npt(design: Design, pfn: int, old_spte: int, **how: Any) -> int:
    """A leaf that a fault makes on AMD."""
    level = how.setdefault("level", 1)
    return make_spte(vm(design, NPT), KvmMmuPageRole(level=level), None, ACC_ALL, 0, pfn, old_spte, **how)[0]


def test_entries_of_real_kernels_on_amd_are_made_bit_for_bit() -> None:
    for design in (V6_1, V6_12):
        empty = design.shadow_nonpresent_value
        assert npt(design, 0x35B4, empty) == 0x35B4E67, "a fault on a page of its own"
        assert npt(design, 0x373E, empty, host_writable=False) == 0x373E825, "a read of the page of zeros"
        assert npt(design, 0xEA00, empty, level=2) == 0xEA00EE7
        assert npt(design, 0xEA00, 0x5685827, level=2) == 0xEA00EE7, "in place of a table"
        assert npt(design, 0xEA00 + 5, empty, level=2) == 0xEA00EE7, "for a page inside it"
        assert npt(design, 0x35B4, 0x35B4E67) == 0x35B4E27, "made again over a writable one"
        assert npt(design, 0x35B4, 0x8000040000017) == 0x35B4E27, "over an MMIO SPTE that keeps W"
        assert npt(design, 0x35B4, empty, prefetch=True) == 0x35B4E47
        assert make_nonleaf_spte(spte_masks(design, NPT), 0x57FF, False) == 0x57FF827
    assert npt(V6_18, 0x35B4, 0x35B4E67) == 0x35B4E67


def test_mmio_sptes_of_real_kernels_are_made_bit_for_bit() -> None:
    masks = spte_masks(V6_12, NPT)
    spte = make_mmio_spte(vm(V6_12, NPT), 2, 0x40000, ACC_ALL)
    assert spte == 0x8000040000017
    assert is_mmio_spte(masks, spte)
    assert not is_shadow_present_pte(spte)
    assert get_mmio_spte_generation(masks, spte) == 2
    assert get_mmio_spte_gfn(masks, spte) == 0x40000
    assert get_mmio_spte_access(masks, spte) == ACC_WRITE_MASK | ACC_USER_MASK
    for ordinary in (0, 1 << 63, 0x5A0, 1 << 63 | 0x5A0, 0x35B4E67, 0x57FF827):
        assert not is_mmio_spte(masks, ordinary)


@pytest.mark.parametrize("generation", [0, 1, 0xFF, 0x100, 0x7FFFF, 0x12345])
@pytest.mark.parametrize("platform", [EPT, NPT])
def test_an_mmio_spte_keeps_19_bits_of_the_generation(generation: int, platform: Platform) -> None:
    for design in (V5_18, V6_12):
        masks = spte_masks(design, platform)
        spte = make_mmio_spte(vm(design, platform), generation | 1 << 63 | 1 << 19, 0xFEC00, ACC_ALL)
        assert is_mmio_spte(masks, spte)
        assert get_mmio_spte_generation(masks, spte) == generation
        assert spte >> 12 & (1 << 39) - 1 == 0xFEC00


def test_a_processor_with_all_address_bits_has_no_mmio_sptes() -> None:
    masks = spte_masks(V6_12, Platform("NPT", Paging.NPT))
    assert not is_mmio_spte(masks, 0)
    assert masks.mmio_value == 0


def test_without_a_and_d_bits_an_entry_says_so() -> None:
    kvm, role = vm(V5_18, EPT_NO_AD), KvmMmuPageRole(level=1, ad_disabled=True)
    spte, _ = make_spte(kvm, role, None, ACC_ALL, 0, 7, 0)
    assert ept.decode(spte).ad_type is ept.AdType.DISABLED
    assert not spte & (ept.VMX_EPT_ACCESS_BIT | ept.VMX_EPT_DIRTY_BIT)
    masks = kvm.masks
    assert is_dirty_spte(masks, spte), "because it is writable"
    assert make_nonleaf_spte(masks, 0x100003, True) == 1 << 52 | 0x1_0000_3807


def test_a_nested_guest_s_dirty_pages_are_found_by_write_protection_if_there_is_pml() -> None:
    nested = KvmMmuPageRole(level=1, guest_mode=True)
    for platform, kind in ((EPT_PML, ept.AdType.WRITE_PROTECT_ONLY), (EPT, ept.AdType.ENABLED)):
        spte, _ = make_spte(vm(V6_12, platform), nested, None, ACC_ALL, 0, 7, 0)
        assert ept.decode(spte).ad_type is kind
        assert spte_ad_enabled(NEW, spte), "A and D bits mean something in both"
        assert spte & ept.VMX_EPT_DIRTY_BIT


def test_access_tracking_puts_permissions_aside_and_gives_them_back_without_w() -> None:
    def program() -> tuple[int, int, int]:
        role = KvmMmuPageRole(level=1, ad_disabled=True)
        spte, _ = make_spte(vm(V5_18, EPT_NO_AD), role, None, ACC_ALL, 0, 7, 0)
        masks = spte_masks(V5_18, EPT_NO_AD)
        tracked = mark_spte_for_access_track(masks, spte)
        assert is_access_track_spte(masks, tracked)
        assert mark_spte_for_access_track(masks, tracked) == tracked
        return spte, tracked, restore_acc_track_spte(masks, tracked)

    (spte, tracked, restored), _ = run_alone(program)
    assert tracked == spte & ~0b111 | 0b101 << 54
    assert restored == spte & ~ept.VMX_EPT_WRITABLE_MASK
    assert mark_spte_for_access_track(OLD, LARGE_NOT_EXECUTABLE) == LARGE_NOT_EXECUTABLE & ~ept.VMX_EPT_ACCESS_BIT


def test_from_v6_15_an_a_bit_that_may_be_set_is_not_volatile_but_missing_a_and_d_bits_are() -> None:
    masks = spte_masks(V6_18, EPT)
    spte = leaf(V6_12, 7)
    assert not spte_has_volatile_bits(masks, spte & ~ept.VMX_EPT_ACCESS_BIT)
    assert spte_has_volatile_bits(masks, spte & ~ept.VMX_EPT_DIRTY_BIT)
    no_ad, _ = make_spte(vm(V6_12, EPT_NO_AD), KvmMmuPageRole(level=1, ad_disabled=True), None, ACC_ALL, 0, 7, 0)
    assert spte_has_volatile_bits(masks, no_ad)
    assert not spte_has_volatile_bits(NEW, no_ad)


@pytest.mark.parametrize(
    ("bits", "wrong"),
    [("", False), ("H", False), ("HM", False), ("HMW", False), ("W", True), ("HW", True), ("M", True), ("MW", True)],
)
@pytest.mark.parametrize("platform", [EPT, NPT])
def test_writable_implies_mmu_writable_implies_host_writable(bits: str, wrong: bool, platform: Platform) -> None:
    masks = spte_masks(V6_12, platform)
    values = {"H": masks.host_writable, "M": masks.mmu_writable, "W": ept.VMX_EPT_WRITABLE_MASK}
    spte = sum(values[bit] for bit in bits)
    stage = Stage(lambda: spawn(check_spte_writable_invariants, masks, spte, name="task"))
    stage.finish_all()
    assert stage.rules == ({"spte-writable-invariants"} if wrong else set())


def _split_and_join(nx: bool) -> tuple[int, ...]:
    kvm = make_vm(V6_12, (8,), platform=NPT)
    the(KvmModule).nx_huge_pages = nx
    huge, _ = make_spte(kvm, KvmMmuPageRole(level=2), None, ACC_ALL, 0x10000, 0xEA00, 0, level=2)
    small = make_huge_page_split_spte(kvm, huge, KvmMmuPageRole(level=1), 3)
    gigantic, _ = make_spte(kvm, KvmMmuPageRole(level=3), None, ACC_ALL, 1 << 18, 1 << 18, 0, level=3)
    middle = make_huge_page_split_spte(kvm, gigantic, KvmMmuPageRole(level=2), 2)
    return huge, small, middle, make_huge_spte(kvm, small, 2)


def test_a_huge_page_is_split_into_the_same_translations_and_joined_again() -> None:
    (huge, small, middle, joined), _ = run_alone(_split_and_join, False)
    assert (huge, small, middle, joined) == (0xEA00EE7, 0xEA03E67, 0x40400EE7, 0xEA00EE7)


def test_huge_pages_are_not_executable_if_that_is_forbidden_and_small_ones_are() -> None:
    (huge, small, middle, joined), _ = run_alone(_split_and_join, True)
    no_execute = 1 << 63
    assert (huge, small) == (no_execute | 0xEA00EE7, 0xEA03E67)
    assert (middle, joined) == (no_execute | 0x40400EE7, no_execute | 0xEA00EE7)


def test_what_is_tracked_is_not_made_writable() -> None:
    def program() -> tuple[tuple[int, bool], tuple[int, bool]]:
        kvm = make_vm(V6_12, (8, 9), platform=NPT)
        assert kvm.memslots is not None
        slot = kvm.memslots.slots[0]
        slot.gfn_write_track[8] = 1
        role = KvmMmuPageRole(level=1)
        tracked, free = (make_spte(kvm, role, slot, ACC_ALL, gfn, 0x35B4, 0) for gfn in (8, 9))
        return tracked, free

    (tracked, free), _ = run_alone(program)
    assert tracked == (0x35B4A25, True)
    assert free == (0x35B4E67, False)
