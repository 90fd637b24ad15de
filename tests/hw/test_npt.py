"""The bits of NPT entries, checked against values from real kernels' traces."""

from __future__ import annotations

import pytest

from interleaf.hw import npt
from interleaf.hw.access import Access
from interleaf.hw.npt import NptEntry, decode
from interleaf.runtime import ModelError

TABLE = 0x57FF827
ZERO_PAGE = 0x373E825
WRITABLE = 0x35B4E67
HUGE = 0xEA00EE7
FROZEN = 0x5A0
MMIO = 0x8000040000017


def test_a_real_writable_page() -> None:
    assert decode(WRITABLE) == NptEntry(
        pfn=0x35B4,
        present=True,
        writable=True,
        user=True,
        accessed=True,
        dirty=True,
        host_writable=True,
        mmu_writable=True,
        mmu_present=True,
    )


def test_a_real_page_of_zeros_is_not_writable() -> None:
    entry = decode(ZERO_PAGE)
    assert entry == NptEntry(pfn=0x373E, present=True, user=True, accessed=True, mmu_present=True)


def test_a_real_table_and_a_real_huge_page() -> None:
    assert decode(TABLE) == NptEntry(
        pfn=0x57FF, present=True, writable=True, user=True, accessed=True, mmu_present=True
    )
    assert decode(HUGE).large
    assert decode(HUGE).pfn == 0xEA00


@pytest.mark.parametrize("entry", [TABLE, ZERO_PAGE, WRITABLE, HUGE, FROZEN, 1 << 63, 1 << 63 | FROZEN])
def test_an_entry_can_be_put_together_again(entry: int) -> None:
    assert decode(entry).bits == entry


@pytest.mark.parametrize(
    ("entry", "bits"),
    [
        (NptEntry(), 0),
        (NptEntry(present=True), 1 << 0),
        (NptEntry(writable=True), 1 << 1),
        (NptEntry(user=True), 1 << 2),
        (NptEntry(write_through=True), 1 << 3),
        (NptEntry(cache_disabled=True), 1 << 4),
        (NptEntry(accessed=True), 1 << 5),
        (NptEntry(dirty=True), 1 << 6),
        (NptEntry(large=True), 1 << 7),
        (NptEntry(global_page=True), 1 << 8),
        (NptEntry(host_writable=True), 1 << 9),
        (NptEntry(mmu_writable=True), 1 << 10),
        (NptEntry(mmu_present=True), 1 << 11),
        (NptEntry(pfn=(1 << 40) - 1), (1 << 52) - (1 << 12)),
        (NptEntry(no_execute=True), 1 << 63),
    ],
)
def test_each_bit_is_where_the_manual_and_the_kernel_have_it(entry: NptEntry, bits: int) -> None:
    assert entry.bits == bits
    assert decode(bits) == entry


def test_a_pfn_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="does not fit"):
        _ = NptEntry(pfn=1 << 40).bits


def test_what_the_hardware_allows() -> None:
    everything = Access.READ.value | Access.WRITE.value | Access.EXEC.value
    assert npt.permissions(WRITABLE) == everything
    assert npt.permissions(ZERO_PAGE) == everything & ~Access.WRITE.value
    assert npt.permissions(WRITABLE | npt.PT64_NX_MASK) == everything & ~Access.EXEC.value
    for nothing in (0, FROZEN, 1 << 63, 1 << 63 | FROZEN, WRITABLE & ~npt.PT_USER_MASK):
        assert npt.permissions(nothing) == 0


@pytest.mark.parametrize(
    ("entry", "level", "wrong"),
    [
        (MMIO, 1, True),
        (WRITABLE, 1, False),
        (FROZEN, 1, False),
        (HUGE, 2, False),
        (HUGE, 3, True),
        (HUGE, 4, True),
        (HUGE | 1 << 13, 2, True),
        (TABLE, 3, False),
    ],
)
def test_what_the_hardware_refuses(entry: int, level: int, wrong: bool) -> None:
    assert npt.has_reserved_bits(entry, level, 48) is wrong
