"""Zapping a range, or everything, in all roots, in v6.12 (kernel tdp_mmu.c)."""

from __future__ import annotations

from interleaf.kvm.kvm_host import Kvm, KvmGfnRange
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.runtime import checkpoint, routine

from .tdp_mmu import tdp_mmu_next_root, tdp_mmu_next_root_of
from .zap import tdp_mmu_zap_leafs, tdp_mmu_zap_root


@routine
def kvm_tdp_mmu_unmap_gfn_range(kvm: Kvm, range_: KvmGfnRange, flush: bool) -> bool:
    """Zap the range in all roots of the slot's address space. Invalid roots count: the host wants its pages back
    from wherever they are mapped, and what is still under an invalid root will be zapped, with write-back, later."""
    as_id = range_.slot.as_id
    root = tdp_mmu_next_root_of(kvm, None, as_id, False, False)
    while root is not None:
        checkpoint()
        flush = tdp_mmu_zap_leafs(kvm, root, range_.start, range_.end, range_.may_block, flush)
        root = tdp_mmu_next_root_of(kvm, root, as_id, False, False)
    return flush


@routine
def kvm_tdp_mmu_zap_leafs(kvm: Kvm, start: int, end: int, flush: bool) -> bool:
    """Zap the range in all valid roots; the pages stay where they are, so invalid roots do no harm."""
    lockdep_assert_held_write(kvm.mmu_lock)
    root = tdp_mmu_next_root(kvm, None, False, True)
    while root is not None:
        checkpoint()
        flush = tdp_mmu_zap_leafs(kvm, root, start, end, True, flush)
        root = tdp_mmu_next_root(kvm, root, False, True)
    return flush


@routine
def kvm_tdp_mmu_zap_all(kvm: Kvm) -> None:
    """Zap all roots, those too that a fast zap is working on: everything must be gone when this returns. No flush:
    KVM_RUN cannot be reached any more."""
    lockdep_assert_held_write(kvm.mmu_lock)
    root = tdp_mmu_next_root(kvm, None, False, False)
    while root is not None:
        checkpoint()
        tdp_mmu_zap_root(kvm, root, False)
        root = tdp_mmu_next_root(kvm, root, False, False)
