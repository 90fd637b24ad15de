"""v5.18 (to v6.3): a root whose last reference is put is made invalid and stays on the list until a worker has
zapped it; all SPTEs of invalid roots are visible to notifiers."""

from __future__ import annotations

from typing import Any

from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmVcpu
from interleaf.kvm.tdp import tdp_mmu
from interleaf.kvm.tdp.changed import DEFERRED_BOOKKEEPING, tdp_mmu_free_sp_rcu_callback
from interleaf.kvm.tdp.ghost import WORK
from interleaf.kvm.tdp.map import tdp_mmu_alloc_sp
from interleaf.kvm.tdp.references import hands_over, root_invalidated, takes_reference
from interleaf.kvm.tdp.roots import ROOTS_UNDER_READ_LOCK, expect_nothing_left, kvm_mmu_init_tdp_mmu
from interleaf.kvm.tdp.zap import SKIP_FLUSH_INVALID, ZAP_SMALL_FIRST, tdp_mmu_zap_leafs, tdp_mmu_zap_root
from interleaf.linux.list import list_add_rcu, list_del_rcu, list_for_each_entry
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.rcu import call_rcu
from interleaf.linux.refcount import refcount_dec_and_test, refcount_set
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
from interleaf.runtime import Memory, checkpoint, container_of, current_task, operation, routine, say, warn

from .v6_12 import V6_12


@routine
def kvm_mmu_init_tdp_mmu_wq(kvm: Kvm) -> None:
    """The list of roots is empty, and there is a work queue."""
    kvm.tdp_mmu_zap_wq = alloc_workqueue("kvm")
    kvm_mmu_init_tdp_mmu(kvm)


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
    kvm, role = vcpu.kvm, vcpu.root_role
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if root.role.word == role.word and tdp_mmu.kvm_tdp_mmu_get_root(kvm, root):
            return root
    root = tdp_mmu_alloc_sp(kvm, 0, role)
    refcount_set(root.tdp_mmu_root_count, 1)
    spin_lock(kvm.tdp_mmu_pages_lock)
    list_add_rcu(root.link, kvm.tdp_mmu_roots)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    return root


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
    """Make all roots invalid that are not yet, each with a reference for the worker. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        # One that is invalid already has its work queued: queueing it twice would lose a reference.
        if root.role.invalid:
            continue
        taken = tdp_mmu.kvm_tdp_mmu_get_root(kvm, root)
        if warn("valid-root-unreferenced", not taken, f"{root.name} is valid and on the list without a reference"):
            continue
        root.role = root.role.invalidated()
        root_invalidated(kvm, root)
        say(f"{current_task().name} invalidates {root.name}")
        hands_over(root, None, WORK)
        tdp_mmu_schedule_zap_root(kvm, root)


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
        flush = tdp_mmu_zap_leafs(kvm, root, start, end, True, flush)
        root = tdp_mmu.tdp_mmu_next_root(kvm, root, False, False)
    return flush


V5_18 = V6_12.derive(
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
    drops=(DEFERRED_BOOKKEEPING, ROOTS_UNDER_READ_LOCK, SKIP_FLUSH_INVALID, ZAP_SMALL_FIRST),
    shadow_nonpresent_value=0,
    removed_spte=0x5A0,
    kvm_mmu_init_tdp_mmu=kvm_mmu_init_tdp_mmu_wq,
    kvm_mmu_uninit_tdp_mmu=kvm_mmu_uninit_tdp_mmu,
    kvm_tdp_mmu_get_vcpu_root_hpa=kvm_tdp_mmu_get_vcpu_root_hpa,
    kvm_tdp_mmu_put_root=kvm_tdp_mmu_put_root,
    kvm_tdp_mmu_invalidate_all_roots=kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_invalidated_roots=kvm_tdp_mmu_zap_invalidated_roots,
    kvm_tdp_mmu_zap_leafs=kvm_tdp_mmu_zap_leafs,
)
