"""The 28-patch series of 19 November 2021, just before its patch 15: the last put takes the root off the list, and
then zaps it, yielding on the way."""

from __future__ import annotations

from typing import Any

from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.request import kvm_reload_remote_mmus
from interleaf.kvm.shadow import ZAPPED_ROOT_REQUEST, kvm_zap_obsolete_pages
from interleaf.kvm.tdp import tdp_mmu
from interleaf.kvm.tdp.changed import (
    ATOMIC_FROZEN_WARN,
    EXCLUSIVE_FROZEN_WARN,
    REMOVED_PT_FLUSH_START,
    REMOVED_PT_FLUSHES,
    XCHG_VOLATILE,
    tdp_mmu_free_sp_rcu_callback,
)
from interleaf.kvm.tdp.iter import ITER_YIELDED
from interleaf.kvm.tdp.link import GET_PAGE_TRACED_AT_LINK
from interleaf.kvm.tdp.map import FROZEN_LEAF_CHECK, REPLACED_TABLE_FLUSH
from interleaf.kvm.tdp.references import root_invalidated, takes_reference
from interleaf.kvm.tdp.roots import expect_nothing_left, kvm_mmu_init_tdp_mmu, step_root
from interleaf.kvm.tdp.split import EAGER_SPLIT
from interleaf.kvm.tdp.unmap import UNMAP_INVALID_ROOTS
from interleaf.kvm.tdp.wrprot import WRPROT_MMU_WRITABLE
from interleaf.kvm.tdp.zap import FLUSH_IN_RCU, MAX_GFN_OF_ARCHITECTURE, ZAP_1G_FIRST
from interleaf.kvm.trace import trace_kvm_mmu_zap_all_fast
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import list_del_rcu, list_for_each_entry
from interleaf.linux.lockdep import lockdep_assert_held_read, lockdep_assert_held_write
from interleaf.linux.rcu import call_rcu, rcu_read_lock, rcu_read_unlock
from interleaf.linux.refcount import refcount_dec_and_test, refcount_inc_not_zero, refcount_read
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import checkpoint, current_task, routine, say

from .v5_18 import V5_18
from .zap_gfn_range import (
    ZAP_ALL_WHOLE,
    kvm_tdp_mmu_unmap_gfn_range,
    kvm_tdp_mmu_zap_all,
    kvm_tdp_mmu_zap_leafs,
    zap_whole_root,
)


def kvm_tdp_mmu_get_root(kvm: Kvm, root: KvmMmuPage) -> bool:
    """Take a reference on a root that is valid and has one."""
    return not root.role.invalid and refcount_inc_not_zero(root.tdp_mmu_root_count)


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Put a reference; with the last one the root leaves the list, is zapped, and freed after a grace period."""
    if not refcount_dec_and_test(root.tdp_mmu_root_count):
        return
    spin_lock(kvm.tdp_mmu_pages_lock)
    list_del_rcu(root.link)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    say(f"{root.name} is off the list of roots; {current_task().name} zaps it")
    # No flush: each vCPU flushes when it loads another root.
    zap_whole_root(kvm, root, True, shared)
    call_rcu(tdp_mmu_free_sp_rcu_callback, root)


@routine
def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Make all roots invalid, and take a reference on each for the caller, so that it does the work of zapping them
    rather than a vCPU. mmu_lock held for write."""
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if refcount_inc_not_zero(root.tdp_mmu_root_count):
            takes_reference(root)
            # vCPUs look at it without mmu_lock (is_obsolete_root)
            WRITE_ONCE(root, KvmMmuPage.role, root.role.invalidated())
            root_invalidated(kvm, root)
            say(f"{current_task().name} invalidates {root.name}")


@routine
def next_invalidated_root(kvm: Kvm, prev: KvmMmuPage | None) -> KvmMmuPage | None:
    """The next root on the list that is invalid and has a reference. In an RCU reader, mmu_lock held for read."""
    root = step_root(kvm, prev, False)
    while root is not None and not (root.role.invalid and refcount_read(root.tdp_mmu_root_count)):
        root = step_root(kvm, root, False)
    return root


@routine
def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Zap all invalid roots, and put the references of kvm_tdp_mmu_invalidate_all_roots(). mmu_lock held for read;
    given up on the way."""
    lockdep_assert_held_read(kvm.mmu_lock)
    rcu_read_lock()
    root = next_invalidated_root(kvm, None)
    while root is not None:
        checkpoint()
        following = next_invalidated_root(kvm, root)
        rcu_read_unlock()
        # No flush: no vCPU can be using an invalid root.
        zap_whole_root(kvm, root, True, True)
        tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, True)
        root = following
        del following
        rcu_read_lock()
    rcu_read_unlock()


@routine
def kvm_mmu_zap_all_fast(kvm: Kvm) -> None:
    """Invalidate all roots and make all vCPUs reload; then zap the invalid roots. slots_lock held."""
    write_lock(kvm.mmu_lock)
    trace_kvm_mmu_zap_all_fast(kvm.mmu_valid_gen)
    kvm.mmu_valid_gen = 1 - kvm.mmu_valid_gen
    tdp_mmu.kvm_tdp_mmu_invalidate_all_roots(kvm)
    kvm_reload_remote_mmus(kvm)
    kvm_zap_obsolete_pages(kvm)
    write_unlock(kvm.mmu_lock)
    read_lock(kvm.mmu_lock)
    tdp_mmu.kvm_tdp_mmu_zap_invalidated_roots(kvm)
    read_unlock(kvm.mmu_lock)


SERIES_V1 = V5_18.derive(
    "series-v1",
    "The last put of a root takes it off the list and then zaps it, giving mmu_lock up on the way.",
    ("20211120045046.3940942-1-seanjc@google.com", "20211120045046.3940942-11-seanjc@google.com"),
    obeys=(GET_PAGE_TRACED_AT_LINK, REMOVED_PT_FLUSHES, REMOVED_PT_FLUSH_START, ZAP_ALL_WHOLE),
    drops=(
        ATOMIC_FROZEN_WARN,
        EAGER_SPLIT,
        EXCLUSIVE_FROZEN_WARN,
        FLUSH_IN_RCU,
        FROZEN_LEAF_CHECK,
        ITER_YIELDED,
        MAX_GFN_OF_ARCHITECTURE,
        REPLACED_TABLE_FLUSH,
        UNMAP_INVALID_ROOTS,
        WRPROT_MMU_WRITABLE,
        XCHG_VOLATILE,
        ZAP_1G_FIRST,
        ZAPPED_ROOT_REQUEST,
    ),
    kvm_mmu_init_tdp_mmu=kvm_mmu_init_tdp_mmu,
    kvm_mmu_uninit_tdp_mmu=expect_nothing_left,
    kvm_tdp_mmu_get_root=kvm_tdp_mmu_get_root,
    kvm_tdp_mmu_put_root=kvm_tdp_mmu_put_root,
    kvm_tdp_mmu_invalidate_all_roots=kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_invalidated_roots=kvm_tdp_mmu_zap_invalidated_roots,
    kvm_mmu_zap_all_fast=kvm_mmu_zap_all_fast,
    kvm_tdp_mmu_unmap_gfn_range=kvm_tdp_mmu_unmap_gfn_range,
    kvm_tdp_mmu_zap_leafs=kvm_tdp_mmu_zap_leafs,
    kvm_tdp_mmu_zap_all=kvm_tdp_mmu_zap_all,
)
