"""The TDP iterator: a walk over the entries of a root, parents before children, that survives yields.

The kernel's `struct tdp_iter` changes in place; here it is an immutable value, and each function returns the next
one. Only entries that lead to a gfn of `Kvm.gfns` are visited, if that names any: all others are never written. In a
run that happens only once it is known which entries have not been written yet, and a walk passes them over on its way
to the side. Passing over others counts as progress, as it does in the kernel, which looks at each of them. (kernel
tdp_iter.c, v6.12)
"""

from __future__ import annotations

from typing import NamedTuple

from interleaf.hw.frames import PAGE_TABLE_PFN_BASE
from interleaf.hw.page_table import ENTRIES_PER_TABLE, gfn_round_for_level, index_of, next_entry, pages_per_entry
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.runtime import object_of, routine

from .entries import kvm_tdp_mmu_read_spte
from .spte import is_last_spte, is_shadow_present_pte, spte_to_pfn
from .work import walk_starts

PAGE_SHIFT = 12
SPTE_SIZE = 8
"""Bytes."""

ITER_YIELDED = rule(
    "iter-yielded",
    "A walk that has yielded goes on at the entry before which it yielded, instead of at the one after it.",
    "3a0f64de479c",
)


class TdpIter(NamedTuple):
    """Where a walk is: in the table `pt_path[-1]`, at the entry that leads to `gfn`."""

    pt_path: tuple[KvmMmuPage, ...]
    """The tables from the root down to the current one."""
    gfn: int
    """First gfn that the entry covers."""
    min_level: int
    """The walk does not go below this level."""
    old_spte: int
    """The entry as it was when last read."""
    next_last_level_gfn: int
    """The gfn that the walk aims for: all before it are done."""
    yielded_gfn: int
    """The gfn that it aimed for when it last yielded."""
    root_level: int
    as_id: int
    """The address space of the root."""
    yielded: bool = False
    """It has yielded since this entry was read, and must find its way again from the root."""

    @property
    def root(self) -> KvmMmuPage:
        return self.pt_path[0]

    @property
    def sp(self) -> KvmMmuPage:
        """The table that holds the entry."""
        return self.pt_path[-1]

    @property
    def level(self) -> int:
        return self.root_level + 1 - len(self.pt_path)

    @property
    def sptep(self) -> int:
        """The physical address of the entry, in bytes."""
        return (self.sp.pfn << PAGE_SHIFT) + index_of(self.gfn, self.level) * SPTE_SIZE

    @property
    def end(self) -> int:
        """The first gfn behind those that the entry covers."""
        return self.gfn + pages_per_entry(self.level)

    @property
    def may_yield(self) -> bool:
        """Has the walk made progress since it last yielded? Without it, two walks could yield to each other for
        ever."""
        return self.next_last_level_gfn != self.yielded_gfn


@routine
def tdp_iter_start(kvm: Kvm, root: KvmMmuPage, min_level: int, next_last_level_gfn: int) -> TdpIter | None:
    """Begin a walk at the first entry that covers a gfn from `next_last_level_gfn` on; None if there is none.

    In an RCU reader, mmu_lock held.
    """
    aim = next_last_level_gfn
    it = TdpIter((root,), aim, min_level, 0, aim, aim, kvm.platform.levels, walk_starts(kvm, root))
    return _enter(kvm, it, it.pt_path)


@routine
def tdp_iter_next(kvm: Kvm, it: TdpIter) -> TdpIter | None:
    """The next entry in pre-order, or None behind the last. In an RCU reader, mmu_lock held."""
    if it.yielded:
        restarted = _enter(kvm, it, it.pt_path[:1])
        if restarted is None or kvm.design.obeys(ITER_YIELDED):
            return restarted
        it = restarted
    return _step_down(kvm, it) or _step_side(kvm, it)


def tdp_iter_yielded(it: TdpIter) -> TdpIter:
    """The walk after it has yielded. Only the root and the aim are of use now; the rest is set to what it would be
    for any way here."""
    aim = it.next_last_level_gfn
    return TdpIter(it.pt_path[:1], aim, it.min_level, 0, aim, aim, it.root_level, it.as_id, True)


def spte_to_child_pt(spte: int, level: int) -> KvmMmuPage | None:
    """The table that an entry of this level points to, if it does."""
    if not is_shadow_present_pte(spte) or is_last_spte(spte, level):
        return None
    return object_of(KvmMmuPage, spte_to_pfn(spte) - PAGE_TABLE_PFN_BASE)


def _step_down(kvm: Kvm, it: TdpIter) -> TdpIter | None:
    """Into the table below (try_step_down). The entry is read again, because it may have been changed, by this
    task or by another, and the table that it pointed to be on its way to be freed."""
    level = it.level
    if level == it.min_level:
        return None
    child = spte_to_child_pt(kvm_tdp_mmu_read_spte(kvm, it.sp, it.gfn, level), level)
    return None if child is None else _enter(kvm, it, (*it.pt_path, child))


def _step_side(kvm: Kvm, it: TdpIter) -> TdpIter | None:
    """To the next entry of the table, or up until there is one (try_step_side, try_step_up)."""
    end = it.end
    return _seek(kvm, it, it.pt_path, it.gfn, end, end, True)


def _enter(kvm: Kvm, it: TdpIter, pt_path: tuple[KvmMmuPage, ...]) -> TdpIter | None:
    """To the entry of the table `pt_path[-1]` that leads to where the walk aims, or to the next one."""
    aim = it.next_last_level_gfn
    return _seek(kvm, it, pt_path, aim, gfn_round_for_level(aim, it.root_level + 1 - len(pt_path)), aim, False)


def _seek(
    kvm: Kvm, it: TdpIter, pt_path: tuple[KvmMmuPage, ...], inside: int, start: int, aim: int, sideways: bool
) -> TdpIter | None:
    """To the first entry from gfn `start` on that can ever be written: of the table `pt_path[-1]`, which covers the
    gfn `inside`, or of the next one further up. `sideways`: that can have been written."""
    gfns, level = kvm.gfns, it.root_level + 1 - len(pt_path)
    while True:
        end = gfn_round_for_level(inside, level + 1) + pages_per_entry(level + 1)
        found = next_entry(gfns, start, end, level)
        if sideways and gfns is None and found is not None:
            found = _next_changed(pt_path[-1], found, level)
        if found is not None:
            break
        if len(pt_path) == 1:
            return None
        pt_path, level, start = pt_path[:-1], level + 1, end
    return TdpIter(
        pt_path,
        found,
        it.min_level,
        kvm_tdp_mmu_read_spte(kvm, pt_path[-1], found, level),
        aim if gfn_round_for_level(aim, level) == found else found,
        it.yielded_gfn,
        it.root_level,
        it.as_id,
    )


def _next_changed(sp: KvmMmuPage, gfn: int, level: int) -> int | None:
    """The first gfn, from `gfn` on, of an entry of `sp` that can have been written; None if there is none."""
    start = index_of(gfn, level)
    index = KvmMmuPage.spt.next_changed(sp, start, ENTRIES_PER_TABLE)
    return None if index is None else gfn + (index - start) * pages_per_entry(level)
