"""The geometry of page tables."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.hw.frames import PAGE_TABLE_PFN_BASE
from interleaf.hw.page_table import (
    PageTable,
    entries_for,
    gfn_round_for_level,
    index_of,
    next_entry,
    pages_per_entry,
    table_at,
)
from interleaf.runtime import Memory, ModelError, new, operation
from tests.linux.drive import run


def test_each_level_covers_512_times_the_one_below() -> None:
    assert [pages_per_entry(level) for level in (1, 2, 3, 4)] == [1, 512, 512**2, 512**3]


@pytest.mark.parametrize("gfn", [0, 1, 511, 512, 0x8000000, 0x123456789])
def test_the_indices_of_all_levels_make_the_gfn(gfn: int) -> None:
    assert sum(index_of(gfn, level) * pages_per_entry(level) for level in (1, 2, 3, 4)) == gfn


def test_a_gfn_is_rounded_to_the_entry_that_covers_it() -> None:
    assert gfn_round_for_level(0x12345, 1) == 0x12345
    assert gfn_round_for_level(0x12345, 2) == 0x12200
    assert gfn_round_for_level(0x12345, 4) == 0


def test_only_entries_that_lead_to_a_gfn_of_the_vm_are_visited() -> None:
    gfns = (0, 1, 513, 1 << 27)
    assert entries_for(gfns, 0, 4) == (0, 1)
    assert entries_for(gfns, 0, 2) == (0, 1)
    assert entries_for(gfns, 0, 1) == (0, 1)
    assert entries_for(gfns, 512, 1) == (1,)
    assert entries_for(gfns, 1 << 27, 1) == (0,)
    assert entries_for(gfns, 1024, 1) == ()


def test_every_entry_of_a_table_counts_if_no_gfns_are_named() -> None:
    assert entries_for(None, 512, 1) == tuple(range(512))
    assert next_entry(None, 512, 1024, 1) == 512
    assert next_entry(None, 1024, 1024, 1) is None


def test_the_next_entry_is_the_one_that_leads_to_the_next_gfn() -> None:
    gfns = (5, 1025, 1 << 27)
    assert next_entry(gfns, 0, 512, 1) == 5
    assert next_entry(gfns, 6, 512, 1) is None
    assert next_entry(gfns, 512, 1 << 18, 2) == 1024
    assert next_entry(gfns, 1536, 1 << 18, 2) is None
    assert next_entry(gfns, 1 << 18, 1 << 36, 3) == 1 << 27
    assert next_entry(gfns, 0, 1 << 36, 4) == 0


def test_the_entries_of_a_large_universe_are_found_without_looking_at_each_gfn() -> None:
    class Counted(tuple[int, ...]):
        __slots__ = ()
        looks = 0

        def __getitem__(self, index: Any) -> Any:
            Counted.looks += 1
            return super().__getitem__(index)

    assert entries_for(Counted(range(1 << 18)), 0, 3) == (0,)
    assert entries_for(Counted(range(1 << 18)), 0, 2) == tuple(range(512))
    assert 0 < Counted.looks < 512 * 40


@operation(marked=False)
def _find(memory: Memory, pfn: int) -> PageTable:
    return table_at(memory, PageTable, pfn)


def test_a_pfn_leads_back_to_its_table() -> None:
    def tables() -> None:
        first, second = new(PageTable), new(PageTable)
        assert first.pfn >= PAGE_TABLE_PFN_BASE
        assert first.pfn != second.pfn
        assert _find(first.pfn) is first
        assert _find(second.pfn) is second
        with pytest.raises(ModelError, match="no PageTable was ever at pfn 0x42"):
            table_at(Memory(first.world), PageTable, 0x42)

    run(tables)
