"""A vCPU's roots: getting one, keeping some for later, giving them back, and noticing that one is obsolete
(arch/x86/kvm/mmu/mmu.c, v6.12).

A vCPU that changes its role (it enters system management mode, or a guest of its guest) needs another root. It keeps
the latest ones, with a reference on each, to come back to them without a lock. The kernel has a second set of roots,
`guest_mmu`, for nested guests that L1 has page tables for; here a vCPU that runs such a guest runs nothing else.
"""

from __future__ import annotations

from interleaf.hw.ept import PFN_SHIFT
from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.lockdep import lock
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.runtime import Memory, Violation, operation, routine, say

from .design import rule
from .kvm_host import KVM_MMU_NUM_PREV_ROOTS, Kvm, KvmMmuPage, KvmMmuPageRole, KvmRequest, KvmVcpu
from .request import kvm_check_request
from .shadow import (
    free_legacy_roots,
    is_obsolete_sp,
    is_tdp_mmu_page,
    kvm_calc_shadow_root_page_role,
    mmu_alloc_shadow_roots,
    to_shadow_page,
)
from .tdp import tdp_mmu
from .tdp.roots import ROOTS_UNDER_READ_LOCK
from .tlb import kvm_flush_tlb_current
from .trace import trace_load_mmu_pgd

FREE_OBSOLETE_CHECKS_EACH = rule(
    "free-obsolete-checks-each",
    "A vCPU that puts its obsolete roots looks at each of its previous roots, instead of at the current one each time.",
    "cf4a8693d97a",
)
RELOAD_FREES_OBSOLETE = rule(
    "reload-frees-obsolete",
    "A vCPU that makes sure that it has a root puts one that is obsolete first, if that was requested.",
    "20a6cff3b283",
)
CR0_WP_KEEPS_ROOTS = rule(
    "cr0-wp-keeps-roots",
    "A guest that changes no more than CR0.WP keeps its roots, which do not depend on it.",
    "01b31714bd90",
)

ALL_PREVIOUS = tuple(range(KVM_MMU_NUM_PREV_ROOTS))


def _lock(kvm: Kvm, direct: bool) -> bool:
    """Take mmu_lock as the design needs it to get and put a vCPU's root, of the TDP MMU (`direct`) or of the legacy
    one; returns whether for read."""
    shared = direct and kvm.design.obeys(ROOTS_UNDER_READ_LOCK)
    if shared:
        read_lock(kvm.mmu_lock)
    else:
        write_lock(kvm.mmu_lock)
    return shared


def _unlock(kvm: Kvm, shared: bool) -> None:
    if shared:
        read_unlock(kvm.mmu_lock)
    else:
        write_unlock(kvm.mmu_lock)


def kvm_calc_tdp_mmu_root_page_role(kvm: Kvm, smm: bool = False, guest_mode: bool = False) -> KvmMmuPageRole:
    """The role of the root that a vCPU needs, by the mode that it is in."""
    return KvmMmuPageRole(
        level=kvm.platform.levels, ad_disabled=not kvm.platform.ad_bits, guest_mode=guest_mode, smm=int(smm)
    )


@routine
def kvm_init_mmu(vcpu: KvmVcpu) -> None:
    """The vCPU's mode has changed, and so may the role of the root that it needs. Does not change the root."""
    if vcpu.nested_levels:
        vcpu.root_role = kvm_calc_shadow_root_page_role(vcpu.kvm, vcpu.nested_levels)
    else:
        vcpu.root_role = kvm_calc_tdp_mmu_root_page_role(vcpu.kvm, vcpu.smm, vcpu.guest_mode)


@routine
def kvm_mmu_load(vcpu: KvmVcpu) -> None:
    """Get a root, with a reference, and flush the vCPU's TLB, which may have entries of a root at the same place.

    The vCPU has none. No mmu_lock held; sleeps.
    """
    kvm, direct = vcpu.kvm, vcpu.root_role.direct
    shared = _lock(kvm, direct)
    root = tdp_mmu.kvm_tdp_mmu_get_vcpu_root_hpa(vcpu) if direct else mmu_alloc_shadow_roots(vcpu)
    _unlock(kvm, shared)
    vcpu.mmu_root = root
    kvm_flush_tlb_current(vcpu)
    _trace_load(vcpu, root)
    say(f"vCPU{vcpu.index} loads {root.name}")


def _trace_load(vcpu: KvmVcpu, root: KvmMmuPage) -> None:
    trace_load_mmu_pgd(vcpu.index, root.pfn << PFN_SHIFT, vcpu.kvm.platform.levels)


@routine
def kvm_mmu_reload(vcpu: KvmVcpu) -> None:
    """Get a root if the vCPU has none."""
    if vcpu.kvm.design.obeys(RELOAD_FREES_OBSOLETE) and kvm_check_request(vcpu, KvmRequest.MMU_FREE_OBSOLETE_ROOTS):
        kvm_mmu_free_obsolete_roots(vcpu)
    if vcpu.mmu_root is None:
        kvm_mmu_load(vcpu)


