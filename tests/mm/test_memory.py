"""Page faults of the host: what the first look, the first write, and a look at swapped memory bring."""

from __future__ import annotations

import pytest

from interleaf.hw.frames import ZERO_PAGE_PFN
from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.mm.mm import (
    AddressSpace,
    Kind,
    Mm,
    MmKernel,
    Prot,
    PteKind,
    get_user_page,
    host_mapping_level,
    mm_alloc,
    mmap,
)
from interleaf.mm.page import HugePage, ZeroPage, page_at, put_page
from interleaf.mm.unmap import munmap
from interleaf.mm.vmscan import madvise_pageout
from interleaf.runtime import new, spawn, the
from tests.linux.drive import Drive, run
from tests.mm.secondary import access, attach


def test_reading_anonymous_memory_finds_the_page_of_zeros() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 2, Kind.ANONYMOUS, populate=False)
        first, second = get_user_page(mm, 5, False), get_user_page(mm, 6, False)
        assert first is not None
        assert first == second
        assert (first.page, first.pfn, first.writable) == (the(ZeroPage), ZERO_PAGE_PFN, False)
        assert page_at(ZERO_PAGE_PFN) is the(ZeroPage)
        put_page(first.page)
        munmap(mm, 5, 2)

    assert run(program).rules == []


def test_writing_the_page_of_zeros_makes_a_copy_and_tells() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1, Kind.ANONYMOUS, populate=False)
        user = attach(mm)
        assert access(user, 5, False)
        assert access(user, 5, True)
        assert user.log == ("start 0x5-0x6", "end 0x5-0x6")
        page = mm.pte[5].page
        assert page is not None
        assert (page.refcount, page.mapcount) == (1, 1)

    assert run(program).rules == []


def test_writing_first_needs_no_copy() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1, Kind.ANONYMOUS, populate=False)
        user = attach(mm)
        assert access(user, 5, True)
        assert user.log == ()

    assert run(program).rules == []


def test_old_kernels_tell_of_the_new_pte() -> None:
    def program() -> None:
        mm = mm_alloc(1, MmKernel(set_pte_at_notify=True))
        mmap(mm, 5, 1, Kind.ANONYMOUS, populate=False)
        user = attach(mm)
        assert access(user, 5, False)
        assert access(user, 5, True)
        page = mm.pte[5].page
        assert page is not None
        assert user.log == ("start 0x5-0x6", f"change 0x5 {page.name} rw", "end 0x5-0x6")

    assert run(program).rules == []


def test_nobody_gets_the_page_while_its_pte_is_replaced() -> None:
    def setup() -> None:
        mm = mm_alloc(1, MmKernel(set_pte_at_notify=True))
        mmap(mm, 5, 1, Kind.ANONYMOUS, populate=False)
        get_user_page(mm, 5, False)
        attach(mm)
        spawn(get_user_page, mm, 5, True, name="writer")
        spawn(get_user_page, mm, 5, False, name="reader")

    drive = Drive(setup)
    drive.until("writer", "set_pte_if_same")
    drive.step("writer")
    drive.until("reader", "_follow_pte")
    assert drive.waits("reader")
    drive.finish("writer")
    drive.finish("reader")
    assert drive.rules == []
    mm = next(obj for obj in drive.execution.world.objects.values() if isinstance(obj, Mm))
    page = drive.element(mm, Mm.pte, 5).page
    assert drive.peek(page, type(page).refcount) == 3


def test_writing_the_page_of_zeros_behind_the_hosts_back_violates_i1() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1, Kind.ANONYMOUS, populate=False)
        user = attach(mm)
        access(user, 5, False)
        user.mapped = tuple(entry._replace(writable=True) for entry in user.mapped)
        access(user, 5, True)

    assert set(run(program).rules) & {"I1", "stale"}


def test_files_in_memory_are_shared() -> None:
    def program() -> None:
        file = new(AddressSpace)
        mm, other = mm_alloc(1), mm_alloc(1)
        mmap(mm, 5, 2, Kind.SHMEM, file=file, populate=False)
        mmap(other, 0x10, 1, Kind.SHMEM, file=file, pgoff=1, populate=False)
        one, two = get_user_page(mm, 6, True), get_user_page(other, 0x10, False)
        assert one is not None
        assert one == two
        assert (one.page.refcount, one.page.mapcount) == (5, 2)
        munmap(mm, 5, 2)
        munmap(other, 0x10, 1)
        assert (one.page.refcount, one.page.mapcount) == (3, 0)

    assert run(program).rules == []


def test_what_the_process_may_not_do_finds_nothing() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1, prot=Prot.READ)
        mmap(mm, 6, 1, prot=Prot.NONE, populate=False)
        found = get_user_page(mm, 5, False)
        assert found is not None
        assert not found.writable
        assert get_user_page(mm, 5, True) is None
        assert get_user_page(mm, 6, False) is None

    assert run(program).rules == []


@pytest.mark.parametrize("writable", [False, True])
def test_a_page_comes_back_from_swap(writable: bool) -> None:
    def program() -> None:
        mm = mm_alloc(1, MmKernel(swap_in_writable=writable))
        mmap(mm, 5, 1)
        old = mm.pte[5].page
        madvise_pageout(mm, 5, 1)
        assert mm.pte[5].kind is PteKind.SWAP
        found = get_user_page(mm, 5, False)
        assert found is not None
        assert found.page is not old
        assert found.writable is writable
        put_page(found.page)
        again = get_user_page(mm, 5, True)
        assert again is not None
        assert again == found._replace(writable=True)

    assert run(program).rules == []


@pytest.mark.parametrize(("level", "start"), [(PG_LEVEL_2M, 512), (PG_LEVEL_1G, 1 << 18)])
def test_huge_pages_are_looked_up_by_frame(level: int, start: int) -> None:
    kind = Kind.HUGETLB if level == PG_LEVEL_1G else Kind.ANONYMOUS

    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, start, start, kind, level=level, hvas=(start, start + 7), populate=False)
        assert host_mapping_level(mm, start) == PG_LEVEL_4K
        found, head = get_user_page(mm, start + 7, True), get_user_page(mm, start, False)
        assert found is not None
        assert head is not None
        assert found.page is head.page
        assert (head.pfn % start, found.pfn) == (0, head.pfn + 7)
        assert page_at(found.pfn) is head.page
        assert (head.page.refcount, head.page.mapcount) == (3, 1)
        assert host_mapping_level(mm, start + 7) == level
        put_page(found.page)
        put_page(head.page)
        munmap(mm, start, start)
        assert host_mapping_level(mm, start) == PG_LEVEL_4K
        assert get_user_page(mm, start, False) is None

    assert run(program).rules == []


def test_memory_that_is_too_small_gets_small_pages() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 512, 8, Kind.ANONYMOUS, level=PG_LEVEL_2M)
        assert mm.pte[513].kind is PteKind.PRESENT
        assert not isinstance(mm.pte[513].page, HugePage)

    assert run(program).rules == []
