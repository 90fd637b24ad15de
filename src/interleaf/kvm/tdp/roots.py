"""The life of a root in v6.12 (kernel tdp_mmu.c).

A root has one reference of the TDP MMU itself from its creation until it is invalidated and zapped, and one of
each vCPU and walk that uses it. It is on the list of roots from its creation until its last reference is put,
valid or not, so that notifiers always find what it maps. Roots come and go under mmu_lock held for read, with the
list's changes under tdp_mmu_pages_lock; all of them become invalid at once, under mmu_lock held for write.
"""

from __future__ import annotations

from typing import Any

from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmVcpu
from interleaf.kvm.request import kvm_free_obsolete_remote_roots
from interleaf.kvm.shadow import kvm_zap_obsolete_pages
from interleaf.kvm.trace import trace_kvm_mmu_zap_all_fast
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import (
    INIT_LIST_HEAD,
    list_add_rcu,
    list_del_rcu,
    list_empty,
    list_first_or_null_rcu,
    list_for_each_entry,
    list_next_or_null_rcu,
)
from interleaf.linux.lockdep import lockdep_assert_held, lockdep_assert_held_write
from interleaf.linux.rcu import call_rcu, rcu_barrier, rcu_read_lock, rcu_read_unlock
from interleaf.linux.refcount import refcount_dec_and_test, refcount_inc_not_zero, refcount_set, refcount_t
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import Memory, checkpoint, current_task, operation, routine, say, warn

from . import tdp_mmu
from .changed import tdp_mmu_free_sp_rcu_callback
from .ghost import TDP_MMU
from .link import tdp_mmu_alloc_sp
from .references import hands_over, pages_left, root_invalidated, takes_reference, walk_ends
from .zap import tdp_mmu_zap_root

NEXT_ROOT_RCU = rule(
    "next-root-rcu",
    "The next root is looked for in an RCU reader: a reference on the previous one does not keep the one behind it "
    "from being freed.",
    "c0e64238ac53",
)
ROOTS_UNDER_READ_LOCK = rule(
    "roots-under-read-lock",
    "Roots are made and freed under mmu_lock held for read, instead of for write.",
    "dab285e4ec73",
)


def kvm_mmu_init_tdp_mmu(kvm: Kvm) -> None:
    """The list of roots is empty."""
    INIT_LIST_HEAD(kvm.tdp_mmu_roots)


@routine
def kvm_mmu_uninit_tdp_mmu(kvm: Kvm) -> None:
    """Give up the TDP MMU's references, and expect that nothing is left. Property I12."""
    tdp_mmu.kvm_tdp_mmu_invalidate_all_roots(kvm)
    tdp_mmu.kvm_tdp_mmu_zap_invalidated_roots(kvm)
    expect_nothing_left(kvm)


@routine
def expect_nothing_left(kvm: Kvm) -> None:
    """The VM is destroyed: no table and no root of it is left (I12), and those being freed are freed now."""
    pages = pages_left(kvm)
    warn("I12", pages != 0, f"the VM is destroyed, and {pages} of its page tables are left: they are never freed")
    roots = not list_empty(kvm.tdp_mmu_roots)
    warn("I12", roots, "the VM is destroyed, and its list of roots is not empty: they are never freed")
    rcu_barrier()


@routine
def kvm_tdp_mmu_get_vcpu_root_hpa(vcpu: KvmVcpu) -> KvmMmuPage:
    """Find or make a root (kvm_tdp_mmu_alloc_root). mmu_lock held for read."""
    kvm, role = vcpu.kvm, vcpu.root_role
    # Most often the root is there; look for it before taking a lock that other vCPUs want.
    root = tdp_mmu.tdp_mmu_next_root(kvm, None, True, True)
    while root is not None:
        checkpoint()
        if root.role.word == role.word:
            walk_ends()
            return root
        root = tdp_mmu.tdp_mmu_next_root(kvm, root, True, True)
    spin_lock(kvm.tdp_mmu_pages_lock)
    root = _find_or_add(kvm, vcpu)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    return root


@routine
def _find_or_add(kvm: Kvm, vcpu: KvmVcpu) -> KvmMmuPage:
    """Look again, with nobody else adding a root, and add one. tdp_mmu_pages_lock held."""
    role = vcpu.root_role
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if root.role.word == role.word:
            taken = tdp_mmu.kvm_tdp_mmu_get_root(kvm, root)
            if not warn(
                "valid-root-unreferenced",
                not taken,
                f"{root.name} is valid, but its reference count is 0: the last reference may only be put after the "
                "root was invalidated",
            ):
                return root
    root = tdp_mmu_alloc_sp(kvm, 0, role)
    # one reference for the vCPU, and one for the TDP MMU
    refcount_set(root.tdp_mmu_root_count, 2)
    takes_reference(root, TDP_MMU)
    list_add_rcu(root.link, kvm.tdp_mmu_roots)
    return root


