"""The walk of the notifiers that neither yield nor zap: every root, valid or not, without references on it.

(kernel tdp_mmu.c, kvm_tdp_mmu_handle_gfn, v5.13 to v6.14; __kvm_tdp_mmu_age_gfn_range from v6.15)
"""

from __future__ import annotations

from collections.abc import Callable

from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange, KvmMmuPage
from interleaf.linux.list import list_for_each_entry
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import Value, routine

RCU_PER_ROOT = rule(
    "rcu-per-root",
    "Notifiers that walk all roots without yielding leave their RCU reader after each.",
    "a151aceca1e4",
)


@routine
def kvm_tdp_mmu_handle_gfn(
    kvm: Kvm,
    range_: KvmGfnRange,
    handler: Callable[[Kvm, KvmMmuPage, KvmGfnRange, Value], bool],
    argument: Value,
) -> bool:
    """Call `handler(kvm, root, range, argument)`, in an RCU reader, for each root of the slot's address space; did any
    return True? mmu_lock held for write, which keeps the roots from being freed."""
    lockdep_assert_held_write(kvm.mmu_lock)
    per_root = kvm.design.obeys(RCU_PER_ROOT)
    found = False
    if not per_root:
        rcu_read_lock()
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if root.role.as_id != range_.slot.as_id:
            continue
        if per_root:
            rcu_read_lock()
        found = handler(kvm, root, range_, argument) or found
        if per_root:
            rcu_read_unlock()
    if not per_root:
        rcu_read_unlock()
    return found
