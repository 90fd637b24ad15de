"""Filling shadow pages from the tables that they stand for (FNAME(fetch); arch/x86/kvm/mmu/paging_tmpl.h, v6.12)."""

from __future__ import annotations

from dataclasses import replace

from interleaf.hw.page_table import ENTRIES_PER_TABLE, PG_LEVEL_4K
from interleaf.runtime import ModelError, checkpoint, routine

from .design import rule
from .kvm_host import ACC_ALL, KVM_MEM_LOG_DIRTY_PAGES, KvmVcpu
from .mmu_internal import KvmPageFault, RetPf
from .shadow import L1_TABLES, kvm_mmu_get_shadow_page, link_shadow_page
from .tdp.entries import kvm_tdp_mmu_read_spte, write_spte
from .tdp.iter import spte_to_child_pt
from .tdp.spte import make_spte

CHILD_ROLE_FROM_PARENT = rule(
    "child-role-from-parent",
    "The role of a new shadow page is made from that of the page above it, instead of from the vCPU's.",
    "2e65e842c57d",
)


@routine
def ept_fetch(vcpu: KvmVcpu, fault: KvmPageFault) -> RetPf:
    """Map the fault's page in the shadow pages of the tables of L1 that lead to it. mmu_lock held for write."""
    kvm, gfn, slot, sp = vcpu.kvm, fault.gfn, fault.slot, vcpu.mmu_root
    if slot is None or slot.flags & KVM_MEM_LOG_DIRTY_PAGES or gfn >= ENTRIES_PER_TABLE or sp is None:
        raise ModelError(f"gfn {gfn:#x}: L2 may access the first 512 gfns, in memslots whose writes are not logged.")
    assert fault.pfn is not None
    level = sp.role.level
    while level > PG_LEVEL_4K:
        checkpoint()
        child = spte_to_child_pt(kvm_tdp_mmu_read_spte(kvm, sp, 0, level), level)
        if child is None:
            from_parent = kvm.design.obeys(CHILD_ROLE_FROM_PARENT)
            role = sp.role.child() if from_parent else replace(vcpu.root_role, level=level - 1)
            child = kvm_mmu_get_shadow_page(vcpu, L1_TABLES + level - 1, role)
            link_shadow_page(kvm, sp, 0, child)
            del from_parent, role
        sp, level = child, level - 1
        del child
    old_spte = kvm_tdp_mmu_read_spte(kvm, sp, gfn, level)
    spte, _wrprot = make_spte(kvm, sp.role, slot, ACC_ALL, gfn, fault.pfn, old_spte, False, fault.map_writable, level)
    if spte == old_spte:
        return RetPf.SPURIOUS
    write_spte(kvm, None, sp, gfn, level, spte)
    return RetPf.FIXED