def kvm_tdp_mmu_get_root(kvm: Kvm, root: KvmMmuPage) -> bool:
    """Take a reference unless the count is 0, valid or not."""
    return refcount_inc_not_zero(root.tdp_mmu_root_count)


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Put a reference; with the last one the root leaves the list, and is freed after a grace period."""
    if not refcount_dec_and_test(root.tdp_mmu_root_count):
        return
    warn(
        "put-valid-root",
        not root.role.invalid,
        f"the last reference on {root.name} is put although it is valid: the TDP MMU's own should still be there",
    )
    spin_lock(kvm.tdp_mmu_pages_lock)
    list_del_rcu(root.link)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    call_rcu(tdp_mmu_free_sp_rcu_callback, root)


@routine
def tdp_mmu_next_root(kvm: Kvm, prev: KvmMmuPage | None, shared: bool, only_valid: bool) -> KvmMmuPage | None:
    """The next root on the list on which a reference can be taken."""
    lockdep_assert_held(kvm.mmu_lock)
    protected = not kvm.design.obeys(NEXT_ROOT_RCU)
    if not protected:
        rcu_read_lock()
    root = step_root(kvm, prev, protected)
    while root is not None:
        if not (only_valid and root.role.invalid) and tdp_mmu.kvm_tdp_mmu_get_root(kvm, root):
            break
        root = step_root(kvm, root, protected)
    if not protected:
        rcu_read_unlock()
    if prev is not None:
        tdp_mmu.kvm_tdp_mmu_put_root(kvm, prev, shared)
    return root


def step_root(kvm: Kvm, prev: KvmMmuPage | None, protected: bool) -> KvmMmuPage | None:
    """The root behind `prev` on the list, or the first; `protected`: by something else than an RCU reader."""
    if prev is None:
        return list_first_or_null_rcu(kvm.tdp_mmu_roots, KvmMmuPage, protected)
    return list_next_or_null_rcu(kvm.tdp_mmu_roots, prev.link, KvmMmuPage, protected)


def expect_write_lock_or_last_user(kvm: Kvm) -> None:
    """mmu_lock is held for write, or the VM is being destroyed, with nobody left who could make a root."""
    if _in_use(kvm):
        lockdep_assert_held_write(kvm.mmu_lock)


@operation(marked=False)
def _in_use(memory: Memory, kvm: Kvm) -> bool:
    # for the assertion only: no kernel decides anything by it
    return bool(memory.look(refcount_t.refs.cell(kvm.users_count)))


@routine
def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Make all roots invalid, to be zapped by kvm_tdp_mmu_zap_invalidated_roots(). mmu_lock held for write, unless
    nobody uses the VM any more."""
    expect_write_lock_or_last_user(kvm)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        # A root may be invalid already, if a task has kept a reference since an earlier invalidation.
        if not root.role.invalid:
            root.tdp_mmu_scheduled_root_to_zap = True
            # vCPUs look at it without mmu_lock (is_obsolete_root)
            WRITE_ONCE(root, KvmMmuPage.role, root.role.invalidated())
            root_invalidated(kvm, root)
            say(f"{current_task().name} invalidates {root.name}")


@routine
def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Zap the roots that were invalidated, each once, and put the TDP MMU's references. No mmu_lock held."""
    read_lock(kvm.mmu_lock)
    root = tdp_mmu.tdp_mmu_next_root(kvm, None, True, False)
    while root is not None:
        checkpoint()
        if root.tdp_mmu_scheduled_root_to_zap:
            root.tdp_mmu_scheduled_root_to_zap = False
            warn("zap-valid-root", not root.role.invalid, f"{root.name} is to be zapped, but it is valid")
            tdp_mmu_zap_root(kvm, root, True)
            # only now: as long as anything is mapped, notifiers must find the root on the list
            hands_over(root, TDP_MMU, None)
            tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, True)
        root = tdp_mmu.tdp_mmu_next_root(kvm, root, True, False)
    read_unlock(kvm.mmu_lock)


@routine
def kvm_mmu_zap_all_fast(kvm: Kvm) -> None:
    """Invalidate all roots and make all vCPUs get rid of them, in one go; then zap at leisure. slots_lock held."""
    write_lock(kvm.mmu_lock)
    trace_kvm_mmu_zap_all_fast(kvm.mmu_valid_gen)
    kvm.mmu_valid_gen = 1 - kvm.mmu_valid_gen
    tdp_mmu.kvm_tdp_mmu_invalidate_all_roots(kvm)
    # in the same critical section, so that whoever holds mmu_lock sees invalid roots and the request, or neither
    kvm_free_obsolete_remote_roots(kvm)
    kvm_zap_obsolete_pages(kvm)
    write_unlock(kvm.mmu_lock)
    tdp_mmu.kvm_tdp_mmu_zap_invalidated_roots(kvm)
