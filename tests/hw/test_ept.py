"""The bits of EPT entries, checked against values from real kernels' traces."""

from __future__ import annotations

import pytest

from interleaf.hw import ept
from interleaf.hw.ept import AdType, EptEntry, MemoryType, decode
from interleaf.runtime import ModelError

NX_HUGE_PAGE = 0x0600000112400BF3
"""From a list mail: a writable 2 MiB page that must not be executed, accessed and dirty."""


def test_a_real_huge_page_entry() -> None:
    entry = decode(NX_HUGE_PAGE)
    assert entry == EptEntry(
        pfn=0x112400,
        readable=True,
        writable=True,
        memory_type=MemoryType.WB,
        ignore_pat=True,
        large=True,
        accessed=True,
        dirty=True,
        mmu_present=True,
        host_writable=True,
        mmu_writable=True,
    )
    assert entry.bits == NX_HUGE_PAGE


def test_a_real_clean_huge_page_entry() -> None:
    clean, dirty = decode(0x06000001126009F3), decode(NX_HUGE_PAGE)
    assert (clean.dirty, dirty.dirty) == (False, True)
    assert clean.pfn == 0x112600
    assert clean.mmu_writable


@pytest.mark.parametrize(
    ("entry", "bits"),
    [
        (EptEntry(), 0),
        (EptEntry(readable=True), 1 << 0),
        (EptEntry(writable=True), 1 << 1),
        (EptEntry(executable=True), 1 << 2),
        (EptEntry(memory_type=MemoryType.WB), 6 << 3),
        (EptEntry(ignore_pat=True), 1 << 6),
        (EptEntry(large=True), 1 << 7),
        (EptEntry(accessed=True), 1 << 8),
        (EptEntry(dirty=True), 1 << 9),
        (EptEntry(mmu_present=True), 1 << 11),
        (EptEntry(pfn=1), 1 << 12),
        (EptEntry(pfn=(1 << 40) - 1), (1 << 52) - (1 << 12)),
        (EptEntry(ad_type=AdType.DISABLED), 1 << 52),
        (EptEntry(ad_type=AdType.WRITE_PROTECT_ONLY), 2 << 52),
        (EptEntry(saved_readable=True), 1 << 54),
        (EptEntry(saved_executable=True), 1 << 56),
        (EptEntry(host_writable=True), 1 << 57),
        (EptEntry(mmu_writable=True), 1 << 58),
        (EptEntry(suppress_ve=True), 1 << 63),
    ],
)
def test_each_bit_is_where_the_manual_and_the_kernel_have_it(entry: EptEntry, bits: int) -> None:
    assert entry.bits == bits
    assert decode(bits) == entry


def test_a_pfn_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="does not fit"):
        _ = EptEntry(pfn=1 << 40).bits


def test_what_the_hardware_sees() -> None:
    frozen = 0x80000000000005A0
    assert not ept.is_present(frozen)
    assert not ept.is_present(1 << 63)
    assert ept.is_present(NX_HUGE_PAGE)
    assert ept.is_leaf(NX_HUGE_PAGE, 2)
    assert not ept.is_leaf(NX_HUGE_PAGE & ~ept.PT_PAGE_SIZE_MASK, 2)
    assert ept.is_leaf(NX_HUGE_PAGE & ~ept.PT_PAGE_SIZE_MASK, 1)
    assert ept.permissions(NX_HUGE_PAGE) == 0b011
    assert ept.permissions(frozen) == 0


@pytest.mark.parametrize(
    ("entry", "level", "wrong"),
    [
        (0b110, 1, True),  # KVM's MMIO entries
        (0b011, 1, False),
        (0b100, 1, False),
        (0x5A0, 1, False),  # not present, so that nothing else counts
        (NX_HUGE_PAGE, 2, False),
        (NX_HUGE_PAGE, 4, True),
        (NX_HUGE_PAGE | 1 << 12, 2, True),
        (NX_HUGE_PAGE & ~ept.VMX_EPT_MT_MASK | 2 << ept.VMX_EPT_MT_SHIFT, 2, True),
        (0x1_0000_3907, 3, False),
        (0x1_0000_3907 | ept.VMX_EPT_IPAT_BIT, 3, True),
        (1 << 48 | 0b111, 1, True),
    ],
)
def test_what_the_hardware_refuses(entry: int, level: int, wrong: bool) -> None:
    assert ept.is_misconfigured(entry, level, 48) is wrong
