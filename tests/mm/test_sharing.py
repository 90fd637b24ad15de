"""Pages that several processes or addresses share until somebody writes: fork, and same-page merging."""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.mm.fork import fork
from interleaf.mm.ksm import try_to_merge_two_pages
from interleaf.mm.mm import AddressSpace, Kind, MmKernel, get_user_page, host_mapping_level, mm_alloc, mmap
from interleaf.mm.page import put_page
from interleaf.mm.shmem import shmem_fallocate_punch_hole
from interleaf.mm.unmap import mmput
from interleaf.runtime import new
from tests.linux.drive import run
from tests.mm.secondary import access, attach


def test_fork_takes_the_permission_to_write_from_both() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 2)
        user = attach(mm)
        access(user, 5, True)
        child = fork(mm)
        assert user.log == ("start 0x5-0x7", "end 0x5-0x7")
        assert not user.mapped
        parents, childs = get_user_page(mm, 5, False), get_user_page(child, 5, False)
        assert parents is not None
        assert parents == childs
        assert not parents.writable
        assert (parents.page.refcount, parents.page.mapcount) == (4, 2)

    assert run(program).rules == []


def test_the_first_to_write_after_fork_copies_and_the_last_keeps() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        user = attach(mm)
        old = mm.pte[5].page
        assert old is not None
        child = fork(mm)
        assert access(user, 5, False)
        assert access(user, 5, True)
        assert user.log[2:] == ("start 0x5-0x6", "end 0x5-0x6")
        assert mm.pte[5].page is not old
        kept = get_user_page(child, 5, True)
        assert kept is not None
        assert kept.page is old
        put_page(old)
        mmput(child)

    assert run(program).rules == []


def test_a_huge_page_that_is_shared_is_copied_in_small_pieces() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 512, 512, Kind.ANONYMOUS, level=PG_LEVEL_2M, hvas=(512, 513))
        child = fork(mm)
        assert host_mapping_level(child, 513) == PG_LEVEL_2M
        found = get_user_page(mm, 512, True)
        assert found is not None
        assert host_mapping_level(mm, 512) == PG_LEVEL_4K
        mmput(mm)
        put_page(found.page)
        last = get_user_page(child, 512, True)
        assert last is not None
        assert host_mapping_level(child, 512) == PG_LEVEL_2M

    assert run(program).rules == []


def test_a_child_shares_files_for_good() -> None:
    def program() -> None:
        file = new(AddressSpace)
        mm = mm_alloc(1)
        mmap(mm, 5, 1, Kind.SHMEM, file=file)
        user = attach(mm)
        child = fork(mm)
        assert not user.log
        one, two = get_user_page(mm, 5, True), get_user_page(child, 5, True)
        assert one is not None
        assert one == two
        put_page(one.page)
        put_page(one.page)
        shmem_fallocate_punch_hole(file, 0, 1)
        assert user.log == ("start 0x5-0x6", "end 0x5-0x6")
        assert mm.pte[5].page is None
        assert child.pte[5].page is None
        fresh = get_user_page(child, 5, True)
        assert fresh is not None
        assert fresh.page is not one.page

    assert run(program).rules == []


def test_merged_pages_are_one_until_written() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 2)
        user = attach(mm)
        assert access(user, 5, True)
        assert access(user, 6, True)
        assert try_to_merge_two_pages(mm, 5, 6)
        one, two = get_user_page(mm, 5, False), get_user_page(mm, 6, False)
        assert one is not None
        assert one == two
        assert not one.writable
        put_page(one.page)
        put_page(one.page)
        assert (one.page.refcount, one.page.mapcount) == (2, 2)
        assert access(user, 6, True)
        assert mm.pte[6].page is not one.page
        assert access(user, 5, True)
        assert mm.pte[5].page is one.page

    assert run(program).rules == []


def test_old_kernels_tell_of_the_merged_pages_ptes() -> None:
    def program() -> None:
        mm = mm_alloc(1, MmKernel(set_pte_at_notify=True))
        mmap(mm, 5, 2)
        user = attach(mm)
        first, second = mm.pte[5].page, mm.pte[6].page
        assert first is not None
        assert second is not None
        assert try_to_merge_two_pages(mm, 5, 6)
        assert user.log == (
            *("start 0x5-0x6", f"change 0x5 {first.name} ro", "end 0x5-0x6"),
            *("start 0x6-0x7", f"change 0x6 {second.name} ro", "end 0x6-0x7"),
            *("start 0x6-0x7", f"change 0x6 {first.name} ro", "end 0x6-0x7"),
        )

    assert run(program).rules == []


def test_pages_in_use_are_not_merged() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 2)
        held = get_user_page(mm, 6, True)
        assert held is not None
        assert not try_to_merge_two_pages(mm, 5, 6)
        put_page(held.page)
        assert try_to_merge_two_pages(mm, 5, 6)
        assert not try_to_merge_two_pages(mm, 5, 6)

    assert run(program).rules == []


def test_writing_a_shared_page_behind_the_hosts_back_violates_i1() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        user = attach(mm)
        access(user, 5, True)
        kept = user.mapped
        fork(mm)
        user.mapped = kept
        access(user, 5, True)

    assert set(run(program).rules) & {"I1", "stale"}
