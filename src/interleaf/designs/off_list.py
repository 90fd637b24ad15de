"""Patch 15 of the series: invalidated roots leave the list of roots for a list of their invalidator's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmVcpu
from interleaf.kvm.request import kvm_reload_remote_mmus
from interleaf.kvm.shadow import kvm_zap_obsolete_pages
from interleaf.kvm.tdp import roots, tdp_mmu
from interleaf.kvm.tdp.changed import tdp_mmu_free_sp_rcu_callback
from interleaf.kvm.tdp.link import tdp_mmu_alloc_sp
from interleaf.kvm.tdp.references import root_invalidated, takes_reference, walk_restarts
from interleaf.kvm.trace import trace_kvm_mmu_zap_all_fast
from interleaf.kvm.zap import ZAP_ALL_SLOTS_LOCK
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import (
    INIT_LIST_HEAD,
    list_add,
    list_add_rcu,
    list_del,
    list_del_rcu,
    list_for_each_entry,
    list_for_each_entry_safe,
    list_head,
    list_move_tail,
)
from interleaf.linux.lockdep import (
    lockdep_assert_held,
    lockdep_assert_held_read,
    lockdep_assert_held_write,
)
from interleaf.linux.rcu import call_rcu
from interleaf.linux.refcount import refcount_dec_and_test, refcount_inc, refcount_inc_not_zero, refcount_set
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import Embedded, Object, current_task, exercise, free, new, routine, say, warn

from .series_v1 import SERIES_V1
from .zap_gfn_range import zap_whole_root

PATCH = "20211120045046.3940942-16-seanjc@google.com"

PLAIN_LIST_ADD = rule(
    "plain-list-add",
    "A new root is put on the list by a plain list_add, because mmu_lock held for write keeps readers out.",
    PATCH,
)
RCU_LIST_DEL = rule(
    "rcu-list-del",
    "A root whose last reference is put leaves the list by list_del_rcu, because a walk may be looking at it for the "
    "next root.",
    PATCH,
)
INVALIDATE_TAKES_REFERENCE = rule(
    "invalidate-takes-reference",
    "The invalidator takes a reference on each root, so that no vCPU puts the last one and has to tear the root down.",
    PATCH,
)
INVALIDATE_UNDER_WRITE_LOCK = rule(
    "invalidate-under-write-lock",
    "Roots are moved off the list under mmu_lock held for write, because entries of an RCU list may be deleted under "
    "readers, but not moved.",
    PATCH,
)
SKIP_ZERO_REFCOUNT = rule(
    "skip-zero-refcount-roots",
    "The invalidation skips roots with a reference count of zero, because they are being torn down already.",
    PATCH,
)
SAFE_INVALIDATED_WALK = rule(
    "safe-invalidated-walk",
    "The walk over the invalidated roots finds the next root before it puts the current one, which may be freed by "
    "that.",
    PATCH,
)


class InvalidatedRoots(Object):
    """The list of invalidated roots, on the stack of kvm_mmu_zap_all_fast()."""

    freeable = True
    head = Embedded(list_head)


def kvm_tdp_mmu_get_root(kvm: Kvm, root: KvmMmuPage) -> bool:
    """Take a reference. Invalid roots should only be known to those who have one already."""
    if warn(
        "get-root-invalid",
        root.role.invalid,
        f"{current_task().name} tries to take a reference on {root.name}, which is invalid",
    ):
        return False
    return refcount_inc_not_zero(root.tdp_mmu_root_count)


@routine
def kvm_tdp_mmu_get_vcpu_root_hpa(vcpu: KvmVcpu) -> KvmMmuPage:
    """Find or make a root; the vCPU's reference is the only one on a new root. mmu_lock held for write."""
    kvm, role = vcpu.kvm, vcpu.root_role
    if not kvm.design.obeys(roots.ROOTS_UNDER_READ_LOCK):
        lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if root.role.word == role.word and tdp_mmu.kvm_tdp_mmu_get_root(kvm, root):
            return root
    root = tdp_mmu_alloc_sp(kvm, 0, role)
    refcount_set(root.tdp_mmu_root_count, 1)
    if kvm.design.obeys(PLAIN_LIST_ADD):
        list_add(root.link, kvm.tdp_mmu_roots)
    else:
        spin_lock(kvm.tdp_mmu_pages_lock)
        list_add_rcu(root.link, kvm.tdp_mmu_roots)
        spin_unlock(kvm.tdp_mmu_pages_lock)
    return root


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Put a reference. With the last one the root leaves the list, unless it left when it was invalidated; it is
    zapped, and freed after a grace period."""
    if not refcount_dec_and_test(root.tdp_mmu_root_count):
        return
    if not root.role.invalid:
        spin_lock(kvm.tdp_mmu_pages_lock)
        if kvm.design.obeys(RCU_LIST_DEL):
            list_del_rcu(root.link)
        else:
            list_del(root.link)
        spin_unlock(kvm.tdp_mmu_pages_lock)
        say(f"{root.name} is off the list of roots; {current_task().name} zaps it")
    # No flush: each vCPU flushes when it loads another root. Nothing should be left under an invalid root.
    if zap_whole_root(kvm, root, True, shared):
        warn(
            "put-invalid-root-flush",
            root.role.invalid,
            f"the put of {root.name}, which is invalid, reports a pending flush: it was not zapped, or something was "
            "mapped after that",
        )
    call_rcu(tdp_mmu_free_sp_rcu_callback, root)


@routine
def tdp_mmu_next_root(kvm: Kvm, prev: KvmMmuPage | None, shared: bool, only_valid: bool) -> KvmMmuPage | None:
    """The next root on the list. If `prev` was invalidated meanwhile, it is off the list, and so are all roots that
    were there with it: the walk starts again, and finds newer ones only."""
    lockdep_assert_held(kvm.mmu_lock)
    if prev is not None and prev.role.invalid:
        walk_restarts(kvm, prev)
        say(f"{current_task().name} finds {prev.name} invalid and starts its walk over the roots again")
        tdp_mmu.kvm_tdp_mmu_put_root(kvm, prev, shared)
        prev = None
    return roots.tdp_mmu_next_root(kvm, prev, shared, only_valid)


@routine
def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm, invalidated_roots: list_head) -> None:
    """Make all roots invalid, and move them to the caller's list with a reference for the caller. mmu_lock held for
    write."""
    if kvm.design.obeys(INVALIDATE_UNDER_WRITE_LOCK):
        lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry_safe(kvm.tdp_mmu_roots, KvmMmuPage):
        if not _reference(kvm, root):
            continue
        list_move_tail(root.link, invalidated_roots)
        warn(
            "invalidate-invalid-root",
            root.role.invalid,
            f"{current_task().name} is to invalidate {root.name}, which is invalid already",
        )
        # vCPUs look at it without mmu_lock (is_obsolete_root)
        WRITE_ONCE(root, KvmMmuPage.role, root.role.invalidated())
        root_invalidated(kvm, root)
        say(f"{current_task().name} invalidates {root.name} and moves it to its own list")


def _reference(kvm: Kvm, root: KvmMmuPage) -> bool:
    """The invalidator's reference on a root; False if it is to be skipped."""
    if not kvm.design.obeys(INVALIDATE_TAKES_REFERENCE):
        return True
    if kvm.design.obeys(SKIP_ZERO_REFCOUNT):
        taken = tdp_mmu.kvm_tdp_mmu_get_root(kvm, root)
        if not taken:
            exercise("invalidate-skips-unreferenced-root")
        return taken
    refcount_inc(root.tdp_mmu_root_count)
    takes_reference(root)
    return True


