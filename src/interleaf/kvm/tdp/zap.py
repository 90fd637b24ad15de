"""Zapping: a whole root, the leafs of a range, or one table (kernel tdp_mmu.c, v6.12).

The first two walk one root in an RCU reader and may give mmu_lock up on the way. What has been zapped is flushed
before that, if anybody could still be using it.
"""

from __future__ import annotations

from interleaf.hw.frames import PFN_LIMIT
from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.tlb import kvm_flush_remote_tlbs
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.refcount import refcount_read
from interleaf.linux.rwlock import read_lock, read_unlock, rwlock_needbreak, write_lock, write_unlock
from interleaf.runtime import checkpoint, current_task, routine, say, warn

from .changed import tdp_mmu_iter_set_spte, tdp_mmu_set_spte_atomic
from .entries import kvm_tdp_mmu_read_spte
from .iter import TdpIter, spte_to_child_pt, tdp_iter_next, tdp_iter_start, tdp_iter_yielded
from .references import root_zapped
from .spte import is_last_spte, is_shadow_present_pte

FORWARD_PROGRESS = rule(
    "forward-progress",
    "A walk yields only if it has made progress since it last yielded, so that two walks cannot yield to each other "
    "for ever.",
    "ed5e484b79e8",
)
FLUSH_IN_RCU = rule(
    "flush-before-rcu-unlock",
    "A walk flushes before it leaves its RCU reader, so that a table that it has removed is not freed while the "
    "hardware may still walk it.",
    "bd29677952fa",
)
ZAP_1G_FIRST = rule(
    "zap-1g-first",
    "A root is zapped at 1 GiB before its own entries are, so that no single step tears down more than one entry of "
    "1 GiB has below it.",
    "1b6043e8e584",
)
ZAP_SMALL_FIRST = rule(
    "zap-small-first",
    "A root is zapped in passes from 4K entries upwards, so that no single step tears down a large part of it.",
    "8ca983631f3c",
)
SKIP_FLUSH_INVALID = rule(
    "zap-leafs-no-flush-invalid",
    "Zapping the leafs of an invalid root asks for no TLB flush, because no vCPU can be using it.",
    "99b85fda91b1",
)


MAX_GFN_OF_ARCHITECTURE = rule(
    "zap-up-to-architecture-s-max-gfn",
    "Whoever zaps everything goes up to the largest gfn that the architecture allows, instead of the largest that the "
    "host says its processor has: under another hypervisor that may be too small.",
    "86931ff7207b",
)


def tdp_mmu_max_gfn_exclusive(kvm: Kvm) -> int:
    """The first gfn behind those that can be mapped (kvm_mmu_max_gfn() + 1; tdp_mmu_max_gfn_host() up to v5.17)."""
    if kvm.design.obeys(MAX_GFN_OF_ARCHITECTURE):
        return PFN_LIMIT
    return 1 << kvm.platform.maxphyaddr - 12


@routine
def tdp_mmu_iter_cond_resched(kvm: Kvm, it: TdpIter, flush: bool, shared: bool) -> TdpIter:
    """Give mmu_lock up and take it again if somebody waits for it; `flush`: a TLB flush is pending.

    If the iterator that is returned has `yielded`, that has happened: the flush is done, and the only thing to do
    with the iterator is tdp_iter_next(). In an RCU reader, mmu_lock held: for read if `shared`, else for write.
    """
    design = kvm.design
    # which of the two looks comes first (e287e4316713 has changed it) cannot be seen: neither has an effect
    if not it.may_yield and design.obeys(FORWARD_PROGRESS):
        return it
    if not rwlock_needbreak(kvm.mmu_lock):
        return it
    early = design.obeys(FLUSH_IN_RCU)
    say(f"{current_task().name} gives mmu_lock up before gfn {it.gfn:#x}")
    if flush and early:
        kvm_flush_remote_tlbs(kvm)
    rcu_read_unlock()
    if flush and not early:
        kvm_flush_remote_tlbs(kvm)
    if shared:
        read_unlock(kvm.mmu_lock)
        read_lock(kvm.mmu_lock)
    else:
        write_unlock(kvm.mmu_lock)
        write_lock(kvm.mmu_lock)
    rcu_read_lock()
    return tdp_iter_yielded(it)


