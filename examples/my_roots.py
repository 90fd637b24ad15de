"""A patch of your own, checked before it is written in C.

The idea: whoever puts the last reference on a root zaps it, but leaves it on the list meanwhile, with a reference
of the putter's own, so that notifiers find it when the zap gives mmu_lock up. It needs no worker.

    interleaf check --design examples/my_roots.py:MY_ROOTS

Everything that is not said here is as in the design that it starts from. (Version 3 of the series had this idea, and
this bug: somebody else takes the putter's reference for one of its own.)
"""

from interleaf.designs import SERIES_V1, V5_18
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.tdp.changed import tdp_mmu_free_sp_rcu_callback
from interleaf.kvm.tdp.references import takes_reference
from interleaf.kvm.tdp.tdp_mmu import kvm_tdp_mmu_put_root as put
from interleaf.kvm.tdp.zap import tdp_mmu_zap_root
from interleaf.linux.list import list_del_rcu
from interleaf.linux.rcu import call_rcu
from interleaf.linux.refcount import refcount_dec_and_test, refcount_set
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import routine


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Zap the root when its last reference is put, and put one more to free it."""
    if not refcount_dec_and_test(root.tdp_mmu_root_count):
        return
    if not root.role.invalid:
        root.role = root.role.invalidated()
        refcount_set(root.tdp_mmu_root_count, 1)
        takes_reference(root)  # tells the checker who has that reference
        tdp_mmu_zap_root(kvm, root, shared)
        put(kvm, root, shared)
        return
    spin_lock(kvm.tdp_mmu_pages_lock)
    list_del_rcu(root.link)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    call_rcu(tdp_mmu_free_sp_rcu_callback, root)


MY_ROOTS = V5_18.derive(
    "my-roots",
    "Whoever puts the last reference on a root zaps it while it is still on the list.",
    (),
    kvm_mmu_init_tdp_mmu=SERIES_V1.kvm_mmu_init_tdp_mmu,
    kvm_mmu_uninit_tdp_mmu=SERIES_V1.kvm_mmu_uninit_tdp_mmu,
    kvm_tdp_mmu_put_root=kvm_tdp_mmu_put_root,
    kvm_tdp_mmu_invalidate_all_roots=SERIES_V1.kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_invalidated_roots=SERIES_V1.kvm_tdp_mmu_zap_invalidated_roots,
    kvm_mmu_zap_all_fast=SERIES_V1.kvm_mmu_zap_all_fast,
)
