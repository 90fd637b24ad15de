"""Version 3 of the series (26 February 2022): the last put makes the root invalid and zaps it on the list, with a
reference of its own, which whoever zaps the invalidated roots takes for one that it was given. Notifiers begin each
root as if there were no flush pending from the one before."""

from __future__ import annotations

from typing import Any

from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.shadow import ZAPPED_ROOT_REQUEST
from interleaf.kvm.tdp import tdp_mmu
from interleaf.kvm.tdp.changed import XCHG_VOLATILE, tdp_mmu_free_sp_rcu_callback
from interleaf.kvm.tdp.references import root_invalidated, takes_reference
from interleaf.kvm.tdp.unmap import FLUSH_ACROSS_ROOTS, FLUSH_BEFORE_YIELD
from interleaf.kvm.tdp.zap import MAX_GFN_OF_ARCHITECTURE, tdp_mmu_zap_root
from interleaf.linux.list import list_del_rcu
from interleaf.linux.lockdep import lockdep_assert_held_read
from interleaf.linux.rcu import call_rcu, rcu_read_lock, rcu_read_unlock
from interleaf.linux.refcount import refcount_dec_and_test, refcount_set
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import checkpoint, routine

from .series_v1 import SERIES_V1, next_invalidated_root
from .v5_18 import V5_18, tdp_mmu_mark_root_invalid


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Put a reference. With the last one on a valid root, the root gets a new one, is zapped, and that is put; with
    the last one on an invalid root, it leaves the list."""
    if not refcount_dec_and_test(root.tdp_mmu_root_count):
        return
    if not tdp_mmu_mark_root_invalid(root):
        root_invalidated(kvm, root)
        refcount_set(root.tdp_mmu_root_count, 1)
        takes_reference(root)
        tdp_mmu_zap_root(kvm, root, shared)
        tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, shared)
        return
    spin_lock(kvm.tdp_mmu_pages_lock)
    list_del_rcu(root.link)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    call_rcu(tdp_mmu_free_sp_rcu_callback, root)


@routine
def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm, invalidated_roots: Any) -> None:
    """Zap all invalid roots, and put a reference on each. mmu_lock held for read; given up on the way."""
    lockdep_assert_held_read(kvm.mmu_lock)
    rcu_read_lock()
    root = next_invalidated_root(kvm, None)
    while root is not None:
        checkpoint()
        following = next_invalidated_root(kvm, root)
        rcu_read_unlock()
        tdp_mmu_zap_root(kvm, root, True)
        tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, True)
        root = following
        del following
        rcu_read_lock()
    rcu_read_unlock()


SERIES_V3 = V5_18.derive(
    "series-v3",
    "The last put of a root zaps it while it is on the list, with a reference that the zapper of invalidated roots "
    "puts, too.",
    ("20220226001546.360188-1-seanjc@google.com",),
    drops=(
        FLUSH_ACROSS_ROOTS,
        FLUSH_BEFORE_YIELD,
        MAX_GFN_OF_ARCHITECTURE,
        XCHG_VOLATILE,
        ZAPPED_ROOT_REQUEST,
    ),
    kvm_mmu_init_tdp_mmu=SERIES_V1.kvm_mmu_init_tdp_mmu,
    kvm_mmu_uninit_tdp_mmu=SERIES_V1.kvm_mmu_uninit_tdp_mmu,
    kvm_tdp_mmu_put_root=kvm_tdp_mmu_put_root,
    kvm_tdp_mmu_invalidate_all_roots=SERIES_V1.kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_invalidated_roots=kvm_tdp_mmu_zap_invalidated_roots,
    kvm_mmu_zap_all_fast=SERIES_V1.kvm_mmu_zap_all_fast,
)
