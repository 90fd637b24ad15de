"""Tables that are there only because huge pages must not be executable (arch/x86/kvm/mmu/mmu.c, v6.12).

On some processors a guest can crash the host by executing code in a huge page while its size changes (iTLB
multihit). With the module parameter nx_huge_pages huge pages are not executable, and a fault for execution maps 4 KiB
pages in a table that is marked as disallowed, so that no fault for data puts the huge page back. Such tables are kept
on a list, by which a thread undoes them now and then (nx_recovery).
"""

from __future__ import annotations

from interleaf.hw.ept import SPTE_MMU_PRESENT_MASK, pfn_of
from interleaf.hw.frames import is_allocated
from interleaf.linux.list import INIT_LIST_HEAD, list_add_tail, list_del_init, list_empty, objects_on
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import Memory, Violation, operation, routine

from .design import rule
from .kvm_host import Kvm, KvmMmuPage
from .tdp import ghost

NX_DISALLOWED_BEFORE_LINK = rule(
    "nx-disallowed-before-link",
    "A table that stands for a disallowed huge page is marked so before others can see it, so that no fault replaces "
    "it by the huge page.",
    "61f94478547b",
)
NX_TRACK_RECHECK = rule(
    "nx-track-recheck",
    "A table is put on the list of possible huge pages only if it is still marked under the lock: whoever has removed "
    "it meanwhile has unmarked it, and is about to free it.",
    "21a36ac6b6c7",
)


@routine
def init_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """A table that nobody knows yet will stand for a disallowed huge page."""
    INIT_LIST_HEAD(sp.possible_nx_huge_page_link)
    if kvm.design.obeys(NX_DISALLOWED_BEFORE_LINK):
        sp.nx_huge_page_disallowed = True


@operation(marked=False)
def _is_possible(memory: Memory, kvm: Kvm, sp: KvmMmuPage, now: bool) -> None:
    """For I15: the table stands for a huge page that could be mapped otherwise, or does not any more."""
    cell = ghost.possible.cell(kvm)
    known: frozenset[KvmMmuPage] = memory.look(cell)
    if (sp in known) is not now:
        ghost.note(memory, cell, known | {sp} if now else known - {sp})


def _is_linked(memory: Memory, sp: KvmMmuPage) -> bool:
    """Is the table allocated, and does the entry that was made for it point to it?"""
    parent = memory.look(KvmMmuPage.parent.cell(sp)) if is_allocated(memory, sp) else None
    if parent is None or not is_allocated(memory, parent[0]):
        return False
    entry: int = memory.look(KvmMmuPage.spt.element(*parent))
    return bool(entry & SPTE_MMU_PRESENT_MASK) and pfn_of(entry) == sp.pfn


@operation(marked=False)
def expect_possible_nx_huge_pages(memory: Memory, kvm: Kvm) -> None:
    """I15: the tables on the list of possible huge pages are those that are linked, and stand for one. mmu_lock held
    for write: nobody is about to put a table on the list, or to take it off, because it is linked or not any more."""
    listed = tuple(objects_on(memory, kvm.possible_nx_huge_pages, KvmMmuPage))
    for on_list in listed:
        memory.exercise("I15")
        if not _is_linked(memory, on_list):
            message = f"{on_list.name} is on the list of possible huge pages, but no SPTE points to it any more"
            memory.violate(Violation("I15", message, object=on_list.name))
    possible: frozenset[KvmMmuPage] = memory.look(ghost.possible.cell(kvm))
    for sp in sorted(possible - set(listed), key=lambda sp: sp.name):
        if _is_linked(memory, sp) and memory.look(KvmMmuPage.nx_huge_page_disallowed.cell(sp)):
            message = f"{sp.name} stands for a disallowed huge page, but is not on the list: it is never recovered"
            memory.violate(Violation("I15", message, object=sp.name))


@routine
def account_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """A table that stands for a disallowed huge page has been linked, and could be a huge page otherwise. mmu_lock held
    for read."""
    _is_possible(kvm, sp, True)
    spin_lock(kvm.tdp_mmu_pages_lock)
    if not kvm.design.obeys(NX_DISALLOWED_BEFORE_LINK):
        sp.nx_huge_page_disallowed = True
    if sp.nx_huge_page_disallowed or not kvm.design.obeys(NX_TRACK_RECHECK):
        track_possible_nx_huge_page(kvm, sp)
    spin_unlock(kvm.tdp_mmu_pages_lock)


@routine
def track_possible_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Put a table on the list of those that could be huge pages again. tdp_mmu_pages_lock held."""
    lockdep_assert_held(kvm.tdp_mmu_pages_lock)
    if list_empty(sp.possible_nx_huge_page_link):
        kvm.nx_lpage_splits += 1
        list_add_tail(sp.possible_nx_huge_page_link, kvm.possible_nx_huge_pages)


@routine
def untrack_possible_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """Take a table off that list, if it is on it. tdp_mmu_pages_lock held, or mmu_lock for write."""
    if not list_empty(sp.possible_nx_huge_page_link):
        kvm.nx_lpage_splits -= 1
        list_del_init(sp.possible_nx_huge_page_link)


@routine
def unaccount_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """A table does not stand for a disallowed huge page any more. tdp_mmu_pages_lock held, or mmu_lock for write."""
    sp.nx_huge_page_disallowed = False
    _is_possible(kvm, sp, False)
    untrack_possible_nx_huge_page(kvm, sp)
