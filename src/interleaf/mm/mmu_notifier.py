"""MMU notifiers: how a user of somebody else's pages learns that they go away (mm/mmu_notifier.c, v6.12).

Whoever takes pages from an address space first calls every registered notifier's `invalidate_range_start`, which
returns when its owner uses none of them, then takes the pages, then calls `invalidate_range_end`. The list of
notifiers is read under SRCU, so unregistering waits until no callback runs any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock, synchronize_srcu
from interleaf.runtime import Memory, Object, operation, routine

from .mm_types import Mm, Pte


@dataclass(frozen=True, slots=True)
class MmuNotifierOps:
    """`struct mmu_notifier_ops`. The callbacks' first argument is the notifier's owner; ranges are hvas, the end
    not included."""

    invalidate_range_start: Callable[[Any, int, int, bool], None]
    """(owner, start, end, blockable)"""
    invalidate_range_end: Callable[[Any, int, int], None]
    release: Callable[[Any], None]
    """The address space goes away: drop everything, for good. No thread of the process is left."""
    clear_flush_young: Callable[[Any, int, int], bool] | None = None
    """(owner, start, end): were the pages used since the last time? From now on that counts anew."""
    clear_young: Callable[[Any, int, int], bool] | None = None
    """The same, for those who do not care for uses through what TLBs have cached."""
    test_young: Callable[[Any, int], bool] | None = None
    """(owner, hva): was the page used?"""
    change_pte: Callable[[Any, int, Pte], None] | None = None
    """(owner, hva, entry): the PTE becomes this. Between the start and the end of an invalidation; must not sleep.
    (Up to v6.9.)"""


@dataclass(frozen=True, slots=True, repr=False)
class MmuNotifier:
    """`struct mmu_notifier`: a registration."""

    ops: MmuNotifierOps
    owner: Object

    def __repr__(self) -> str:
        return f"the MMU notifier of {self.owner.name}"


@operation(
    focus=lambda mm, notifier: Mm.notifiers.cell(mm),
    words=lambda mm, notifier, _: f"registers {notifier}",
)
def mmu_notifier_register(memory: Memory, mm: Mm, notifier: MmuNotifier) -> None:
    """Call `notifier` from now on."""
    memory.store(mm, Mm.notifiers, (*memory.load(mm, Mm.notifiers), notifier))


@operation(
    focus=Mm.notifiers.cell,
    words=lambda mm, found: f"looks who wants to know: {', '.join(map(repr, found or ())) or 'nobody'}",
)
def _registered(memory: Memory, mm: Mm) -> tuple[MmuNotifier, ...]:
    """The list of notifiers, in a reader of `notifier_srcu` (hlist_for_each_entry_srcu)."""
    return memory.load(mm, Mm.notifiers)  # type: ignore[no-any-return]


@operation(
    focus=lambda mm, notifier: Mm.notifiers.cell(mm),
    words=lambda mm, notifier, _: f"takes {notifier} off the list",
)
def _hlist_del_init(memory: Memory, mm: Mm, notifier: MmuNotifier) -> None:
    others = tuple(other for other in memory.load(mm, Mm.notifiers) if other != notifier)
    memory.store(mm, Mm.notifiers, others)


@routine
def mmu_notifier_unregister(mm: Mm, notifier: MmuNotifier) -> None:
    """Stop calling `notifier`: its release callback has run and no callback is running when this returns. Sleeps."""
    if notifier in _registered(mm):
        srcu = srcu_read_lock(mm.notifier_srcu)
        notifier.ops.release(notifier.owner)
        srcu_read_unlock(mm.notifier_srcu, srcu)
        _hlist_del_init(mm, notifier)
    synchronize_srcu(mm.notifier_srcu)


@routine
def mmu_notifier_release(mm: Mm) -> None:
    """The address space goes away (from exit_mmap): release and remove all notifiers. Sleeps."""
    srcu = srcu_read_lock(mm.notifier_srcu)
    registered = _registered(mm)
    for notifier in registered:
        notifier.ops.release(notifier.owner)
    for notifier in registered:
        _hlist_del_init(mm, notifier)
    srcu_read_unlock(mm.notifier_srcu, srcu)
    synchronize_srcu(mm.notifier_srcu)


@routine
def mmu_notifier_invalidate_range_start(mm: Mm, start: int, end: int, blockable: bool) -> None:
    """The pages at start <= hva < end are about to be taken; nobody uses them any more when this returns."""
    srcu = srcu_read_lock(mm.notifier_srcu)
    for notifier in _registered(mm):
        notifier.ops.invalidate_range_start(notifier.owner, start, end, blockable)
    srcu_read_unlock(mm.notifier_srcu, srcu)


@routine
def mmu_notifier_invalidate_range_end(mm: Mm, start: int, end: int) -> None:
    """The pages have been taken: what is looked up from now on is current."""
    srcu = srcu_read_lock(mm.notifier_srcu)
    for notifier in _registered(mm):
        notifier.ops.invalidate_range_end(notifier.owner, start, end)
    srcu_read_unlock(mm.notifier_srcu, srcu)


@routine
def mmu_notifier_change_pte(mm: Mm, hva: int, entry: Pte) -> None:
    """The PTE of `hva` becomes `entry`; under its page-table lock, inside an invalidation of `hva`."""
    srcu = srcu_read_lock(mm.notifier_srcu)
    for notifier in _registered(mm):
        if notifier.ops.change_pte is not None:
            notifier.ops.change_pte(notifier.owner, hva, entry)
    srcu_read_unlock(mm.notifier_srcu, srcu)


@routine
def mmu_notifier_clear_flush_young(mm: Mm, start: int, end: int) -> bool:
    """Has anybody used the pages at start <= hva < end since this was last asked?"""
    young = False
    srcu = srcu_read_lock(mm.notifier_srcu)
    for notifier in _registered(mm):
        if notifier.ops.clear_flush_young is not None:
            young = notifier.ops.clear_flush_young(notifier.owner, start, end) or young
    srcu_read_unlock(mm.notifier_srcu, srcu)
    return young


@routine
def mmu_notifier_clear_young(mm: Mm, start: int, end: int) -> bool:
    """The same, without flushing TLBs: later uses through what they have cached go unnoticed."""
    young = False
    srcu = srcu_read_lock(mm.notifier_srcu)
    for notifier in _registered(mm):
        if notifier.ops.clear_young is not None:
            young = notifier.ops.clear_young(notifier.owner, start, end) or young
    srcu_read_unlock(mm.notifier_srcu, srcu)
    return young


@routine
def mmu_notifier_test_young(mm: Mm, hva: int) -> bool:
    """Has anybody used the page at `hva`? Asking changes nothing."""
    young = False
    srcu = srcu_read_lock(mm.notifier_srcu)
    for notifier in _registered(mm):
        if notifier.ops.test_young is not None:
            young = young or notifier.ops.test_young(notifier.owner, hva)
    srcu_read_unlock(mm.notifier_srcu, srcu)
    return young
