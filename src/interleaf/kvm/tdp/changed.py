"""Changing SPTEs, and what follows from a change (kernel tdp_mmu.c, v6.12).

An SPTE is set either *atomically* (mmu_lock held for read: others may be changing it, so the write is a cmpxchg)
or *exclusively* (mmu_lock held for write: only the hardware, and a vCPU's fast path, may change it meanwhile).
Whoever makes a change then does the book-keeping for the value that it has replaced, in `handle_changed_spte`.
"""

from __future__ import annotations

from interleaf.hw.page_table import next_entry, pages_per_entry
from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.nx_huge_page import unaccount_nx_huge_page
from interleaf.kvm.pfn import kvm_set_pfn_accessed, kvm_set_pfn_dirty
from interleaf.kvm.tlb import kvm_flush_remote_tlbs_range
from interleaf.kvm.trace import trace_empty_frozen, trace_kvm_mmu_prepare_zap_page, trace_kvm_tdp_mmu_spte_changed
from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.lockdep import lockdep_assert_held_read, lockdep_assert_held_write
from interleaf.linux.rcu import call_rcu, frees_only
from interleaf.linux.slab import kmem_cache_free
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import checkpoint, routine, warn

from .entries import clear_spte_bits, cmpxchg_spte, kvm_tdp_mmu_read_spte, write_spte, xchg_spte
from .iter import TdpIter, spte_to_child_pt
from .references import page_unlinked
from .spte import (
    check_spte_writable_invariants,
    is_accessed_spte,
    is_dirty_spte,
    is_last_spte,
    is_mmio_spte,
    is_present_leaf,
    is_removed_spte,
    is_shadow_present_pte,
    show_spte,
    spte_has_volatile_bits,
    spte_to_pfn,
)

XCHG_VOLATILE = rule(
    "xchg-volatile-sptes",
    "An exclusive update of a leaf whose A, D or W bit may change at any time is an exchange, so that no such change "
    "is lost.",
    "ba3a6120a4e7",
)
ATOMIC_ZAP_FLUSHES = rule(
    "atomic-zap-flushes",
    "An atomic zap flushes what it has zapped from the TLBs before it lets others fill the entry again.",
    "08f07c800e9d",
    removed="v6.13",
)
REMOVED_PT_FLUSHES = rule(
    "removed-pt-flushes",
    "Whoever removes a table flushes its range from the TLBs at once, instead of leaving that to the caller.",
    "a066e61f13cf",
    removed="bb95dfb9e2df",
)
REMOVED_PT_FLUSH_START = rule(
    "removed-pt-flush-start",
    "The flush for a removed table starts at the first gfn of the table, instead of at the last.",
    "574c3c55e969",
    removed="bb95dfb9e2df",
)
DEFERRED_BOOKKEEPING = rule(
    "freeze-without-bookkeeping",
    "An atomic zap freezes the SPTE first, and does the book-keeping for the old value after the flush.",
    "v6.10",
    removed="v6.13",
)
LEAF_REPLACES_TABLE = rule(
    "leaf-replaces-table",
    "A table is torn down when a leaf takes its place, whether or not the leaf's frame is another than the table's.",
    "c8e5a0d0e9bc",
)
EXCLUSIVE_FROZEN_WARN = rule(
    "warn-frozen-exclusive",
    "An exclusive update expects neither to replace a frozen SPTE, nor to freeze one.",
    "966da62adaf1",
)
ATOMIC_FROZEN_WARN = rule(
    "warn-frozen-atomic",
    "An atomic update of an SPTE that was seen frozen is not only refused, but also reported: nobody should try it.",
    "396fd74d6134",
)


@routine
def tdp_mmu_set_spte_atomic(kvm: Kvm, it: TdpIter, new_spte: int) -> int | None:
    """Replace `it.old_spte` by `new_spte` if nobody else has changed the entry.

    Returns None if it is done, and otherwise the value that the entry has now. In an RCU reader, mmu_lock held
    for read.
    """
    lockdep_assert_held_read(kvm.mmu_lock)
    found = _cmpxchg(kvm, it, new_spte)
    if found is None:
        handle_changed_spte(kvm, it.as_id, it.gfn, it.old_spte, new_spte, it.level, True)
    return found


