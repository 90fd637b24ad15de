"""Zapping a range, or everything, in all roots, in v6.12 (kernel tdp_mmu.c)."""

from __future__ import annotations

from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.runtime import checkpoint, routine

from .tdp_mmu import tdp_mmu_next_root, tdp_mmu_next_root_of
from .zap import tdp_mmu_zap_leafs, tdp_mmu_zap_root

UNMAP_INVALID_ROOTS = rule(
    "unmap-sees-invalid-roots",
    "A notifier unmaps from invalid roots, too, and so does the end of the address space: what is left there would be "
    "zapped, with write-back, when the pages are gone.",
    "d62007edf01f",
)
FLUSH_ACROSS_ROOTS = rule(
    "flush-across-roots",
    "A TLB flush that one root has made necessary is still pending after the next one, in which nothing was mapped.",
    "f47e5bbbc92f",
)
FLUSH_BEFORE_YIELD = rule(
    "flush-of-previous-roots-before-yield",
    "A walk that yields in a root flushes what it has zapped in the roots before.",
    "a835429cda91",
)


def carried(kvm: Kvm, flush: bool) -> tuple[bool, bool]:
    """How a pending flush gets past the next root: handed to its walk, which flushes if it yields, or kept aside."""
    flush = flush and kvm.design.obeys(FLUSH_ACROSS_ROOTS)
    handed = flush and kvm.design.obeys(FLUSH_BEFORE_YIELD)
    return handed, flush and not handed


@routine
def kvm_tdp_mmu_unmap_gfn_range(kvm: Kvm, range_: KvmGfnRange, flush: bool) -> bool:
    """Zap the range in all roots of the slot's address space. Invalid roots count: the host wants its pages back
    from wherever they are mapped, and what is still under an invalid root will be zapped, with write-back, later."""
    as_id = range_.slot.as_id
    only_valid = not kvm.design.obeys(UNMAP_INVALID_ROOTS)
    root = tdp_mmu_next_root_of(kvm, None, as_id, False, only_valid)
    while root is not None:
        checkpoint()
        handed, kept = carried(kvm, flush)
        flush = tdp_mmu_zap_leafs(kvm, root, range_.start, range_.end, range_.may_block, handed) or kept
        del handed, kept
        root = tdp_mmu_next_root_of(kvm, root, as_id, False, only_valid)
    return flush


@routine
def kvm_tdp_mmu_zap_leafs(kvm: Kvm, start: int, end: int, flush: bool) -> bool:
    """Zap the range in all valid roots; the pages stay where they are, so invalid roots do no harm."""
    lockdep_assert_held_write(kvm.mmu_lock)
    root = tdp_mmu_next_root(kvm, None, False, True)
    while root is not None:
        checkpoint()
        handed, kept = carried(kvm, flush)
        flush = tdp_mmu_zap_leafs(kvm, root, start, end, True, handed) or kept
        del handed, kept
        root = tdp_mmu_next_root(kvm, root, False, True)
    return flush


@routine
def kvm_tdp_mmu_zap_all(kvm: Kvm) -> None:
    """Zap all roots, those too that a fast zap is working on: everything must be gone when this returns. No flush:
    KVM_RUN cannot be reached any more."""
    lockdep_assert_held_write(kvm.mmu_lock)
    only_valid = not kvm.design.obeys(UNMAP_INVALID_ROOTS)
    root = tdp_mmu_next_root(kvm, None, False, only_valid)
    while root is not None:
        checkpoint()
        tdp_mmu_zap_root(kvm, root, False)
        root = tdp_mmu_next_root(kvm, root, False, only_valid)
