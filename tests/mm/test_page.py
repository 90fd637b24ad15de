"""Host pages: references, the write-back of their state, and who maps them."""

from __future__ import annotations

import pytest

from interleaf.hw.page_table import PageTable
from interleaf.mm.page import (
    Page,
    alloc_page,
    mark_page_accessed,
    note_mapped,
    note_unmapped,
    page_at,
    put_page,
    set_page_dirty,
)
from interleaf.runtime import Memory, ModelError, new, operation
from tests.linux.drive import run


@operation()
def map_page(memory: Memory, page: Page, table: PageTable) -> None:
    note_mapped(memory, page.pfn, (table, 0))


@operation()
def unmap_page(memory: Memory, page: Page, table: PageTable) -> None:
    note_unmapped(memory, page.pfn, (table, 0))


def test_a_pfn_leads_back_to_its_page() -> None:
    def program() -> None:
        first, second = alloc_page(), alloc_page()
        assert first.pfn != second.pfn
        assert page_at(second.pfn) is second
        with pytest.raises(ModelError):
            page_at(0x42)

    assert run(program).rules == []


def test_a_page_is_freed_with_its_last_reference() -> None:
    def program() -> None:
        page = alloc_page()
        page.refcount = 2
        put_page(page)
        set_page_dirty(page)
        put_page(page)
        _ = page.dirty

    drive = run(program)
    assert drive.rules == ["use-after-free"]


def test_writing_dirty_state_back_to_a_freed_page_violates_i1() -> None:
    def program() -> None:
        page = alloc_page()
        put_page(page)
        set_page_dirty(page)

    drive = run(program)
    assert drive.rules == ["I1"]
    assert drive.violations[0].message.startswith("dirty state is written back to a:Page0")


def test_writing_accessed_state_back_to_a_freed_page_violates_i1() -> None:
    def program() -> None:
        page = alloc_page()
        put_page(page)
        mark_page_accessed(page)

    drive = run(program)
    assert drive.rules == ["I1"]
    assert drive.violations[0].message.startswith("accessed state is written back to a:Page0")


def test_freeing_a_mapped_page_violates_i1() -> None:
    def program() -> None:
        page = alloc_page()
        map_page(page, new(PageTable))
        put_page(page)

    drive = run(program)
    assert drive.rules == ["I1"]
    assert "the host frees a:Page0 (pfn 0x1400), but an SPTE still maps it" in drive.violations[0].message


def test_mapping_a_freed_page_violates_i1() -> None:
    def program() -> None:
        page = alloc_page()
        put_page(page)
        map_page(page, new(PageTable))

    assert run(program).rules == ["I1"]


def test_a_page_that_is_not_mapped_any_more_may_be_freed() -> None:
    def program() -> None:
        page, table, other = alloc_page(), new(PageTable), new(PageTable)
        map_page(page, table)
        map_page(page, other)
        unmap_page(page, other)
        unmap_page(page, table)
        put_page(page)

    assert run(program).rules == []
