"""v6.4 and v6.5: the TDP MMU has a reference of its own on each root, which it gives to the worker that zaps it."""

from __future__ import annotations

from typing import Any

from interleaf.kvm.attributes import MEMORY_ATTRIBUTES
from interleaf.kvm.design import rule
from interleaf.kvm.dirty_protect import CLEAR_SPLITS_LAST
from interleaf.kvm.invalidate import INVALIDATE_NAMES_GFNS
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmVcpu
from interleaf.kvm.page_fault import RETRY_BEFORE_LOCK, STALE_CHECK_AFTER_RECLAIM
from interleaf.kvm.prefault import PRE_FAULT_MEMORY
from interleaf.kvm.tdp import roots, tdp_mmu
from interleaf.kvm.tdp.change_pte import CHANGE_PTE, CHANGE_PTE_BATCHES, ZAP_BEFORE_CHANGE
from interleaf.kvm.tdp.changed import DEFERRED_BOOKKEEPING
from interleaf.kvm.tdp.dirty import CLEAR_DIRTY_BY_ROOT
from interleaf.kvm.tdp.ghost import TDP_MMU, WORK
from interleaf.kvm.tdp.link import tdp_mmu_alloc_sp
from interleaf.kvm.tdp.references import hands_over, root_invalidated, takes_reference
from interleaf.kvm.tdp.split import SPLIT_ALLOCATES_UNLOCKED
from interleaf.kvm.tdp.unmap import carried
from interleaf.kvm.tdp.wrprot import WRPROT_VALID_ROOTS
from interleaf.kvm.tdp.zap import SKIP_FLUSH_INVALID, ZAP_SMALL_FIRST, tdp_mmu_zap_leafs, tdp_mmu_zap_root
from interleaf.kvm.zap import SLOT_ZAP_QUIRK
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import list_add_rcu, list_for_each_entry, list_for_each_entry_rcu
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.refcount import refcount_set
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.linux.workqueue import (
    INIT_WORK,
    alloc_workqueue,
    destroy_workqueue,
    flush_workqueue,
    queue_work,
    work_struct,
)
from interleaf.runtime import checkpoint, container_of, current_task, routine, say

from .v6_12 import V6_12

INVALIDATE_IN_RCU = rule(
    "invalidate-in-rcu",
    "Roots are invalidated in an RCU reader, because a VM is destroyed without mmu_lock, and the worker may free a "
    "root before the walk leaves it.",
    "edbdb43fc96b",
    removed="0df9dab891ff",
)


@routine
def kvm_mmu_init_tdp_mmu_wq(kvm: Kvm) -> None:
    """The list of roots is empty, and there is a work queue."""
    kvm.tdp_mmu_zap_wq = alloc_workqueue("kvm")
    roots.kvm_mmu_init_tdp_mmu(kvm)


@routine
def kvm_mmu_uninit_tdp_mmu(kvm: Kvm) -> None:
    """Give up the TDP MMU's references, wait for the worker, and expect that nothing is left."""
    tdp_mmu.kvm_tdp_mmu_invalidate_all_roots(kvm)
    wq = kvm.tdp_mmu_zap_wq
    assert wq is not None
    destroy_workqueue(wq)
    roots.expect_nothing_left(kvm)


@routine
def find_or_add_root(vcpu: KvmVcpu, references: int) -> KvmMmuPage:
    """Find a root, or make one with so many references. mmu_lock held for write."""
    kvm, role = vcpu.kvm, vcpu.root_role
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if root.role.word == role.word and tdp_mmu.kvm_tdp_mmu_get_root(kvm, root):
            return root
    root = tdp_mmu_alloc_sp(kvm, 0, role)
    refcount_set(root.tdp_mmu_root_count, references)
    spin_lock(kvm.tdp_mmu_pages_lock)
    list_add_rcu(root.link, kvm.tdp_mmu_roots)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    if references > 1:
        takes_reference(root, TDP_MMU)
    return root


@routine
def kvm_tdp_mmu_get_vcpu_root_hpa(vcpu: KvmVcpu) -> KvmMmuPage:
    """Find or make a root; a new one has a reference for the vCPU, and one for the TDP MMU. mmu_lock held for
    write."""
    return find_or_add_root(vcpu, 2)


