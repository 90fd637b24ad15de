"""The hardware's page walk, TLB and paging-structure cache, on tables written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.hw import ept
from interleaf.hw.cpu import Cpu, flush_all, flush_range
from interleaf.hw.page_table import PageTable
from interleaf.hw.walk import Access, Fault, Translation, starts_from_cache, translate
from interleaf.runtime import Memory, free, new, operation
from tests.linux.drive import Drive, run

NONLEAF = ept.VMX_EPT_RWX_MASK
LEAF_PFN = 0x4242


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
def flush_everything(memory: Memory, cpu: Cpu) -> None:
    flush_all(memory, cpu)


def tables(leaf: int, top: int = NONLEAF) -> tuple[Cpu, tuple[PageTable, ...]]:
    """A CPU, and tables that lead to `leaf` for gfn 0, from the root down."""
    chain = tuple(new(PageTable) for _ in range(4))
    for upper, lower, flags in zip(chain, chain[1:], (top, NONLEAF, NONLEAF), strict=False):
        upper.spt[0] = flags | lower.pfn << ept.PFN_SHIFT
    chain[-1].spt[0] = leaf
    return new(Cpu, index=0), chain


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
        assert walk(cpu, chain[0], 0, access, False) == Translation(fault=fault)
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
        chain[2].spt[0] = leaf(RW | ept.PT_PAGE_SIZE_MASK)
        assert walk(cpu, chain[0], 5, Access.READ, False).pfn == LEAF_PFN + 5

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
