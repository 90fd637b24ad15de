"""A VM whose memory is a huge page, and that page mapped by a huge SPTE; for tests, inside a task."""

from __future__ import annotations

from interleaf.hw import ept
from interleaf.hw.frames import PAGE_TABLE_PFN_BASE
from interleaf.hw.page_table import PG_LEVEL_2M, index_of
from interleaf.kvm.kvm_host import ACC_ALL, Kvm, KvmMmuPage
from interleaf.kvm.memslots import gfn_to_memslot, kvm_memslots
from interleaf.kvm.mmu import kvm_mmu_reload
from interleaf.kvm.tdp.changed import tdp_mmu_set_spte_atomic
from interleaf.kvm.tdp.iter import tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.link import tdp_mmu_alloc_sp, tdp_mmu_link_sp
from interleaf.kvm.tdp.spte import is_shadow_present_pte, make_spte
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.mm.mm import get_user_page
from interleaf.mm.page import put_page
from interleaf.runtime import object_of


def map_huge(kvm: Kvm, gfn: int = 0) -> None:
    """Map the huge page around `gfn`, writable, in the root of each vCPU."""
    slot = gfn_to_memslot(kvm_memslots(kvm), gfn, 0)
    assert slot is not None
    for vcpu in kvm.vcpus:
        kvm_mmu_reload(vcpu)
        root = vcpu.mmu_root
        assert root is not None
        pinned = get_user_page(kvm.mm, slot.userspace_addr + gfn - slot.base_gfn, True)
        assert pinned is not None
        read_lock(kvm.mmu_lock)
        rcu_read_lock()
        it = tdp_iter_start(kvm, root, PG_LEVEL_2M, gfn)
        assert it is not None
        while it.level > PG_LEVEL_2M:
            if not is_shadow_present_pte(it.old_spte):
                sp = tdp_mmu_alloc_sp(kvm, it.gfn, it.sp.role.child(), (it.sp, index_of(it.gfn, it.level)))
                assert tdp_mmu_link_sp(kvm, it, sp)
            it = tdp_iter_next(kvm, it)
            assert it is not None
        spte, _ = make_spte(kvm, it.sp.role, slot, ACC_ALL, gfn, pinned.pfn, it.old_spte, False, True, PG_LEVEL_2M)
        if not is_shadow_present_pte(it.old_spte):
            assert tdp_mmu_set_spte_atomic(kvm, it, spte) is None
        rcu_read_unlock()
        read_unlock(kvm.mmu_lock)
        put_page(pinned.page)


def entry(kvm: Kvm, gfn: int, level: int) -> int:
    """The SPTE of vCPU 0 for `gfn` in the table of `level`; 0 if there is no such table."""
    table: KvmMmuPage | None = kvm.vcpus[0].mmu_root
    assert table is not None
    for upper in range(kvm.platform.levels, level, -1):
        spte = table.spt[index_of(gfn, upper)]
        if not is_shadow_present_pte(spte) or ept.is_leaf(spte, upper):
            return 0
        table = object_of(KvmMmuPage, ept.pfn_of(spte) - PAGE_TABLE_PFN_BASE)
    return int(table.spt[index_of(gfn, level)])