@routine
def tdp_mmu_zap_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Zap everything under a root that is going away. No flush: no vCPU uses it, or it does not run any more.

    The root must be on the list of roots with a reference count, because notifiers must be able to find it when
    the walk yields. mmu_lock held: for read if `shared`, else for write.
    """
    warn(
        "zap-unreferenced-root",
        refcount_read(root.tdp_mmu_root_count) == 0,
        f"{root.name} is zapped although nobody has a reference on it: notifiers cannot find it when the walk yields",
    )
    rcu_read_lock()
    if kvm.design.obeys(ZAP_SMALL_FIRST):
        __tdp_mmu_zap_root(kvm, root, shared, PG_LEVEL_4K)
        __tdp_mmu_zap_root(kvm, root, shared, PG_LEVEL_2M)
    if kvm.design.obeys(ZAP_1G_FIRST):
        __tdp_mmu_zap_root(kvm, root, shared, PG_LEVEL_1G)
    __tdp_mmu_zap_root(kvm, root, shared, kvm.platform.levels)
    root_zapped(kvm, root)
    rcu_read_unlock()


@routine
def __tdp_mmu_zap_root(kvm: Kvm, root: KvmMmuPage, shared: bool, zap_level: int) -> None:
    """Zap all entries of `zap_level` (and larger leafs above). In an RCU reader, mmu_lock held as `shared` says."""
    nonpresent, end = kvm.masks.nonpresent, tdp_mmu_max_gfn_exclusive(kvm)
    it = tdp_iter_start(kvm, root, zap_level, 0)
    while it is not None and it.gfn < end:
        checkpoint()
        it = tdp_mmu_iter_cond_resched(kvm, it, False, shared)
        if not it.yielded and it.level <= zap_level and is_shadow_present_pte(it.old_spte):
            if not shared:
                tdp_mmu_iter_set_spte(kvm, it, nonpresent)
            else:
                found = tdp_mmu_set_spte_atomic(kvm, it, nonpresent)
                if found is not None:
                    it = it._replace(old_spte=found)
                    del found
                    continue
                del found
        it = tdp_iter_next(kvm, it)


@routine
def tdp_mmu_zap_leafs(kvm: Kvm, root: KvmMmuPage, start: int, end: int, can_yield: bool, flush: bool) -> bool:
    """Zap all leafs of gfns start <= gfn < end; tables stay.

    `flush`: a TLB flush is pending already. Returns whether one is pending afterwards. mmu_lock held for write.
    """
    lockdep_assert_held_write(kvm.mmu_lock)
    nonpresent = kvm.masks.nonpresent
    unused = kvm.design.obeys(SKIP_FLUSH_INVALID) and root.role.invalid
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, start)
    while it is not None and it.gfn < end:
        checkpoint()
        if can_yield:
            it = tdp_mmu_iter_cond_resched(kvm, it, flush, False)
        if it.yielded:
            flush = False
        elif is_shadow_present_pte(it.old_spte) and is_last_spte(it.old_spte, it.level):
            tdp_mmu_iter_set_spte(kvm, it, nonpresent)
            flush = flush or not unused
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    return flush


@routine
def kvm_tdp_mmu_zap_sp(kvm: Kvm, sp: KvmMmuPage) -> bool:
    """Zap the entry that points to the table `sp`; False if that is not possible. Whoever does so flushes. In an RCU
    reader, mmu_lock held for write, so that a table that is known cannot have been zapped."""
    it = _parent_entry(kvm, sp)
    if it is None:
        return False
    present = is_shadow_present_pte(it.old_spte)
    if warn("zap-sp-not-present", not present, f"{sp.name} is to be zapped, but is not linked any more"):
        return False
    tdp_mmu_iter_set_spte(kvm, it, kvm.masks.nonpresent)
    return True


@routine
def kvm_tdp_mmu_zap_possible_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> bool:
    """The same with mmu_lock held for read (v6.18): another task may have zapped or replaced the table meanwhile, and
    then there is nothing to do."""
    it = _parent_entry(kvm, sp)
    if it is None or spte_to_child_pt(it.old_spte, it.level) is not sp:
        return False
    found = tdp_mmu_set_spte_atomic(kvm, it, kvm.masks.nonpresent)
    if found is None:
        return True
    same = spte_to_child_pt(found, it.level) is sp
    warn("zap-sp-changed", same, f"the SPTE of {sp.name} has changed, but still points to it")
    return False


def _parent_entry(kvm: Kvm, sp: KvmMmuPage) -> TdpIter | None:
    """The entry that points, or once pointed, to a table, as a walk that stands there; None for a root."""
    parent, gfn, role = sp.parent, sp.gfn, sp.role
    if warn("zap-sp-root", parent is None, f"{sp.name} is a root: no entry points to it"):
        return None
    assert parent is not None
    table, level = parent[0], role.level + 1
    old_spte = kvm_tdp_mmu_read_spte(kvm, table, gfn, level)
    return TdpIter((table,), gfn, level, old_spte, gfn, gfn, level, role.as_id)
