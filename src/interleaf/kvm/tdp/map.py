"""Mapping a page for a fault: from the root down to the leaf, with new tables on the way (tdp_mmu.c, v6.12)."""

from __future__ import annotations

from interleaf.hw.page_table import PG_LEVEL_4K, index_of, pages_per_entry
from interleaf.kvm.design import rule
from interleaf.kvm.dirty_log import mark_page_dirty_in_slot
from interleaf.kvm.fast_page_fault import is_access_allowed
from interleaf.kvm.hugepage import disallowed_hugepage_adjust, kvm_mmu_hugepage_adjust
from interleaf.kvm.kvm_host import (
    ACC_ALL,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_PFN_NOSLOT,
    Kvm,
    KvmMmuPage,
    KvmMmuPageRole,
    KvmVcpu,
)
from interleaf.kvm.mmio import memslots_generation
from interleaf.kvm.mmu_internal import KvmPageFault, RetPf
from interleaf.kvm.nx_huge_page import account_nx_huge_page, init_nx_huge_page
from interleaf.kvm.tlb import kvm_flush_remote_tlbs_range
from interleaf.kvm.trace import trace_kvm_mmu_set_spte, trace_kvm_mmu_spte_requested, trace_mark_mmio_spte
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.slab import kmem_cache_free
from interleaf.runtime import ModelError, routine, say, warn

from .changed import tdp_mmu_set_spte_atomic, tdp_mmu_zap_spte_atomic
from .entries import kvm_tdp_mmu_read_spte
from .iter import TdpIter, spte_to_child_pt, tdp_iter_next, tdp_iter_start
from .link import tdp_mmu_alloc_sp, tdp_mmu_link_sp
from .split import tdp_mmu_split_huge_page
from .spte import (
    get_mmio_spte_generation,
    is_last_spte,
    is_mmio_spte,
    is_present_leaf,
    is_removed_spte,
    is_shadow_present_pte,
    is_writable_pte,
    make_mmio_spte,
    make_spte,
)

FROZEN_LEAF_CHECK = rule(
    "frozen-leaf-check",
    "A fault that finds the very entry frozen that it wants to fill tries again, instead of making an SPTE for it.",
    "58298b068137",
)
MAP_AT_GOAL_ONLY = rule(
    "map-at-goal-only",
    "A fault whose walk ends early, because a table on the way was zapped, maps nothing and tries again.",
    "80a3e4ae962d",
)
MAP_LEVEL_GUARD = rule(
    "map-level-guard",
    "A leaf is not installed in a table of another level than it was made for.",
    "50a9ac25985c",
)
SPLIT_ON_FAULT = rule(
    "split-on-fault",
    "A fault that needs a smaller page than is mapped splits the huge page where it is, instead of zapping it.",
    "c4b33d28ea51",
)
REPLACED_TABLE_FLUSH = rule(
    "replaced-table-flush",
    "Whoever replaces a table by a huge page flushes its range from the TLBs before leaving the RCU reader, so that "
    "the table is not freed while the hardware may still walk it.",
    "bb95dfb9e2df",
)
PREFETCH_KEEPS_PRESENT = rule(
    "prefetch-keeps-present",
    "A prefetch changes nothing where something is mapped already.",
    "6385d01eec16",
)
SPURIOUS_IF_ALLOWED = rule(
    "spurious-if-allowed",
    "A fault that finds its access allowed by a leaf changes nothing.",
    "d17cc13cc484",
)


@routine
def kvm_tdp_mmu_map(vcpu: KvmVcpu, fault: KvmPageFault) -> tuple[RetPf, int]:
    """Map `fault.gfn` to `fault.pfn` in the vCPU's root, in a page that is as large as possible; returns its level.

    RETRY if another task got in the way; the fault will come again if it still has to. mmu_lock held for read,
    and the fault found not to be stale under it.
    """
    kvm, root, pfn = vcpu.kvm, vcpu.mmu_root, fault.pfn
    if root is None or pfn is None:
        raise ModelError(f"{vcpu.name} maps gfn {fault.gfn:#x} without a root or a pfn.")
    _expect_known(kvm, fault.gfn)
    fault = kvm_mmu_hugepage_adjust(kvm, fault)
    trace_kvm_mmu_spte_requested(fault.gfn, pfn, fault.goal_level)
    rcu_read_lock()
    result, level = _map(vcpu, kvm, root, fault)
    rcu_read_unlock()
    return result, level


@routine
def _map(vcpu: KvmVcpu, kvm: Kvm, root: KvmMmuPage, fault: KvmPageFault) -> tuple[RetPf, int]:
    it = reached = tdp_iter_start(kvm, root, PG_LEVEL_4K, fault.gfn)
    while it is not None and it.gfn <= fault.gfn:
        reached = it
        child = spte_to_child_pt(it.old_spte, it.level)
        if child is not None and fault.nx_huge_page_workaround_enabled:
            fault = disallowed_hugepage_adjust(kvm, fault, child, it.level)
        at_goal = it.level == fault.goal_level
        if is_removed_spte(kvm.masks, it.old_spte) and (not at_goal or kvm.design.obeys(FROZEN_LEAF_CHECK)):
            # whoever has frozen the entry is removing what it mapped, and will let it go again
            return RetPf.RETRY, fault.goal_level
        if at_goal:
            return tdp_mmu_map_handle_target_level(vcpu, fault, it), fault.goal_level
        if child is None and not _make_way(kvm, fault, it):
            return RetPf.RETRY, fault.goal_level
        it = tdp_iter_next(kvm, it)
        del child
    # The walk ended above the goal: somebody has zapped a table on the way.
    if reached is None or kvm.design.obeys(MAP_AT_GOAL_ONLY):
        return RetPf.RETRY, fault.goal_level
    found = kvm_tdp_mmu_read_spte(kvm, reached.sp, reached.gfn, reached.level)
    return tdp_mmu_map_handle_target_level(vcpu, fault, reached._replace(old_spte=found)), fault.goal_level


