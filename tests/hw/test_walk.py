"""The hardware's page walk, TLB and paging-structure cache, on tables written by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from interleaf.hw import ept, npt
from interleaf.hw.access import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_FINAL_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from interleaf.hw.cpu import Cpu, flush_all, flush_range
from interleaf.hw.page_table import PageTable
from interleaf.hw.platform import EPT, EPT_5_LEVEL, EPT_NO_AD, NPT, Platform
from interleaf.hw.walk import Access, Fault, Translation, starts_from_cache, translate
from interleaf.runtime import Memory, free, new, operation
from tests.linux.drive import Drive, run

NONLEAF = ept.VMX_EPT_RWX_MASK
"""Of a table, in either format."""
LEAF_PFN = 0x4242
HUGE_PFN = 0x4200
FINAL = PFERR_GUEST_FINAL_MASK
USER = PFERR_USER_MASK


@operation()
def walk(memory: Memory, cpu: Cpu, root: PageTable, gfn: int, access: Access, from_root: bool) -> Translation:
    return translate(memory, cpu, root, gfn, access, from_root)


@operation()
def cached(memory: Memory, cpu: Cpu, root: PageTable, gfn: int, access: Access) -> bool:
    return starts_from_cache(memory, cpu, root, gfn, access)


@operation()
def flush(memory: Memory, cpu: Cpu, start: int, end: int) -> None:
    flush_range(memory, cpu, start, end)


@operation()
def flush_tables(memory: Memory, cpu: Cpu) -> None:
    memory.store(cpu, Cpu.paging_structures, frozenset())


@operation()
def flush_everything(memory: Memory, cpu: Cpu) -> None:
    flush_all(memory, cpu)


def tables(leaf: int, top: int = NONLEAF, platform: Platform = EPT) -> tuple[Cpu, tuple[PageTable, ...]]:
    """A CPU, and tables that lead to `leaf` for gfn 0, from the root down."""
    chain = tuple(new(PageTable) for _ in range(platform.levels))
    for upper, lower in itertools.pairwise(chain):
        upper.spt[0] = (top if upper is chain[0] else NONLEAF) | lower.pfn << ept.PFN_SHIFT
    chain[-1].spt[0] = leaf
    return new(Cpu, index=0, platform=platform), chain


def leaf(flags: int) -> int:
    return flags | LEAF_PFN << ept.PFN_SHIFT


RW = ept.VMX_EPT_READABLE_MASK | ept.VMX_EPT_WRITABLE_MASK


def checked(function: Callable[[], None]) -> Drive:
    drive = run(function)
    assert drive.rules == []
    return drive


def test_a_read_finds_the_page_and_sets_accessed_bits() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        assert walk(cpu, chain[0], 0, Access.READ, False) == Translation(LEAF_PFN)
        for table in chain:
            assert table.spt[0] & ept.VMX_EPT_ACCESS_BIT
            assert not table.spt[0] & ept.VMX_EPT_DIRTY_BIT

    checked(program)


def test_a_write_sets_the_dirty_bit_of_the_leaf_only() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        assert walk(cpu, chain[0], 0, Access.WRITE, False).pfn == LEAF_PFN
        assert [bool(table.spt[0] & ept.VMX_EPT_DIRTY_BIT) for table in chain] == [False, False, False, True]

    checked(program)


def test_a_write_after_a_read_walks_again_to_set_the_dirty_bit() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        walk(cpu, chain[0], 0, Access.READ, False)
        assert walk(cpu, chain[0], 0, Access.READ, False).from_tlb
        assert not walk(cpu, chain[0], 0, Access.WRITE, False).from_tlb
        assert chain[3].spt[0] & ept.VMX_EPT_DIRTY_BIT
        assert walk(cpu, chain[0], 0, Access.WRITE, False).from_tlb

    checked(program)


@pytest.mark.parametrize(
    ("flags", "access", "fault"),
    [
        (0, Access.READ, Fault.VIOLATION),
        (ept.VMX_EPT_READABLE_MASK, Access.WRITE, Fault.VIOLATION),
        (RW, Access.EXEC, Fault.VIOLATION),
        (ept.VMX_EPT_WRITABLE_MASK, Access.READ, Fault.MISCONFIG),
    ],
)
def test_what_the_entry_does_not_allow_is_a_fault(flags: int, access: Access, fault: Fault) -> None:
    def program() -> None:
        cpu, chain = tables(leaf(flags))
        assert walk(cpu, chain[0], 0, access, False).fault is fault
        assert cpu.tlb == frozenset()

    checked(program)


def test_permissions_of_all_levels_count() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW), top=ept.VMX_EPT_READABLE_MASK)
        assert walk(cpu, chain[0], 0, Access.WRITE, False).fault is Fault.VIOLATION
        assert walk(cpu, chain[0], 0, Access.READ, False).pfn == LEAF_PFN
        assert walk(cpu, chain[0], 0, Access.WRITE, False).fault is Fault.VIOLATION

    checked(program)


def test_a_stale_translation_is_used_until_it_is_flushed() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        walk(cpu, chain[0], 0, Access.READ, False)
        chain[3].spt[0] = 0
        assert walk(cpu, chain[0], 0, Access.READ, False) == Translation(LEAF_PFN, from_tlb=True)
        flush(cpu, 1, 100)
        assert walk(cpu, chain[0], 0, Access.READ, False).from_tlb
        flush(cpu, 0, 1)
        assert walk(cpu, chain[0], 0, Access.READ, False).fault is Fault.VIOLATION

    checked(program)


def test_a_stale_table_is_walked_until_it_is_flushed() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        walk(cpu, chain[0], 0, Access.READ, False)
        chain[0].spt[0] = 0
        chain[3].spt[1] = leaf(RW) + (1 << ept.PFN_SHIFT)
        assert cached(cpu, chain[0], 1, Access.READ)
        assert walk(cpu, chain[0], 1, Access.READ, False) == Translation(LEAF_PFN + 1)
        flush_everything(cpu)
        assert not cached(cpu, chain[0], 1, Access.READ)
        assert walk(cpu, chain[0], 1, Access.READ, False).fault is Fault.VIOLATION

    checked(program)


def test_the_processor_may_have_dropped_its_cached_tables() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        chain[3].spt[1] = leaf(RW)
        walk(cpu, chain[0], 0, Access.READ, False)
        chain[0].spt[0] = 0
        assert walk(cpu, chain[0], 1, Access.READ, True).fault is Fault.VIOLATION

    checked(program)


def test_a_flush_of_a_part_of_a_table_keeps_it_for_other_gfns() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        chain[3].spt[1] = leaf(RW)
        walk(cpu, chain[0], 0, Access.READ, False)
        chain[2].spt[0] = 0
        flush(cpu, 511, 1023)
        assert walk(cpu, chain[0], 1, Access.READ, False).fault is None
        flush(cpu, 0, 1)
        assert walk(cpu, chain[0], 0, Access.READ, False).fault is Fault.VIOLATION
        flush(cpu, 0, 512)
        assert walk(cpu, chain[0], 1, Access.READ, False).fault is Fault.VIOLATION

    checked(program)


def test_a_table_that_is_walked_to_again_is_cached_as_a_whole_again() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        walk(cpu, chain[0], 0, Access.READ, False)
        whole = cpu.paging_structures
        flush(cpu, 0, 1)
        assert cpu.paging_structures != whole
        walk(cpu, chain[0], 0, Access.READ, True)
        assert cpu.paging_structures == whole

    checked(program)


def test_a_violation_drops_what_led_to_it() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(ept.VMX_EPT_READABLE_MASK))
        walk(cpu, chain[0], 0, Access.READ, False)
        assert walk(cpu, chain[0], 0, Access.WRITE, False).fault is Fault.VIOLATION
        assert cpu.tlb == frozenset()
        assert cpu.paging_structures == frozenset()

    checked(program)


def test_translations_belong_to_their_root() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        _other_cpu, other = tables(0)
        walk(cpu, chain[0], 0, Access.READ, False)
        assert walk(cpu, other[0], 0, Access.READ, False).fault is Fault.VIOLATION
        assert walk(cpu, chain[0], 0, Access.READ, False).from_tlb

    checked(program)


def test_a_large_page_maps_all_gfns_below_it() -> None:
    def program() -> None:
        cpu, chain = tables(0)
        chain[2].spt[0] = RW | ept.PT_PAGE_SIZE_MASK | HUGE_PFN << ept.PFN_SHIFT
        assert walk(cpu, chain[0], 5, Access.READ, False) == Translation(HUGE_PFN + 5)
        assert walk(cpu, chain[0], 511, Access.READ, False) == Translation(HUGE_PFN + 511, from_tlb=True)
        assert chain[2].spt[0] & ept.VMX_EPT_ACCESS_BIT
        assert not walk(cpu, chain[0], 512, Access.READ, False).from_tlb

    checked(program)


def test_a_gigantic_page_is_cached_as_a_whole() -> None:
    def program() -> None:
        cpu, chain = tables(0)
        chain[1].spt[0] = RW | ept.PT_PAGE_SIZE_MASK | 1 << 18 + ept.PFN_SHIFT
        walk(cpu, chain[0], 7, Access.READ, False)
        assert walk(cpu, chain[0], 0x3FFFF, Access.READ, False) == Translation((1 << 18) + 0x3FFFF, from_tlb=True)

    checked(program)


def test_a_flush_of_a_part_of_a_huge_page_drops_all_of_it() -> None:
    def program() -> None:
        cpu, chain = tables(0)
        chain[2].spt[0] = RW | ept.PT_PAGE_SIZE_MASK | HUGE_PFN << ept.PFN_SHIFT
        walk(cpu, chain[0], 5, Access.READ, False)
        chain[2].spt[0] = 0
        flush(cpu, 512, 1024)
        assert walk(cpu, chain[0], 511, Access.READ, False) == Translation(HUGE_PFN + 511, from_tlb=True)
        flush(cpu, 4, 8)
        for gfn in (0, 4, 8, 511):
            assert not walk(cpu, chain[0], gfn, Access.READ, False).from_tlb, gfn

    checked(program)


def test_a_huge_page_does_not_drop_what_is_out_of_date_in_the_tlb() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        walk(cpu, chain[0], 0, Access.READ, False)
        chain[2].spt[0] = RW | ept.PT_PAGE_SIZE_MASK | HUGE_PFN << ept.PFN_SHIFT
        flush_tables(cpu)
        assert walk(cpu, chain[0], 1, Access.READ, False).pfn == HUGE_PFN + 1
        assert walk(cpu, chain[0], 0, Access.READ, False) == Translation(LEAF_PFN, from_tlb=True)

    checked(program)


def test_a_write_through_a_clean_huge_page_dirties_all_of_it_once() -> None:
    def program() -> None:
        cpu, chain = tables(0)
        chain[2].spt[0] = RW | ept.PT_PAGE_SIZE_MASK | HUGE_PFN << ept.PFN_SHIFT
        walk(cpu, chain[0], 0, Access.READ, False)
        assert walk(cpu, chain[0], 1, Access.WRITE, False) == Translation(HUGE_PFN + 1, dirtied=True)
        assert len(cpu.tlb) == 1
        assert walk(cpu, chain[0], 2, Access.WRITE, False) == Translation(HUGE_PFN + 2, from_tlb=True)

    checked(program)


def test_an_assist_finds_the_entry_that_is_there_now() -> None:
    """The processor has the tables on the way cached, which software has disconnected, and has changed the leaf."""

    def program() -> None:
        cpu, chain = tables(leaf(RW))
        walk(cpu, chain[0], 0, Access.READ, False)
        chain[0].spt[0] = 0
        chain[3].spt[0] = leaf(RW) | ept.EPT_SPTE_MMU_WRITABLE
        assert walk(cpu, chain[0], 0, Access.WRITE, False).dirtied
        both = ept.VMX_EPT_ACCESS_BIT | ept.VMX_EPT_DIRTY_BIT
        assert chain[3].spt[0] == leaf(RW) | ept.EPT_SPTE_MMU_WRITABLE | both

    checked(program)


def test_a_write_through_a_translation_that_has_lost_w_meanwhile_faults_and_sets_nothing() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        walk(cpu, chain[0], 0, Access.READ, False)
        chain[3].spt[0] = leaf(ept.VMX_EPT_READABLE_MASK)
        found = walk(cpu, chain[0], 0, Access.WRITE, False)
        assert (found.fault, found.error_code) == (Fault.VIOLATION, FINAL | PFERR_PRESENT_MASK | PFERR_WRITE_MASK)
        assert chain[3].spt[0] == leaf(ept.VMX_EPT_READABLE_MASK)

    checked(program)


def test_the_dirty_bit_is_logged_when_it_is_set_and_not_again() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        assert not walk(cpu, chain[0], 0, Access.READ, False).dirtied
        assert walk(cpu, chain[0], 0, Access.WRITE, False).dirtied
        assert not walk(cpu, chain[0], 0, Access.WRITE, False).dirtied
        flush_everything(cpu)
        assert not walk(cpu, chain[0], 0, Access.WRITE, False).dirtied

    checked(program)


def test_without_a_and_d_bits_nothing_is_written() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW), platform=EPT_NO_AD)
        before = [table.spt[0] for table in chain]
        assert walk(cpu, chain[0], 0, Access.READ, False) == Translation(LEAF_PFN)
        assert walk(cpu, chain[0], 0, Access.WRITE, False) == Translation(LEAF_PFN, from_tlb=True)
        assert [table.spt[0] for table in chain] == before

    checked(program)


def test_five_levels() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW), platform=EPT_5_LEVEL)
        assert len(chain) == 5
        assert walk(cpu, chain[0], 0, Access.READ, False) == Translation(LEAF_PFN)
        assert walk(cpu, chain[0], 1 << 36, Access.READ, False).fault is Fault.VIOLATION

    checked(program)


P, W, U, NX = npt.PT_PRESENT_MASK, npt.PT_WRITABLE_MASK, npt.PT_USER_MASK, npt.PT64_NX_MASK


def test_a_nested_walk_sets_amd_s_bits() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(P | W | U), platform=NPT)
        assert walk(cpu, chain[0], 0, Access.WRITE, False) == Translation(LEAF_PFN, dirtied=True)
        assert [table.spt[0] & npt.PT_ACCESSED_MASK for table in chain] == [npt.PT_ACCESSED_MASK] * 4
        assert [bool(table.spt[0] & npt.PT_DIRTY_MASK) for table in chain] == [False, False, False, True]

    checked(program)


@pytest.mark.parametrize(
    ("entry", "access", "error"),
    [
        (0, Access.READ, USER),
        (0, Access.WRITE, USER | PFERR_WRITE_MASK),
        (0x5A0, Access.EXEC, USER | PFERR_FETCH_MASK),
        (leaf(P | U), Access.WRITE, USER | PFERR_WRITE_MASK | PFERR_PRESENT_MASK),
        (leaf(P | W | U | NX), Access.EXEC, USER | PFERR_FETCH_MASK | PFERR_PRESENT_MASK),
        (0x8_0000_4000_0017, Access.READ, USER | PFERR_RSVD_MASK | PFERR_PRESENT_MASK),
    ],
)
def test_a_nested_page_fault_says_why(entry: int, access: Access, error: int) -> None:
    def program() -> None:
        cpu, chain = tables(entry, platform=NPT)
        assert walk(cpu, chain[0], 0, access, False) == Translation(
            fault=Fault.NESTED_PAGE_FAULT, error_code=FINAL | error
        )

    checked(program)


@pytest.mark.parametrize(
    ("entry", "access", "error"),
    [
        (0, Access.READ, FINAL | USER),
        (0, Access.EXEC, FINAL | PFERR_FETCH_MASK),
        (leaf(RW), Access.EXEC, FINAL | PFERR_FETCH_MASK | PFERR_PRESENT_MASK),
        (1 << 52 | 5 << 54 | leaf(0), Access.READ, FINAL | USER),  # access-tracked
        (0x4_0000_0106, Access.READ, PFERR_RSVD_MASK),  # MMIO
    ],
)
def test_an_ept_fault_says_why(entry: int, access: Access, error: int) -> None:
    def program() -> None:
        cpu, chain = tables(entry)
        assert walk(cpu, chain[0], 0, access, False).error_code == error

    checked(program)


def test_walking_a_freed_table_violates_i2() -> None:
    def program() -> None:
        cpu, chain = tables(leaf(RW))
        chain[3].spt[1] = leaf(RW)
        walk(cpu, chain[0], 0, Access.READ, False)
        free(chain[3])
        walk(cpu, chain[0], 1, Access.READ, False)

    drive = run(program)
    assert drive.rules == ["I2"]
    assert "a table of level 1 that is freed" in drive.violations[0].message
    assert "paging-structure cache" in drive.violations[0].message