@routine
def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm, invalidated_roots: list_head) -> None:
    """Zap the roots on the caller's list, and put the references that came with them. slots_lock and mmu_lock held,
    the latter for read; it is given up on the way."""
    if kvm.design.obeys(ZAP_ALL_SLOTS_LOCK):
        lockdep_assert_held(kvm.slots_lock)
    lockdep_assert_held_read(kvm.mmu_lock)
    walk: Callable[[list_head, type[KvmMmuPage]], Iterator[KvmMmuPage]] = (
        list_for_each_entry_safe if kvm.design.obeys(SAFE_INVALIDATED_WALK) else list_for_each_entry
    )
    for root in walk(invalidated_roots, KvmMmuPage):
        # No flush: no vCPU can be using an invalid root.
        zap_whole_root(kvm, root, True, True)
        if kvm.design.obeys(INVALIDATE_TAKES_REFERENCE):
            tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, True)


@routine
def kvm_mmu_zap_all_fast(kvm: Kvm) -> None:
    """Invalidate all roots, taking them off the list, and make all vCPUs reload; then zap the roots taken.
    slots_lock held."""
    exclusive = kvm.design.obeys(INVALIDATE_UNDER_WRITE_LOCK)
    on_stack = new(InvalidatedRoots)
    invalidated_roots: Any = on_stack.head
    INIT_LIST_HEAD(invalidated_roots)
    (write_lock if exclusive else read_lock)(kvm.mmu_lock)
    trace_kvm_mmu_zap_all_fast(kvm.mmu_valid_gen)
    kvm.mmu_valid_gen = 1 - kvm.mmu_valid_gen
    tdp_mmu.kvm_tdp_mmu_invalidate_all_roots(kvm, invalidated_roots)
    kvm_reload_remote_mmus(kvm)
    kvm_zap_obsolete_pages(kvm)
    (write_unlock if exclusive else read_unlock)(kvm.mmu_lock)
    read_lock(kvm.mmu_lock)
    tdp_mmu.kvm_tdp_mmu_zap_invalidated_roots(kvm, invalidated_roots)
    read_unlock(kvm.mmu_lock)
    # the caller's stack frame is gone: whoever still uses the list uses freed memory
    free(on_stack)


OFF_LIST = SERIES_V1.derive(
    "off-list",
    "Invalidated roots are taken off the list of roots and zapped from a list of their invalidator's own.",
    (PATCH,),
    obeys=(
        INVALIDATE_TAKES_REFERENCE,
        INVALIDATE_UNDER_WRITE_LOCK,
        PLAIN_LIST_ADD,
        RCU_LIST_DEL,
        SAFE_INVALIDATED_WALK,
        SKIP_ZERO_REFCOUNT,
    ),
    kvm_tdp_mmu_get_root=kvm_tdp_mmu_get_root,
    kvm_tdp_mmu_get_vcpu_root_hpa=kvm_tdp_mmu_get_vcpu_root_hpa,
    kvm_tdp_mmu_put_root=kvm_tdp_mmu_put_root,
    tdp_mmu_next_root=tdp_mmu_next_root,
    kvm_tdp_mmu_invalidate_all_roots=kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_invalidated_roots=kvm_tdp_mmu_zap_invalidated_roots,
    kvm_mmu_zap_all_fast=kvm_mmu_zap_all_fast,
)
