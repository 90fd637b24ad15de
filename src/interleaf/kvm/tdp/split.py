"""Splitting huge pages into tables of smaller ones, with the same translations (kernel tdp_mmu.c, v6.12).

Dirty logging is of 4 KiB pages: when it begins it splits all huge pages of a memslot (eagerly), so that vCPUs do not
have to do it one by one in their faults (lazily). The table is filled before anybody can see it, and replaces the
huge page by one write. No TLB is flushed: what is cached of the huge page is as right as before, and whoever takes a
permission from the small pages flushes.
"""

from __future__ import annotations

import errno

from interleaf.hw.page_table import entries_for, index_of
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot, KvmMmuPage, KvmMmuPageRole
from interleaf.kvm.trace import trace_kvm_mmu_get_page, trace_kvm_mmu_split_huge_page
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.linux.slab import GFP_KERNEL, kmem_cache_alloc, kmem_cache_free
from interleaf.mm.page import note_mapped, note_unmapped
from interleaf.runtime import Memory, checkpoint, choose, current_task, operation, routine, say

from .entries import kvm_tdp_mmu_read_spte
from .iter import TdpIter, tdp_iter_next, tdp_iter_start
from .link import tdp_mmu_link_sp
from .spte import is_large_pte, is_present_leaf, is_shadow_present_pte, make_huge_page_split_spte, spte_to_pfn
from .tdp_mmu import tdp_mmu_next_root_of
from .zap import tdp_mmu_iter_cond_resched

EAGER_SPLIT = rule(
    "eager-page-split",
    "Huge pages are split as soon as dirty logging begins, or the dirty log is cleared.",
    "a3fe5dbda0a4",
)
SPLIT_VALID_ROOTS = rule(
    "split-valid-roots",
    "Huge pages are split eagerly in valid roots only: readers of mmu_lock take no references on invalid ones.",
    "7c554d8e51a9",
)
SPLIT_ALLOCATES_UNLOCKED = rule(
    "split-allocates-unlocked",
    "The table for an eager split is allocated without mmu_lock, instead of trying it under the lock first.",
    "v6.11",
)


@routine
def tdp_mmu_split_huge_page(kvm: Kvm, it: TdpIter, sp: KvmMmuPage, shared: bool) -> bool:
    """Replace the huge page at `it` by the table `sp`, which nobody else knows yet; False if the entry has changed
    meanwhile. In an RCU reader, mmu_lock held: for read if `shared`, else for write."""
    huge_spte, role, entries = it.old_spte, sp.role, entries_for(kvm.gfns, it.gfn, it.level - 1)
    children = tuple((index, make_huge_page_split_spte(kvm, huge_spte, role, index)) for index in entries)
    _fill(sp, it.level - 1, children)
    done = tdp_mmu_link_sp(kvm, it, sp, shared)
    if not done:
        _unmap(sp, it.level - 1, children)
    trace_kvm_mmu_split_huge_page(it.gfn, huge_spte, it.level, 0 if done else -errno.EBUSY)
    return done


@operation(marked=False)
def _fill(memory: Memory, sp: KvmMmuPage, level: int, children: tuple[tuple[int, int], ...]) -> None:
    """The entries of a table that only this task knows."""
    for index, spte in children:
        memory.set(KvmMmuPage.spt.element(sp, index), spte)
        if is_present_leaf(spte, level):
            note_mapped(memory, spte_to_pfn(spte), (sp, index))


@operation(marked=False)
def _unmap(memory: Memory, sp: KvmMmuPage, level: int, children: tuple[tuple[int, int], ...]) -> None:
    """The table does not map anything after all."""
    for index, spte in children:
        if is_present_leaf(spte, level):
            note_unmapped(memory, spte_to_pfn(spte), (sp, index))


@routine
def tdp_mmu_alloc_sp_for_split(kvm: Kvm, it: TdpIter, shared: bool) -> tuple[KvmMmuPage, bool]:
    """A table for a split, which is not set up yet, and whether mmu_lock was given up for it (and the RCU reader left),
    so that the walk must find its way again. In an RCU reader, mmu_lock held: for read if `shared`, else for write."""
    tries = not kvm.design.obeys(SPLIT_ALLOCATES_UNLOCKED)
    if tries and not choose(2, "the allocation fails under mmu_lock"):
        return kmem_cache_alloc(KvmMmuPage), False
    say(f"{current_task().name} gives mmu_lock up to allocate a table for gfn {it.gfn:#x}")
    rcu_read_unlock()
    if shared:
        read_unlock(kvm.mmu_lock)
    else:
        write_unlock(kvm.mmu_lock)
    sp = kmem_cache_alloc(KvmMmuPage, GFP_KERNEL)
    if shared:
        read_lock(kvm.mmu_lock)
    else:
        write_lock(kvm.mmu_lock)
    rcu_read_lock()
    return sp, True


@routine
def tdp_mmu_init_child_sp(sp: KvmMmuPage, it: TdpIter) -> None:
    """Set a table up for the place of the entry at `it`."""
    role: KvmMmuPageRole = it.sp.role
    sp.gfn = it.gfn
    sp.role = role.child()
    sp.parent = (it.sp, index_of(it.gfn, it.level))
    trace_kvm_mmu_get_page(sp)


@routine
def tdp_mmu_split_huge_pages_root(
    kvm: Kvm, root: KvmMmuPage, start: int, end: int, target_level: int, shared: bool
) -> None:
    """Split what maps gfns start <= gfn < end in pages larger than `target_level`. mmu_lock held: for read if
    `shared`, else for write; given up on the way."""
    sp = None
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, target_level + 1, start)
    while it is not None and it.gfn < end:
        checkpoint()
        it = tdp_mmu_iter_cond_resched(kvm, it, False, shared)
        if not it.yielded and is_shadow_present_pte(it.old_spte) and is_large_pte(it.old_spte):
            if sp is None:
                sp, unlocked = tdp_mmu_alloc_sp_for_split(kvm, it, shared)
                if unlocked:
                    it = _restart(it)
                del unlocked
            if not it.yielded:
                tdp_mmu_init_child_sp(sp, it)
                if not tdp_mmu_split_huge_page(kvm, it, sp, shared):
                    it = it._replace(old_spte=kvm_tdp_mmu_read_spte(kvm, it.sp, it.gfn, it.level))
                    continue
                sp = None
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    if sp is not None:
        # somebody else has split, or zapped, what it was for
        kmem_cache_free(sp)


def _restart(it: TdpIter) -> TdpIter:
    """As after a yield: the only thing to do with the iterator is tdp_iter_next()."""
    aim = it.next_last_level_gfn
    return it._replace(pt_path=it.pt_path[:1], gfn=aim, old_spte=0, yielded_gfn=aim, yielded=True)


@routine
def kvm_tdp_mmu_try_split_huge_pages(
    kvm: Kvm, slot: KvmMemorySlot, start: int, end: int, target_level: int, shared: bool
) -> None:
    """Split what maps gfns start <= gfn < end of the slot in pages larger than `target_level`, in all valid roots.
    mmu_lock held: for read if `shared`, else for write; given up on the way."""
    lockdep_assert_held(kvm.mmu_lock)
    only_valid, as_id = kvm.design.obeys(SPLIT_VALID_ROOTS), slot.as_id
    root = tdp_mmu_next_root_of(kvm, None, as_id, shared, only_valid)
    while root is not None:
        checkpoint()
        tdp_mmu_split_huge_pages_root(kvm, root, start, end, target_level, shared)
        root = tdp_mmu_next_root_of(kvm, root, as_id, shared, only_valid)