@routine
def tdp_mmu_schedule_zap_root(kvm: Kvm, root: KvmMmuPage) -> None:
    """Have the root zapped by a worker, to which the caller gives a reference. mmu_lock held."""
    wq = kvm.tdp_mmu_zap_wq
    assert wq is not None
    root.tdp_mmu_async_data = kvm
    INIT_WORK(root.tdp_mmu_async_work, tdp_mmu_zap_root_work)
    queue_work(wq, root.tdp_mmu_async_work)


@routine
def tdp_mmu_zap_root_work(work: work_struct) -> None:
    """Zap a root and put the reference that came with the work."""
    root = container_of(work, KvmMmuPage)
    kvm = root.tdp_mmu_async_data
    assert kvm is not None
    hands_over(root, WORK, None)
    read_lock(kvm.mmu_lock)
    # No flush: no vCPU uses the root, and each flushes when it loads another one.
    tdp_mmu_zap_root(kvm, root, True)
    tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, True)
    read_unlock(kvm.mmu_lock)


@routine
def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Make all roots invalid that are not yet, and give the TDP MMU's reference on each to the worker. mmu_lock held
    for write, unless nobody uses the VM any more."""
    roots.expect_write_lock_or_last_user(kvm)
    protected = not kvm.design.obeys(INVALIDATE_IN_RCU)
    if not protected:
        rcu_read_lock()
    for root in list_for_each_entry_rcu(kvm.tdp_mmu_roots, KvmMmuPage, protected):
        if root.role.invalid:
            continue
        # vCPUs look at it without mmu_lock (is_obsolete_root)
        WRITE_ONCE(root, KvmMmuPage.role, root.role.invalidated())
        root_invalidated(kvm, root)
        say(f"{current_task().name} invalidates {root.name}")
        hands_over(root, TDP_MMU, WORK)
        tdp_mmu_schedule_zap_root(kvm, root)
    if not protected:
        rcu_read_unlock()


@routine
def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Wait until all invalid roots are zapped, whoever has made them invalid. No mmu_lock held; sleeps."""
    wq = kvm.tdp_mmu_zap_wq
    assert wq is not None
    flush_workqueue(wq)


@routine
def kvm_tdp_mmu_zap_leafs(kvm: Kvm, start: int, end: int, flush: bool) -> bool:
    """Zap the range in all roots, invalid or not."""
    root = tdp_mmu.tdp_mmu_next_root(kvm, None, False, False)
    while root is not None:
        checkpoint()
        handed, kept = carried(kvm, flush)
        flush = tdp_mmu_zap_leafs(kvm, root, start, end, True, handed) or kept
        del handed, kept
        root = tdp_mmu.tdp_mmu_next_root(kvm, root, False, False)
    return flush


V6_4 = V6_12.derive(
    "v6.4",
    "The TDP MMU keeps each root until it is invalidated, and then gives its reference to a worker.",
    ("edbdb43fc96b",),
    obeys=(
        CHANGE_PTE,
        CHANGE_PTE_BATCHES,
        INVALIDATE_IN_RCU,
        ZAP_BEFORE_CHANGE,
    ),
    drops=(
        CLEAR_DIRTY_BY_ROOT,
        STALE_CHECK_AFTER_RECLAIM,
        MEMORY_ATTRIBUTES,
        PRE_FAULT_MEMORY,
        CLEAR_SPLITS_LAST,
        DEFERRED_BOOKKEEPING,
        INVALIDATE_NAMES_GFNS,
        RETRY_BEFORE_LOCK,
        SKIP_FLUSH_INVALID,
        SLOT_ZAP_QUIRK,
        SPLIT_ALLOCATES_UNLOCKED,
        WRPROT_VALID_ROOTS,
        ZAP_SMALL_FIRST,
        roots.ROOTS_UNDER_READ_LOCK,
    ),
    shadow_nonpresent_value=0,
    removed_spte=0x5A0,
    kvm_mmu_init_tdp_mmu=kvm_mmu_init_tdp_mmu_wq,
    kvm_mmu_uninit_tdp_mmu=kvm_mmu_uninit_tdp_mmu,
    kvm_tdp_mmu_get_vcpu_root_hpa=kvm_tdp_mmu_get_vcpu_root_hpa,
    kvm_tdp_mmu_invalidate_all_roots=kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_invalidated_roots=kvm_tdp_mmu_zap_invalidated_roots,
    kvm_tdp_mmu_zap_leafs=kvm_tdp_mmu_zap_leafs,
)
