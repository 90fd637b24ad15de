"""Notifiers hear of pages that go away, before and after, and as long as they are registered."""

from __future__ import annotations

from interleaf.mm.mm import Mm, Pte, mm_alloc, mmap
from interleaf.mm.mmu_notifier import MmuNotifier, MmuNotifierOps, mmu_notifier_register, mmu_notifier_unregister
from interleaf.mm.unmap import madvise_dontneed, mmput, munmap, oom_reap_task_mm
from interleaf.runtime import Object, Plain, new, spawn
from tests.linux.drive import Drive, run


class Owner(Object):
    """Keeps a log of its callbacks."""

    mm: Plain[Mm | None] = Plain(None)
    log: Plain[tuple[str, ...]] = Plain(())


def _note(owner: Owner, text: str) -> None:
    mm = owner.mm
    assert mm is not None
    present = "present" if mm.pte[5].page else "gone"
    owner.log = (*owner.log, f"{text}: {present}")


def _start(owner: Owner, start: int, end: int, blockable: bool) -> None:
    _note(owner, f"start {start}-{end} {'may' if blockable else 'must not'} sleep")


def _end(owner: Owner, start: int, end: int) -> None:
    _note(owner, f"end {start}-{end}")


def _release(owner: Owner) -> None:
    _note(owner, "release")


OPS = MmuNotifierOps(_start, _end, _release)


def watched(threads: int = 1) -> tuple[Mm, Owner, MmuNotifier]:
    mm = mm_alloc(threads)
    mmap(mm, 5, 2)
    owner = new(Owner, mm=mm)
    notifier = MmuNotifier(OPS, owner)
    mmu_notifier_register(mm, notifier)
    return mm, owner, notifier


def test_munmap_tells_before_and_after() -> None:
    def program() -> None:
        mm, owner, _notifier = watched()
        munmap(mm, 5, 2)
        assert owner.log == ("start 5-7 may sleep: present", "end 5-7: gone")
        assert mm.pte[6] == Pte()

    assert run(program).rules == []


def test_the_oom_reaper_must_not_sleep() -> None:
    def program() -> None:
        mm, owner, _notifier = watched()
        oom_reap_task_mm(mm)
        assert owner.log[0] == "start 5-7 must not sleep: present"

    assert run(program).rules == []


def test_dontneed_tells_too() -> None:
    def program() -> None:
        mm, owner, _notifier = watched()
        madvise_dontneed(mm, 5, 1)
        assert owner.log == ("start 5-6 may sleep: present", "end 5-6: gone")

    assert run(program).rules == []


def test_the_last_thread_tears_the_address_space_down() -> None:
    def program() -> None:
        mm, owner, _notifier = watched(threads=2)
        mmput(mm)
        assert not owner.log
        mmput(mm)
        assert owner.log == ("release: present",)
        assert mm.pte[5] == Pte()
        assert mm.notifiers == ()

    assert run(program).rules == []


def test_unregistering_releases_once() -> None:
    def program() -> None:
        mm, owner, notifier = watched()
        mmu_notifier_unregister(mm, notifier)
        assert owner.log == ("release: present",)
        munmap(mm, 5, 2)
        mmput(mm)
        assert owner.log == ("release: present",)

    assert run(program).rules == []


def test_unregistering_after_the_address_space_is_gone_does_not_release_again() -> None:
    def program() -> None:
        mm, owner, notifier = watched()
        mmput(mm)
        mmu_notifier_unregister(mm, notifier)
        assert owner.log == ("release: present",)

    assert run(program).rules == []


def test_unregistering_waits_for_callbacks() -> None:
    def setup() -> None:
        mm, _owner, notifier = watched()
        spawn(munmap, mm, 5, 1, name="munmap")
        spawn(mmu_notifier_unregister, mm, notifier, name="unregister")

    drive = Drive(setup)
    drive.until("munmap", "_registered")
    drive.step("munmap")  # has the list of notifiers, and is inside the reader
    while drive.step("unregister"):
        pass
    assert drive.unfinished == ["munmap", "unregister"]
    drive.until("munmap", "ptep_clear")
    drive.finish("unregister")
    drive.finish("munmap")
    assert drive.rules == []