@routine
def _make_way(kvm: Kvm, fault: KvmPageFault, it: TdpIter) -> bool:
    """Put a table where `it`, above the level to map, has nothing, or a huge page; False if another task was quicker
    with whatever it did."""
    in_place = kvm.design.obeys(SPLIT_ON_FAULT)
    if is_shadow_present_pte(it.old_spte) and not in_place:
        if tdp_mmu_zap_spte_atomic(kvm, it) is not None:
            return False
        it = it._replace(old_spte=kvm_tdp_mmu_read_spte(kvm, it.sp, it.gfn, it.level))
        if is_removed_spte(kvm.masks, it.old_spte):
            return False
        if is_shadow_present_pte(it.old_spte):
            return True  # somebody has mapped something already: the walk looks at it again
    sp = tdp_mmu_alloc_sp(kvm, it.gfn, it.sp.role.child(), (it.sp, index_of(it.gfn, it.level)))
    if fault.huge_page_disallowed:
        init_nx_huge_page(kvm, sp)
    if is_shadow_present_pte(it.old_spte):
        done = tdp_mmu_split_huge_page(kvm, it, sp, True)
    else:
        done = tdp_mmu_link_sp(kvm, it, sp)
    if not done:
        kmem_cache_free(sp)
        return False
    if fault.huge_page_disallowed and fault.req_level >= it.level:
        account_nx_huge_page(kvm, sp)
    return True


@routine
def tdp_mmu_map_handle_target_level(vcpu: KvmVcpu, fault: KvmPageFault, it: TdpIter) -> RetPf:
    """Install the leaf at `it`. In an RCU reader, mmu_lock held for read."""
    kvm, role, old_spte = vcpu.kvm, it.sp.role, it.old_spte
    design, level = kvm.design, role.level
    wrong_level = warn(
        "map-at-wrong-level",
        level != fault.goal_level,
        f"gfn {fault.gfn:#x} is to be mapped at level {fault.goal_level}, but {it.sp.name} is of level {level}",
    )
    if wrong_level and design.obeys(MAP_LEVEL_GUARD):
        return RetPf.RETRY
    if fault.prefetch and is_shadow_present_pte(old_spte) and design.obeys(PREFETCH_KEEPS_PRESENT):
        return RetPf.SPURIOUS
    allowed = is_present_leaf(old_spte, level) and is_access_allowed(kvm.masks, fault, old_spte)
    if allowed and design.obeys(SPURIOUS_IF_ALLOWED):
        return RetPf.SPURIOUS
    new_spte, wrprot = _make_leaf(vcpu, fault, it, role)
    result = RetPf.FIXED
    if new_spte == old_spte:
        result = RetPf.SPURIOUS
    elif tdp_mmu_set_spte_atomic(kvm, it, new_spte) is not None:
        return RetPf.RETRY
    elif is_shadow_present_pte(old_spte) and not is_last_spte(old_spte, level) and design.obeys(REPLACED_TABLE_FLUSH):
        kvm_flush_remote_tlbs_range(kvm, it.gfn, pages_per_entry(level))
    if wrprot and fault.write:
        result = RetPf.WRITE_PROTECTED
    if is_mmio_spte(kvm.masks, new_spte):
        trace_mark_mmio_spte(it.gfn, ACC_ALL, get_mmio_spte_generation(kvm.masks, new_spte), it.sptep)
        say(f"gfn {it.gfn:#x} gets an MMIO SPTE")
        return RetPf.EMULATE
    trace_kvm_mmu_set_spte(it.gfn, new_spte, level, it.sptep)
    return result


@routine
def _make_leaf(vcpu: KvmVcpu, fault: KvmPageFault, it: TdpIter, role: KvmMmuPageRole) -> tuple[int, bool]:
    """The SPTE for the fault in a table of `role`, and whether it is write-protected although the page could be
    written."""
    kvm, slot = vcpu.kvm, fault.slot
    assert fault.pfn is not None
    if fault.pfn == KVM_PFN_NOSLOT:
        return make_mmio_spte(kvm, memslots_generation(vcpu) & kvm.params.mmio_gen_mask, it.gfn, ACC_ALL), False
    new_spte, wrprot = make_spte(
        kvm, role, slot, ACC_ALL, it.gfn, fault.pfn, it.old_spte, fault.prefetch, fault.map_writable, role.level
    )
    if slot is not None and slot.flags & KVM_MEM_LOG_DIRTY_PAGES and is_writable_pte(new_spte):
        # before the page can be written, so that no write is missed by who collects the log
        mark_page_dirty_in_slot(kvm, slot, it.gfn, vcpu)
    return new_spte, wrprot


def _expect_known(kvm: Kvm, gfn: int) -> None:
    if kvm.gfns and gfn not in kvm.gfns:
        raise ModelError(
            f"gfn {gfn:#x} is to be mapped, but the VM was made for the gfns {', '.join(map(hex, kvm.gfns))}. "
            "Add it to Kvm.gfns."
        )
