"""Pages that move: to other addresses, to other frames, and to swap."""

from __future__ import annotations

import pytest

from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.mm.migrate import migrate_page
from interleaf.mm.mm import Kind, Mm, MmKernel, Prot, Pte, PteKind, get_user_page, host_mapping_level, mm_alloc, mmap
from interleaf.mm.mprotect import mprotect
from interleaf.mm.mremap import mremap
from interleaf.mm.page import Saved, mark_page_accessed, put_page, set_page_dirty
from interleaf.mm.vmscan import damon_young, madvise_pageout, page_idle_clear_pte_refs, shrink_list
from interleaf.runtime import ModelError
from tests.linux.drive import run
from tests.mm.secondary import access, attach


def on_swap(mm: Mm, hva: int) -> bool:
    return mm.pte[hva].kind is PteKind.SWAP


def test_protecting_and_back() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 2)
        user = attach(mm)
        access(user, 5, True)
        mprotect(mm, 5, 1, Prot.READ)
        assert access(user, 5, False)
        assert not access(user, 5, True)
        mprotect(mm, 5, 1, Prot.NONE)
        assert not access(user, 5, False)
        mprotect(mm, 5, 1, Prot.WRITE)
        assert access(user, 5, True)
        assert [line.split()[0] for line in user.log] == ["start", "end"] * 3
        assert access(user, 6, True)

    assert run(program).rules == []


def test_moved_memory_is_found_at_its_new_address() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 2)
        user = attach(mm)
        access(user, 6, True)
        page = mm.pte[6].page
        mremap(mm, 5, 2, 0x20)
        assert user.log == ("start 0x5-0x7", "end 0x5-0x7")
        assert mm.pte[6] == Pte()
        assert mm.pte[0x21].page is page
        assert not access(user, 6, False)
        assert access(user, 0x21, True)
        with pytest.raises(ModelError, match="mapped before"):
            mremap(mm, 0x20, 1, 6)

    assert run(program).rules == []


@pytest.mark.parametrize(("to", "level"), [(2048, PG_LEVEL_2M), (2049, PG_LEVEL_4K)])
def test_a_huge_page_moves_as_a_whole_where_it_fits(to: int, level: int) -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 512, 512, Kind.ANONYMOUS, level=PG_LEVEL_2M, hvas=(512, 515))
        before = get_user_page(mm, 515, False)
        mremap(mm, 512, 512, to)
        assert host_mapping_level(mm, to + 3) == level
        assert get_user_page(mm, to + 3, False) == before

    assert run(program).rules == []


def test_a_page_migrates_with_its_state() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        user = attach(mm)
        access(user, 5, True)
        old = mm.pte[5].page
        assert migrate_page(mm, 5)
        assert user.log == ("start 0x5-0x6", "end 0x5-0x6")
        found = get_user_page(mm, 5, False)
        assert found is not None
        assert found.page is not old
        assert found.page.dirty
        assert found.writable
        assert not migrate_page(mm, 5)
        again = get_user_page(mm, 5, False)
        assert again == found
        put_page(found.page)
        put_page(found.page)
        assert migrate_page(mm, 5)

    assert run(program).rules == []


def test_what_is_used_is_not_reclaimed() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        user = attach(mm)
        access(user, 5, True)
        shrink_list(mm, 5, 1)
        assert not on_swap(mm, 5)
        page = mm.pte[5].page
        assert page is not None
        mark_page_accessed(page)
        shrink_list(mm, 5, 1)
        assert not on_swap(mm, 5)
        shrink_list(mm, 5, 1)
        assert on_swap(mm, 5)
        assert user.log == (*("young 0x5-0x6",) * 3, "start 0x5-0x6", "end 0x5-0x6")

    assert run(program).rules == []


@pytest.mark.parametrize("ignores", [False, True])
def test_pageout_asks_first_on_old_kernels(ignores: bool) -> None:
    def program() -> None:
        mm = mm_alloc(1, MmKernel(pageout_ignores_references=ignores))
        mmap(mm, 5, 1)
        user = attach(mm)
        access(user, 5, True)
        madvise_pageout(mm, 5, 1)
        assert on_swap(mm, 5) is ignores
        assert ("young 0x5-0x6" in user.log) is not ignores

    assert run(program).rules == []


def test_who_looks_at_use() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        user = attach(mm)
        access(user, 5, False)
        assert damon_young(mm, 5)
        assert page_idle_clear_pte_refs(mm, 5)
        assert not damon_young(mm, 5)
        assert not page_idle_clear_pte_refs(mm, 5)

    assert run(program).rules == []


def test_a_page_in_use_stays_in_the_swap_cache() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        held = get_user_page(mm, 5, True)
        assert held is not None
        madvise_pageout(mm, 5, 1)
        assert mm.pte[5] == Pte(PteKind.SWAP, mm.pte[5].vma, held.page)
        assert get_user_page(mm, 5, True) == held
        put_page(held.page)
        put_page(held.page)
        assert held.page.refcount == 1

    assert run(program).rules == []


@pytest.mark.parametrize("forgets", [False, True])
def test_a_write_that_the_host_does_not_hear_of_is_lost(forgets: bool) -> None:
    """The page comes back from swap writable and clean; only the second user knows that it was written to."""

    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        madvise_pageout(mm, 5, 1)
        user = attach(mm, forgets)
        access(user, 5, False)
        access(user, 5, True)
        madvise_pageout(mm, 5, 1)

    assert run(program).rules == (["I11"] if forgets else [])


def test_a_clean_page_is_not_written_again() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        madvise_pageout(mm, 5, 1)
        found = get_user_page(mm, 5, False)
        assert found is not None
        assert found.page.saved is Saved.CURRENT
        put_page(found.page)
        madvise_pageout(mm, 5, 1)
        again = get_user_page(mm, 5, False)
        assert again is not None
        set_page_dirty(again.page)
        put_page(again.page)
        madvise_pageout(mm, 5, 1)

    story = run(program).story
    assert sum("writes" in line and "to swap" in line for line in story) == 2
    assert sum("need not write" in line for line in story) == 1
