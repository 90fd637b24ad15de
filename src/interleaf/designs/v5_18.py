"""v5.18 (to v6.3): a root whose last reference is put is made invalid and stays on the list until a worker has
zapped it; all SPTEs of invalid roots are visible to notifiers."""

from __future__ import annotations

from typing import Any

from interleaf.kvm.dirty_protect import ENABLE_LOG_FLUSHES
from interleaf.kvm.hugepage import ADJUST_CHECKS_DISALLOWED
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmVcpu
from interleaf.kvm.mmu import CR0_WP_KEEPS_ROOTS, FREE_OBSOLETE_CHECKS_EACH
from interleaf.kvm.nx_huge_page import NX_DISALLOWED_BEFORE_LINK, NX_TRACK_RECHECK
from interleaf.kvm.nx_recovery import NX_SKIPS_DIRTY_LOGGED
from interleaf.kvm.page_fault import FULL_MMU_SEQ
from interleaf.kvm.paging_tmpl import CHILD_ROLE_FROM_PARENT
from interleaf.kvm.shadow import RECLAIM_FOR_LEGACY_ONLY
from interleaf.kvm.tdp import tdp_mmu
from interleaf.kvm.tdp.age import AGE_CLEARS_ACCESSED
from interleaf.kvm.tdp.changed import tdp_mmu_free_sp_rcu_callback
from interleaf.kvm.tdp.collapse import COLLAPSE_PARENTS
from interleaf.kvm.tdp.dirty import CLEAR_DIRTY_ATOMIC, CLEAR_DIRTY_BY_ROOT
from interleaf.kvm.tdp.ghost import WORK
from interleaf.kvm.tdp.map import MAP_LEVEL_GUARD, SPLIT_ON_FAULT
from interleaf.kvm.tdp.references import hands_over, root_invalidated, takes_reference
from interleaf.kvm.tdp.roots import expect_nothing_left
from interleaf.kvm.zap import ZAP_RANGE_UNIT
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import list_del_rcu, list_for_each_entry
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.rcu import call_rcu
from interleaf.linux.refcount import refcount_dec_and_test, refcount_set
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.linux.workqueue import destroy_workqueue
from interleaf.runtime import Memory, current_task, operation, routine, say, warn

from .v6_4 import INVALIDATE_IN_RCU, V6_4, find_or_add_root, tdp_mmu_schedule_zap_root


@routine
def kvm_mmu_uninit_tdp_mmu(kvm: Kvm) -> None:
    """Wait for the worker, and expect that nothing is left."""
    wq = kvm.tdp_mmu_zap_wq
    assert wq is not None
    destroy_workqueue(wq)
    expect_nothing_left(kvm)


@routine
def kvm_tdp_mmu_get_vcpu_root_hpa(vcpu: KvmVcpu) -> KvmMmuPage:
    """Find or make a root; the vCPU's reference is the only one on a new root. mmu_lock held for write."""
    return find_or_add_root(vcpu, 1)


@operation(
    focus=KvmMmuPage.role.cell,
    words=lambda root, was: f"finds {root.name} invalid already" if was else f"makes {root.name} invalid",
)
def tdp_mmu_mark_root_invalid(memory: Memory, root: KvmMmuPage) -> bool:
    """Set role.invalid (xchg of the role word); was it set before?"""
    role = memory.load(root, KvmMmuPage.role)
    if not role.invalid:
        memory.store(root, KvmMmuPage.role, role.invalidated())
    return bool(role.invalid)


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Put a reference. With the last one on a valid root, the root gets a new one, for the worker that zaps it;
    with the last one on an invalid root, which is zapped, it leaves the list."""
    if not refcount_dec_and_test(root.tdp_mmu_root_count):
        return
    if tdp_mmu_mark_root_invalid(root):
        spin_lock(kvm.tdp_mmu_pages_lock)
        list_del_rcu(root.link)
        spin_unlock(kvm.tdp_mmu_pages_lock)
        call_rcu(tdp_mmu_free_sp_rcu_callback, root)
        return
    # Readers take no reference on a root that is invalid or has none, and writers are kept out by mmu_lock, so
    # nobody notices that the count was 0.
    root_invalidated(kvm, root)
    refcount_set(root.tdp_mmu_root_count, 1)
    takes_reference(root, WORK)
    tdp_mmu_schedule_zap_root(kvm, root)


@routine
def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Make all roots invalid that are not yet, each with a reference for the worker. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        # One that is invalid already has its work queued: queueing it twice would lose a reference.
        if root.role.invalid:
            continue
        taken = tdp_mmu.kvm_tdp_mmu_get_root(kvm, root)
        if warn("valid-root-unreferenced", not taken, f"{root.name} is valid and on the list without a reference"):
            continue
        # vCPUs look at it without mmu_lock (is_obsolete_root)
        WRITE_ONCE(root, KvmMmuPage.role, root.role.invalidated())
        root_invalidated(kvm, root)
        say(f"{current_task().name} invalidates {root.name}")
        hands_over(root, None, WORK)
        tdp_mmu_schedule_zap_root(kvm, root)


V5_18 = V6_4.derive(
    "v5.18",
    "A root that nobody uses, or that was invalidated, stays on the list until a worker has zapped it.",
    (
        "22b94c4b63eb",
        "8351779ce65f",
        "1b6043e8e584",
        "efd995dae5eb",
        "d62007edf01f",
        "04dc4e6ce274",
        "83b83a02073e",
        "f47e5bbbc92f",
        "bd29677952fa",
        "bb95dfb9e2df",
        "ba3a6120a4e7",
    ),
    # until 5982a5392663 (v6.4) each SPTE was asked, which knew what its root needs
    obeys=(CLEAR_DIRTY_BY_ROOT,),
    drops=(
        FREE_OBSOLETE_CHECKS_EACH,
        CHILD_ROLE_FROM_PARENT,
        RECLAIM_FOR_LEGACY_ONLY,
        ADJUST_CHECKS_DISALLOWED,
        AGE_CLEARS_ACCESSED,
        CLEAR_DIRTY_ATOMIC,
        COLLAPSE_PARENTS,
        CR0_WP_KEEPS_ROOTS,
        ENABLE_LOG_FLUSHES,
        FULL_MMU_SEQ,
        INVALIDATE_IN_RCU,
        MAP_LEVEL_GUARD,
        NX_DISALLOWED_BEFORE_LINK,
        NX_SKIPS_DIRTY_LOGGED,
        NX_TRACK_RECHECK,
        SPLIT_ON_FAULT,
        ZAP_RANGE_UNIT,
    ),
    fault_event_names_vcpu=False,
    kvm_mmu_uninit_tdp_mmu=kvm_mmu_uninit_tdp_mmu,
    kvm_tdp_mmu_get_vcpu_root_hpa=kvm_tdp_mmu_get_vcpu_root_hpa,
    kvm_tdp_mmu_put_root=kvm_tdp_mmu_put_root,
    kvm_tdp_mmu_invalidate_all_roots=kvm_tdp_mmu_invalidate_all_roots,
)