@routine
def tdp_mmu_zap_spte_atomic(kvm: Kvm, it: TdpIter) -> int | None:
    """Zap an entry that vCPUs may be using: freeze it, flush, and only then let others fill it again.

    Returns None if it is done, and otherwise the value that the entry has now. In an RCU reader, mmu_lock held
    for read.
    """
    lockdep_assert_held_read(kvm.mmu_lock)
    masks, gfn, level = kvm.masks, it.gfn, it.level
    deferred = kvm.design.obeys(DEFERRED_BOOKKEEPING)
    found = _cmpxchg(kvm, it, masks.frozen)
    if found is not None:
        return found
    if not deferred:
        handle_changed_spte(kvm, it.as_id, gfn, it.old_spte, masks.frozen, level, True)
    if kvm.design.obeys(ATOMIC_ZAP_FLUSHES):
        kvm_flush_remote_tlbs_range(kvm, gfn, pages_per_entry(level))
    write_spte(kvm, it.root, it.sp, gfn, level, masks.nonpresent)
    if deferred:
        handle_changed_spte(kvm, it.as_id, gfn, it.old_spte, masks.nonpresent, level, True)
    return None


@routine
def tdp_mmu_iter_set_spte(kvm: Kvm, it: TdpIter, new_spte: int) -> int:
    """Set the entry, with nobody else changing it; returns what it was. In an RCU reader, mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    masks, gfn, level = kvm.masks, it.gfn, it.level
    frozen = is_removed_spte(masks, it.old_spte)
    if kvm.design.obeys(EXCLUSIVE_FROZEN_WARN):
        frozen = frozen or is_removed_spte(masks, new_spte)
    warn(
        "frozen-spte-exclusive",
        frozen,
        f"an SPTE of gfn {gfn:#x} is frozen or unfrozen under mmu_lock held for write, where nobody freezes",
    )
    old_spte = kvm_tdp_mmu_write_spte(kvm, it.root, it.sp, gfn, level, it.old_spte, new_spte)
    handle_changed_spte(kvm, it.as_id, gfn, old_spte, new_spte, level, False)
    return old_spte


@routine
def kvm_tdp_mmu_write_spte(
    kvm: Kvm, root: KvmMmuPage | None, sp: KvmMmuPage, gfn: int, level: int, old_spte: int, new_spte: int
) -> int:
    """Write an entry exclusively; returns the value that it replaces, as far as the design knows it."""
    volatile = is_present_leaf(old_spte, level) and spte_has_volatile_bits(kvm.masks, old_spte)
    if volatile and kvm.design.obeys(XCHG_VOLATILE):
        return int(xchg_spte(kvm, root, sp, gfn, level, new_spte))
    write_spte(kvm, root, sp, gfn, level, new_spte, old_spte)
    return old_spte


@routine
def tdp_mmu_clear_spte_bits(kvm: Kvm, it: TdpIter, mask: int) -> int:
    """Clear bits of a present leaf, without the book-keeping; returns what it really was. In an RCU reader, mmu_lock
    held for write."""
    if spte_has_volatile_bits(kvm.masks, it.old_spte):
        return int(clear_spte_bits(kvm, it.root, it.sp, it.gfn, it.level, mask))
    write_spte(kvm, it.root, it.sp, it.gfn, it.level, it.old_spte & ~mask, it.old_spte)
    return it.old_spte


@routine
def handle_changed_spte(kvm: Kvm, as_id: int, gfn: int, old_spte: int, new_spte: int, level: int, shared: bool) -> None:
    """What follows from the change of an SPTE from `old_spte` to `new_spte`.

    The state of a page that is not mapped any more (or is mapped clean, or old, from now on) is written back to
    the host, and a table that is not pointed to any more is torn down. In an RCU reader, mmu_lock held: for read
    if `shared`, else for write.
    """
    if old_spte == new_spte:
        return
    masks = kvm.masks
    was_present, is_present = is_shadow_present_pte(old_spte), is_shadow_present_pte(new_spte)
    trace_kvm_tdp_mmu_spte_changed(as_id, gfn, level, old_spte, new_spte)
    if not was_present and not is_present:
        _expect_special(kvm, gfn, old_spte, new_spte, level)
        return
    was_leaf = was_present and is_last_spte(old_spte, level)
    is_leaf = is_present and is_last_spte(new_spte, level)
    gone = not is_present or spte_to_pfn(old_spte) != spte_to_pfn(new_spte)
    if is_leaf:
        check_spte_writable_invariants(masks, new_spte)
    if was_leaf:
        if is_dirty_spte(masks, old_spte) and (gone or not is_dirty_spte(masks, new_spte)):
            kvm_set_pfn_dirty(spte_to_pfn(old_spte))
        if is_accessed_spte(masks, old_spte) and (gone or not is_accessed_spte(masks, new_spte)):
            kvm_set_pfn_accessed(spte_to_pfn(old_spte))
        return
    if was_present:
        moved = gone and is_present and not is_leaf
        warn(
            "table-replaced-by-table",
            moved,
            f"the SPTE of gfn {gfn:#x}, level {level}, changes from {show_spte(masks, old_spte, level)} to "
            f"{show_spte(masks, new_spte, level)}"
            if moved
            else "",
        )
        child = spte_to_child_pt(old_spte, level)
        if child is not None and (gone or (is_leaf and kvm.design.obeys(LEAF_REPLACES_TABLE))):
            handle_removed_pt(kvm, as_id, child, gfn, level - 1, shared)


def _expect_special(kvm: Kvm, gfn: int, old_spte: int, new_spte: int, level: int) -> None:
    """An SPTE that maps nothing has changed to another such: only freezing and MMIO SPTEs do that."""
    masks = kvm.masks
    known = is_removed_spte(masks, new_spte) or is_mmio_spte(masks, old_spte) or is_mmio_spte(masks, new_spte)
    warn(
        "nonpresent-spte-change",
        not known,
        f"the SPTE of gfn {gfn:#x}, level {level}, changes from {old_spte:#x} to {new_spte:#x}: neither maps "
        "anything, and the new value is not the frozen one"
        if not known
        else "",
    )


@routine
def tdp_mmu_unlink_sp(kvm: Kvm, sp: KvmMmuPage) -> None:
    """A table has been disconnected from its root: it does not count any more, nor could it be a huge page."""
    page_unlinked(kvm)
    if READ_ONCE(sp, KvmMmuPage.nx_huge_page_disallowed):
        spin_lock(kvm.tdp_mmu_pages_lock)
        unaccount_nx_huge_page(kvm, sp)
        spin_unlock(kvm.tdp_mmu_pages_lock)


@routine
def handle_removed_pt(kvm: Kvm, as_id: int, sp: KvmMmuPage, base_gfn: int, level: int, shared: bool) -> None:
    """Tear down a table, of `level`, that has just been disconnected from its root.

    Others may still be walking in it (RCU), and install entries until each is frozen. The table is freed after a
    grace period. In an RCU reader, mmu_lock held: for read if `shared`, else for write.
    """
    trace_kvm_mmu_prepare_zap_page(sp)
    tdp_mmu_unlink_sp(kvm, sp)
    frozen, size, end = kvm.masks.frozen, pages_per_entry(level), base_gfn + pages_per_entry(level + 1)
    done = base_gfn
    gfn = next_entry(kvm.gfns, base_gfn, end, level)
    while gfn is not None:
        checkpoint()
        if shared:
            trace_empty_frozen(as_id, done, gfn, level, kvm.masks.nonpresent, frozen)
        old_spte = _freeze_child(kvm, sp, gfn, level, shared)
        if old_spte is not None:
            handle_changed_spte(kvm, as_id, gfn, old_spte, frozen, level, shared)
        del old_spte
        done = gfn + size
        gfn = next_entry(kvm.gfns, done, end, level)
    if shared:
        trace_empty_frozen(as_id, done, end, level, kvm.masks.nonpresent, frozen)
    if kvm.design.obeys(REMOVED_PT_FLUSHES):
        start = base_gfn if kvm.design.obeys(REMOVED_PT_FLUSH_START) else end - size
        kvm_flush_remote_tlbs_range(kvm, start, end - base_gfn)
    call_rcu(tdp_mmu_free_sp_rcu_callback, sp)


@routine
def _freeze_child(kvm: Kvm, sp: KvmMmuPage, gfn: int, level: int, shared: bool) -> int | None:
    """Freeze an entry of a disconnected table; returns what it was, or None if there is nothing to do for it."""
    frozen = kvm.masks.frozen
    if not shared:
        old_spte = kvm_tdp_mmu_read_spte(kvm, sp, gfn, level)
        if not is_shadow_present_pte(old_spte):
            return None
        return kvm_tdp_mmu_write_spte(kvm, None, sp, gfn, level, old_spte, frozen)
    while True:
        checkpoint()
        found = xchg_spte(kvm, None, sp, gfn, level, frozen)
        if found != frozen:
            return int(found)
        # somebody else has frozen it and is about to write it: wait for that value
        del found


@frees_only
def tdp_mmu_free_sp_rcu_callback(sp: KvmMmuPage) -> None:
    """A grace period after a table was disconnected, nobody walks in it any more."""
    kmem_cache_free(sp)


def _cmpxchg(kvm: Kvm, it: TdpIter, new_spte: int) -> int | None:
    """__tdp_mmu_set_spte_atomic(): None, or the value found if it is not `it.old_spte`."""
    if is_removed_spte(kvm.masks, it.old_spte):
        warn(
            "frozen-spte-atomic",
            kvm.design.obeys(ATOMIC_FROZEN_WARN),
            f"an SPTE of gfn {it.gfn:#x} that was seen frozen is to be changed: only the task that froze it may do "
            "that",
        )
        return it.old_spte
    found = cmpxchg_spte(kvm, it.root, it.sp, it.gfn, it.level, it.old_spte, new_spte)
    return None if found == it.old_spte else found
