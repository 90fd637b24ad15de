"""Looking up what is behind an address."""

from __future__ import annotations

from interleaf.linux.spinlock import spin_lock, spinlock_t
from interleaf.mm.mm import Mm, Pte, get_user_page, mm_alloc, mmap
from interleaf.mm.unmap import madvise_dontneed, munmap
from interleaf.runtime import new, spawn
from tests.linux.drive import Drive, run


def test_a_lookup_takes_a_reference() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 2)
        found, neighbour = get_user_page(mm, 5, False), get_user_page(mm, 6, True)
        assert found is not None
        assert neighbour is not None
        assert found.page is not neighbour.page
        assert found.pfn == found.page.pfn
        assert found.writable
        assert found.page.refcount == 2
        assert found.page.mapcount == 1

    assert run(program).rules == []


def test_a_lookup_fails_where_nothing_is_mapped() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        assert get_user_page(mm, 4, False) is None
        munmap(mm, 5, 1)
        assert get_user_page(mm, 5, False) is None
        assert mm.pte[5] == Pte()

    assert run(program).rules == []


def test_a_lookup_brings_a_new_page_after_dontneed() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        old = mm.pte[5].page
        madvise_dontneed(mm, 5, 1)
        found = get_user_page(mm, 5, False)
        assert found is not None
        assert found.page is not old
        assert get_user_page(mm, 5, True) == found
        assert found.page.refcount == 3

    assert run(program).rules == []


def test_dontneed_leaves_a_hole_a_hole() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        madvise_dontneed(mm, 5, 1)
        assert get_user_page(mm, 5, False) is None

    assert run(program).rules == []


def test_two_lookups_at_once_bring_one_page() -> None:
    def setup() -> None:
        mm = mm_alloc(1)
        mmap(mm, 5, 1)
        madvise_dontneed(mm, 5, 1)
        for name in ("a", "b"):
            spawn(get_user_page, mm, 5, False, name=name)

    drive = Drive(setup)
    drive.until("a", "set_pte_if_same")
    drive.finish("b")
    drive.finish("a")
    assert drive.rules == []
    mm = next(obj for obj in drive.execution.world.objects.values() if isinstance(obj, Mm))
    found = drive.element(mm, Mm.pte, 5).page
    assert found.name == "b:Page0"
    assert drive.peek(found, type(found).refcount) == 3


def test_a_lookup_may_sleep() -> None:
    def program() -> None:
        mm = mm_alloc(1)
        spin_lock(new(spinlock_t))
        get_user_page(mm, 5, False)

    assert "sleeping-while-atomic" in run(program).rules
