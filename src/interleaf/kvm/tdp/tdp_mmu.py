"""The interface of the TDP MMU: each function does what the VM's design says (kernel tdp_mmu.h).

Code in `kvm/` and in designs calls these, never a design's function directly. The checks of references and walks
stand here, so that they hold for every design.
"""

from __future__ import annotations

from typing import Any

from interleaf.kvm.kvm_host import Kvm, KvmGfnRange, KvmMmuPage, KvmVcpu
from interleaf.runtime import routine, warn

from .references import (
    gives_back,
    invalidation_begins,
    root_loaded,
    takes_reference,
    teardown_begins,
    teardown_ends,
    walk_begins,
    walk_goes_on,
    walk_reaches,
)


def kvm_mmu_init_tdp_mmu(kvm: Kvm) -> None:
    """Set up the TDP MMU of a new VM."""
    kvm.design.kvm_mmu_init_tdp_mmu(kvm)


def kvm_mmu_uninit_tdp_mmu(kvm: Kvm) -> None:
    """The VM is being destroyed: nothing of its TDP MMU may be left. No lock held; may sleep."""
    kvm.design.kvm_mmu_uninit_tdp_mmu(kvm)


@routine
def kvm_tdp_mmu_get_vcpu_root_hpa(vcpu: KvmVcpu) -> KvmMmuPage:
    """A root for the vCPU's role, with a reference for the vCPU.

    mmu_lock held: for read if the design follows "roots-under-read-lock", else for write.
    """
    root = vcpu.kvm.design.kvm_tdp_mmu_get_vcpu_root_hpa(vcpu)
    root_loaded(vcpu.kvm, root)
    return root


@routine
def kvm_tdp_mmu_get_root(kvm: Kvm, root: KvmMmuPage) -> bool:
    """Take a reference on a root for the running task, if it may be used. mmu_lock held, or tdp_mmu_pages_lock."""
    taken = kvm.design.kvm_tdp_mmu_get_root(kvm, root)
    if taken:
        takes_reference(root)
    return taken


@routine
def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    """Give a reference of the running task, or else of a vCPU, back. mmu_lock held: for read if `shared`, else for
    write.

    Property "vcpu-tears-down-root": a vCPU does not have to zap a root that was invalidated.
    """
    if not gives_back(root):
        kvm.design.kvm_tdp_mmu_put_root(kvm, root, shared)
        return
    teardown_begins()
    kvm.design.kvm_tdp_mmu_put_root(kvm, root, shared)
    zapped = teardown_ends()
    warn(
        "vcpu-tears-down-root",
        zapped > 0,
        f"a vCPU puts the last reference on {root.name}, which was invalidated, and has to zap {zapped} SPTEs itself",
    )


@routine
def tdp_mmu_next_root(kvm: Kvm, prev: KvmMmuPage | None, shared: bool, only_valid: bool) -> KvmMmuPage | None:
    """The next root of a walk over all roots (all valid ones), with a reference; puts the one on `prev`.

    Between two roots the caller may give mmu_lock up. mmu_lock held: for read if `shared`, else for write.
    """
    if prev is None:
        walk_begins(kvm)
    else:
        walk_goes_on(kvm, prev)
    root = kvm.design.tdp_mmu_next_root(kvm, prev, shared, only_valid)
    walk_reaches(root)
    return root


@routine
def tdp_mmu_next_root_of(
    kvm: Kvm, prev: KvmMmuPage | None, as_id: int, shared: bool, only_valid: bool
) -> KvmMmuPage | None:
    """The same for the roots of one address space (for_each_tdp_mmu_root_yield_safe)."""
    root = tdp_mmu_next_root(kvm, prev, shared, only_valid)
    while root is not None and root.role.as_id != as_id:
        root = tdp_mmu_next_root(kvm, root, shared, only_valid)
    return root


@routine
def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm, invalidated_roots: Any = None) -> None:
    """Make all roots unusable. mmu_lock held for write."""
    invalidation_begins(kvm)
    kvm.design.kvm_tdp_mmu_invalidate_all_roots(kvm, invalidated_roots)


def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm, invalidated_roots: Any = None) -> None:
    """Zap the roots that were invalidated. Locks as the design has it."""
    kvm.design.kvm_tdp_mmu_zap_invalidated_roots(kvm, invalidated_roots)


def kvm_mmu_zap_all_fast(kvm: Kvm) -> None:
    """Make all roots unusable and zap them; when it returns, nothing is mapped through them. slots_lock held."""
    kvm.design.kvm_mmu_zap_all_fast(kvm)


def kvm_tdp_mmu_unmap_gfn_range(kvm: Kvm, range_: KvmGfnRange, flush: bool) -> bool:
    """A notifier takes the pages behind a range of gfns away: zap it, in whatever root it is mapped.

    Returns whether a TLB flush is pending, as it is if `flush`. mmu_lock held for write; given up on the way only
    if `range_.may_block`.
    """
    return kvm.design.kvm_tdp_mmu_unmap_gfn_range(kvm, range_, flush)


def kvm_tdp_mmu_zap_leafs(kvm: Kvm, start: int, end: int, flush: bool) -> bool:
    """Zap gfns start <= gfn < end in all roots that can be used. Returns whether a TLB flush is pending.

    mmu_lock held for write; may be given up on the way.
    """
    return kvm.design.kvm_tdp_mmu_zap_leafs(kvm, start, end, flush)


def kvm_tdp_mmu_zap_all(kvm: Kvm) -> None:
    """Zap everything: the address space that the guest's memory comes from goes away. mmu_lock held for write; may
    be given up on the way."""
    kvm.design.kvm_tdp_mmu_zap_all(kvm)
