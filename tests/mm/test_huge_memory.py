"""Huge pages that are mapped in small pieces, split, and put together."""

from __future__ import annotations

import pytest

from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.mm.huge_memory import split_folio, split_huge_pmd
from interleaf.mm.khugepaged import collapse_huge_page
from interleaf.mm.mm import Kind, Mm, Prot, PteKind, get_user_page, host_mapping_level, mm_alloc, mmap
from interleaf.mm.mprotect import mprotect
from interleaf.mm.page import HugePage, Page, page_at, put_page, set_page_dirty
from interleaf.mm.pte import ptep_clear
from interleaf.mm.unmap import madvise_dontneed, munmap
from interleaf.runtime import ModelError, spawn
from tests.linux.drive import Drive, run
from tests.mm.secondary import access, attach

BASE = 0x400
BLOCK = (PG_LEVEL_2M, BASE)
HVAS = (BASE, BASE + 1, BASE + 9)


def huge(populate: bool = True) -> Mm:
    mm = mm_alloc(1)
    mmap(mm, BASE, 512, Kind.ANONYMOUS, level=PG_LEVEL_2M, hvas=HVAS, populate=populate)
    return mm


def table() -> Mm:
    """The same with small pages, in a table of small entries: it was mapped huge, and discarded page by page."""
    mm = huge()
    for hva in HVAS:
        madvise_dontneed(mm, hva, 1)
        found = get_user_page(mm, hva, True)
        assert found is not None
        put_page(found.page)
    return mm


def test_mapping_it_in_pieces_changes_nothing_about_the_page() -> None:
    def program() -> None:
        mm = huge()
        user = attach(mm)
        before = get_user_page(mm, BASE + 9, True)
        assert before is not None
        put_page(before.page)
        split_huge_pmd(mm, BLOCK)
        assert user.log == ("start 0x400-0x600", "end 0x400-0x600")
        assert host_mapping_level(mm, BASE) == PG_LEVEL_4K
        assert get_user_page(mm, BASE + 9, True) == before
        assert (before.page.refcount, before.page.mapcount) == (4, 3)

    assert run(program).rules == []


def test_discarding_a_part_maps_the_rest_in_pieces() -> None:
    def program() -> None:
        mm = huge()
        user = attach(mm)
        madvise_dontneed(mm, BASE + 9, 1)
        assert user.log == ("start 0x409-0x40a", "start 0x400-0x600", "end 0x400-0x600", "end 0x409-0x40a")
        kept, fresh = get_user_page(mm, BASE, False), get_user_page(mm, BASE + 9, True)
        assert kept is not None
        assert fresh is not None
        assert isinstance(kept.page, HugePage)
        assert type(fresh.page) is Page

    assert run(program).rules == []


def test_a_part_of_a_hugetlb_page_cannot_go() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 1 << 18, 1 << 18, Kind.HUGETLB, level=PG_LEVEL_1G, hvas=(1 << 18,))
        with pytest.raises(ModelError, match="cannot be split"):
            munmap(mm, 1 << 18, 1)

    assert run(program).rules == []


def test_split_frames_are_pages_with_the_state_of_the_whole() -> None:
    def program() -> None:
        mm = huge()
        madvise_dontneed(mm, BASE + 1, 1)
        found = get_user_page(mm, BASE + 9, False)
        assert found is not None
        head, pfn = found.page, found.pfn
        set_page_dirty(head)
        assert not split_folio(mm, BLOCK)
        put_page(head)
        assert split_folio(mm, BLOCK)
        tail = get_user_page(mm, BASE + 9, True)
        assert tail is not None
        assert tail.pfn == pfn
        assert tail.page is page_at(pfn)
        assert tail.page is not head
        assert tail.page.dirty
        assert (tail.page.refcount, tail.page.mapcount) == (2, 1)
        put_page(tail.page)
        munmap(mm, BASE, 512)

    assert run(program).rules == []


@pytest.mark.parametrize("offset", [1, 9])
def test_a_frame_that_is_freed_by_itself_is_freed(offset: int) -> None:
    """The first was discarded before the split, the other one is after."""

    def program() -> None:
        mm = huge()
        madvise_dontneed(mm, BASE + 1, 1)
        found = get_user_page(mm, BASE, False)
        assert found is not None
        put_page(found.page)
        assert split_folio(mm, BLOCK)
        madvise_dontneed(mm, BASE + 9, 1)
        set_page_dirty(page_at(found.pfn))
        set_page_dirty(page_at(found.pfn + offset))

    assert run(program).rules == ["I1"]


def test_small_pages_are_collapsed() -> None:
    def program() -> None:
        mm = table()
        user = attach(mm)
        assert all(access(user, hva, True) for hva in HVAS)
        old = mm.pte[BASE].page
        assert collapse_huge_page(mm, BASE + 1)
        assert user.log == ("start 0x400-0x600", "end 0x400-0x600")
        assert user.mapped == ()
        found = get_user_page(mm, BASE + 9, True)
        assert found is not None
        assert found.page is not old
        assert isinstance(found.page, HugePage)
        put_page(found.page)
        munmap(mm, BASE, 512)

    assert run(program).rules == []


def test_a_page_in_use_is_not_collapsed() -> None:
    def program() -> None:
        mm = table()
        held = get_user_page(mm, BASE, True)
        assert not collapse_huge_page(mm, BASE)
        again = get_user_page(mm, BASE, True)
        assert held is not None
        assert again == held
        put_page(held.page)
        assert not collapse_huge_page(mm, BASE)
        put_page(held.page)
        assert collapse_huge_page(mm, BASE)

    assert run(program).rules == []


def test_there_must_be_a_table_to_collapse() -> None:
    def program() -> None:
        assert not collapse_huge_page(huge(), BASE)
        assert not collapse_huge_page(huge(populate=False), BASE)

    assert run(program).rules == []


def test_lookups_wait_for_a_collapse() -> None:
    def setup() -> None:
        mm = table()
        spawn(collapse_huge_page, mm, BASE, name="khugepaged")
        spawn(get_user_page, mm, BASE, False, name="reader")

    drive = Drive(setup)
    drive.until("khugepaged", "_isolate_and_clear")
    drive.until("reader", "_follow_pte")
    assert drive.waits("reader")
    drive.finish("khugepaged")
    drive.finish("reader")
    assert drive.rules == []


def test_one_protection_for_a_part_prevents_huge_pages() -> None:
    def program() -> None:
        mm = huge(populate=False)
        mprotect(mm, BASE + 1, 1, Prot.READ)
        found = get_user_page(mm, BASE, True)
        assert found is not None
        assert type(found.page) is Page
        assert get_user_page(mm, BASE + 1, True) is None

    assert run(program).rules == []


def test_changing_mappings_of_one_block_in_two_tasks_is_refused() -> None:
    def program() -> None:
        ptep_clear(huge(), BASE, PteKind.NONE)

    with pytest.raises(ModelError, match="mmap_lock"):
        run(program)
