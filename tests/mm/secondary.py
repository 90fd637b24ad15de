"""A second user of an address space, as KVM is one: what it has looked up it uses until its notifier is called."""

from __future__ import annotations

from typing import NamedTuple

from interleaf.hw.page_table import PageTable
from interleaf.mm.mm import Mm, Pte, get_user_page
from interleaf.mm.mm_types import PteKind, load_pte
from interleaf.mm.mmu_notifier import MmuNotifier, MmuNotifierOps, mmu_notifier_register
from interleaf.mm.page import (
    mark_page_accessed,
    note_mapped,
    note_unmapped,
    note_written,
    page_at,
    put_page,
    set_page_dirty,
)
from interleaf.runtime import Memory, Object, Plain, check, new, operation


class Mapped(NamedTuple):
    """A page that the second user may use without asking."""

    hva: int
    pfn: int
    writable: bool
    written: bool = False
    young: bool = True


class Secondary(Object):
    """The second user. With `forgets` it does not say which pages it has written to."""

    mm: Plain[Mm | None] = Plain(None)
    table: Plain[PageTable | None] = Plain(None)
    mapped: Plain[tuple[Mapped, ...]] = Plain(())
    forgets: Plain[bool] = Plain(False)
    log: Plain[tuple[str, ...]] = Plain(())


@operation(marked=False)
def _map(memory: Memory, table: PageTable, hva: int, pfn: int) -> None:
    note_mapped(memory, pfn, (table, hva))


@operation(marked=False)
def _unmap(memory: Memory, table: PageTable, hva: int, pfn: int) -> None:
    note_unmapped(memory, pfn, (table, hva))


@operation(marked=False)
def _written(memory: Memory, pfn: int) -> None:
    note_written(memory, pfn)


@operation(marked=False)
def host_entry(memory: Memory, mm: Mm, hva: int) -> Pte:
    """What the host maps at `hva`."""
    return load_pte(memory, mm, hva)


def _drop(user: Secondary, start: int, end: int) -> None:
    table = user.table
    assert table is not None
    for entry in user.mapped:
        if start <= entry.hva < end:
            _unmap(table, entry.hva, entry.pfn)
            if entry.written and not user.forgets:
                set_page_dirty(page_at(entry.pfn))
            mark_page_accessed(page_at(entry.pfn))
    user.mapped = tuple(entry for entry in user.mapped if not start <= entry.hva < end)


def _start(user: Secondary, start: int, end: int, blockable: bool) -> None:
    user.log = (*user.log, f"start {start:#x}-{end:#x}{'' if blockable else ' nonblock'}")
    _drop(user, start, end)


def _end(user: Secondary, start: int, end: int) -> None:
    user.log = (*user.log, f"end {start:#x}-{end:#x}")


def _release(user: Secondary) -> None:
    user.log = (*user.log, "release")
    _drop(user, 0, 1 << 40)


def _clear_young(user: Secondary, start: int, end: int) -> bool:
    user.log = (*user.log, f"young {start:#x}-{end:#x}")
    inside = [entry for entry in user.mapped if start <= entry.hva < end]
    user.mapped = tuple(entry._replace(young=False) if entry in inside else entry for entry in user.mapped)
    return any(entry.young for entry in inside)


def _test_young(user: Secondary, hva: int) -> bool:
    return any(entry.young for entry in user.mapped if entry.hva == hva)


def _change_pte(user: Secondary, hva: int, entry: Pte) -> None:
    assert entry.page is not None
    user.log = (*user.log, f"change {hva:#x} {entry.page.name} {'rw' if entry.writable else 'ro'}")


OPS = MmuNotifierOps(_start, _end, _release, _clear_young, _clear_young, _test_young, _change_pte)


def attach(mm: Mm, forgets: bool = False) -> Secondary:
    """A second user of `mm`."""
    user = new(Secondary, mm=mm, table=new(PageTable), forgets=forgets)
    mmu_notifier_register(mm, MmuNotifier(OPS, user))
    return user


def access(user: Secondary, hva: int, write: bool) -> bool:
    """Use the page at `hva`; False if the host does not allow it. Alone, what is used is what the host maps."""
    mm, table = user.mm, user.table
    assert mm is not None
    assert table is not None
    found = [entry for entry in user.mapped if entry.hva == hva and (entry.writable or not write)]
    if not found:
        pinned = get_user_page(mm, hva, write)
        if pinned is None:
            return False
        for stale in user.mapped:
            if stale.hva == hva:
                _unmap(table, hva, stale.pfn)
        found = [Mapped(hva, pinned.pfn, pinned.writable)]
        _map(table, hva, pinned.pfn)
        put_page(pinned.page)
    [entry] = found
    host = host_entry(mm, hva)
    current = host.kind is PteKind.PRESENT and host.pfn == entry.pfn and (host.writable or not entry.writable)
    check("stale", current, f"hva {hva:#x} is used as {entry}, but the host has {host}")
    if write:
        _written(entry.pfn)
    used = entry._replace(young=True, written=entry.written or write)
    user.mapped = (*(other for other in user.mapped if other.hva != hva), used)
    return True
