"""What a root maps, read entry by entry; for tests, inside a task."""

from __future__ import annotations

from interleaf.hw import ept
from interleaf.hw.frames import PAGE_TABLE_PFN_BASE
from interleaf.hw.page_table import ROOT_LEVEL, index_of
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.mm.page import Page
from interleaf.runtime import object_of


def page_behind(kvm: Kvm, hva: int) -> Page:
    """The page that the host has at `hva`."""
    page = kvm.mm.pte[hva].page
    assert page is not None
    return page


def only_spte(kvm: Kvm, hva: int) -> tuple[KvmMmuPage, int]:
    """Table and index of the one SPTE that maps what the host has at `hva`."""
    [(table, index)] = page_behind(kvm, hva).spteps
    assert isinstance(table, KvmMmuPage)
    return table, index


def mapped(kvm: Kvm, root: KvmMmuPage | None = None) -> tuple[int, ...]:
    """The gfns that `root` (if not given, that of vCPU 0) maps, ascending."""
    top = root or kvm.vcpus[0].mmu_root
    assert top is not None
    return tuple(gfn for gfn in kvm.named_gfns if _maps(top, gfn))


def _maps(table: KvmMmuPage, gfn: int) -> bool:
    for level in range(ROOT_LEVEL, 0, -1):
        entry = table.spt[index_of(gfn, level)]
        if not entry & ept.SPTE_MMU_PRESENT_MASK:
            return False
        if level > 1:
            table = object_of(KvmMmuPage, ept.pfn_of(entry) - PAGE_TABLE_PFN_BASE)
    return True