@routine
def kvm_mmu_free_roots(vcpu: KvmVcpu, current: bool, previous: tuple[int, ...]) -> None:
    """Give the vCPU's current root back, and those of its previous ones that are named, as far as it has them. No
    mmu_lock held."""
    root, roots = vcpu.mmu_root if current else None, vcpu.prev_roots
    going = tuple(roots[index] for index in previous if roots[index] is not None)
    if root is None and not going:
        return
    kvm = vcpu.kvm
    legacy = tuple(put for put in (*going, root) if put is not None and not is_tdp_mmu_page(put))
    shared = _lock(kvm, not legacy)
    # cleared first, though the kernel clears them last: from here on the vCPU flushes before it enters the guest
    vcpu.prev_roots = tuple(None if index in previous else kept for index, kept in enumerate(roots))
    if root is not None:
        vcpu.mmu_root = None
    for put in (*going, root):
        if put is not None and put not in legacy:
            tdp_mmu.kvm_tdp_mmu_put_root(kvm, put, shared)
    if legacy:
        free_legacy_roots(vcpu, legacy)
    _unlock(kvm, shared)
    say(f"vCPU{vcpu.index} has put {', '.join(put.name for put in (*going, root) if put is not None)}")


@routine
def kvm_mmu_unload(vcpu: KvmVcpu) -> None:
    """Give all roots of the vCPU back. No mmu_lock held."""
    kvm_mmu_free_roots(vcpu, True, ALL_PREVIOUS)


@routine
def kvm_mmu_reset_context(vcpu: KvmVcpu) -> None:
    """The guest has changed its paging mode (CR0, CR4, EFER) or its mode of operation: start over with a new root. The
    vCPU is not in the guest."""
    kvm_mmu_unload(vcpu)
    kvm_init_mmu(vcpu)


@routine
def kvm_post_set_cr0_wp(vcpu: KvmVcpu) -> None:
    """The guest has changed CR0.WP, and nothing else (kvm_post_set_cr0)."""
    if vcpu.kvm.design.obeys(CR0_WP_KEEPS_ROOTS):
        kvm_init_mmu(vcpu)
    else:
        kvm_mmu_reset_context(vcpu)


@operation(
    focus=KvmMmuPage.role.cell,
    words=lambda root, word: f"looks at the role of {root.name}{', which is invalid' if word >> 11 & 1 else ''}",
)
def _role_word(memory: Memory, root: KvmMmuPage) -> int:
    """The role word, while others may be setting the invalid bit (by plain accesses, in the kernel)."""
    word: int = memory.look(KvmMmuPage.role.cell(root)).word
    return word


@routine
def fast_pgd_switch(vcpu: KvmVcpu) -> bool:
    """Make a root that the vCPU has, the current one or a previous one, its current root if it is of the role that the
    vCPU needs. If there is none, the vCPU has no current root afterwards; the oldest of its roots is put."""
    wanted = vcpu.root_role.word
    current, roots = vcpu.mmu_root, list(vcpu.prev_roots)
    for index in range(KVM_MMU_NUM_PREV_ROOTS + 1):
        if current is not None and _role_word(current) == wanted:
            vcpu.mmu_root, vcpu.prev_roots = current, tuple(roots)
            return True
        if index < KVM_MMU_NUM_PREV_ROOTS:
            current, roots[index] = roots[index], current
    vcpu.mmu_root, vcpu.prev_roots = current, tuple(roots)
    kvm_mmu_free_roots(vcpu, True, ())
    return False


@routine
def kvm_mmu_new_pgd(vcpu: KvmVcpu) -> None:
    """The vCPU needs a root of another role. It takes one that it has, without a flush: what its TLB has of that root
    was flushed whenever all else was. Or it has none, until it is about to enter the guest."""
    if fast_pgd_switch(vcpu):
        root = vcpu.mmu_root
        assert root is not None
        _trace_load(vcpu, root)
        say(f"vCPU{vcpu.index} goes back to {root.name}")


@routine
def is_obsolete_root(kvm: Kvm, root: KvmMmuPage) -> bool:
    """Has the root been invalidated (a special root always counts as such)? Without mmu_lock: the answer may be old,
    but whoever invalidates a root makes a request afterwards."""
    if to_shadow_page(root) is None:
        return True
    invalid = READ_ONCE(root, KvmMmuPage.role).invalid
    return invalid or (not is_tdp_mmu_page(root) and is_obsolete_sp(kvm, root))


@routine
def kvm_mmu_free_obsolete_roots(vcpu: KvmVcpu) -> None:
    """Give those of the vCPU's roots back that are obsolete."""
    root = vcpu.mmu_root
    each = vcpu.kvm.design.obeys(FREE_OBSOLETE_CHECKS_EACH)
    current = root is not None and is_obsolete_root(vcpu.kvm, root)
    previous = []
    for index, kept in enumerate(vcpu.prev_roots):
        looked_at = kept if each else root
        if looked_at is not None and is_obsolete_root(vcpu.kvm, looked_at):
            previous.append(index)
    kvm_mmu_free_roots(vcpu, current, tuple(previous))
    _expect_none_obsolete(vcpu)


@operation(marked=False)
def _expect_none_obsolete(memory: Memory, vcpu: KvmVcpu) -> None:
    """Property "obsolete-root-kept": no previous root is obsolete now, except where an invalidation, with mmu_lock held
    for write, has not come to its request yet, or has made another one."""
    memory.exercise("obsolete-root-kept")
    requested = memory.look(KvmVcpu.requests.cell(vcpu)) >> KvmRequest.MMU_FREE_OBSOLETE_ROOTS & 1
    if requested or memory.look(lock.holders.cell(vcpu.kvm.mmu_lock)) < 0:
        return
    for kept in memory.look(KvmVcpu.prev_roots.cell(vcpu)):
        if kept is not None and memory.look(KvmMmuPage.role.cell(kept)).invalid:
            message = (
                f"vCPU{vcpu.index} has put its obsolete roots, but keeps {kept.name}, which is invalid, as a previous "
                "one: nothing will make it put that"
            )
            memory.violate(Violation("obsolete-root-kept", message, object=kept.name))
