"""New tables, and putting them in their place (tdp_mmu_alloc_sp, tdp_mmu_link_sp; kernel tdp_mmu.c, v6.12)."""

from __future__ import annotations

from interleaf.kvm.design import rule
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmMmuPageRole
from interleaf.kvm.trace import trace_kvm_mmu_get_page
from interleaf.linux.slab import kmem_cache_alloc
from interleaf.runtime import routine

from .changed import tdp_mmu_iter_set_spte, tdp_mmu_set_spte_atomic
from .iter import TdpIter
from .references import page_linked
from .spte import make_nonleaf_spte

GET_PAGE_TRACED_AT_LINK = rule(
    "get-page-traced-at-link",
    "The tracepoint of a new table is passed again when it is linked (up to v5.17).",
    "a82070b6e71a",
)


@routine
def tdp_mmu_link_sp(kvm: Kvm, it: TdpIter, sp: KvmMmuPage, shared: bool = True) -> bool:
    """Make the entry point to the table `sp`; False if it has changed meanwhile.

    In an RCU reader, mmu_lock held: for read if `shared`, else for write.
    """
    spte = make_nonleaf_spte(kvm.masks, sp.pfn, not kvm.platform.ad_bits)
    if not shared:
        tdp_mmu_iter_set_spte(kvm, it, spte)
    elif tdp_mmu_set_spte_atomic(kvm, it, spte) is not None:
        return False
    page_linked(kvm)
    if kvm.design.obeys(GET_PAGE_TRACED_AT_LINK):
        trace_kvm_mmu_get_page(sp)
    return True


@routine
def tdp_mmu_alloc_sp(
    kvm: Kvm, gfn: int, role: KvmMmuPageRole, parent: tuple[KvmMmuPage, int] | None = None
) -> KvmMmuPage:
    """A new table with nothing in it, for the gfns from `gfn` on; nobody else knows it yet (tdp_mmu_init_sp)."""
    sp = kmem_cache_alloc(KvmMmuPage, gfn=gfn, role=role, parent=parent)
    trace_kvm_mmu_get_page(sp)
    return sp
