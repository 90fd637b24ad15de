"""Tables that are there only because huge pages must not be executable (arch/x86/kvm/mmu/mmu.c, v6.12).

On some processors a guest can crash the host by executing code in a huge page while its size changes (iTLB
multihit). With the module parameter nx_huge_pages huge pages are not executable, and a fault for execution maps 4 KiB
pages in a table that is marked as disallowed, so that no fault for data puts the huge page back. Such tables are kept
on a list, by which a thread undoes them now and then (nx_recovery).
"""

from __future__ import annotations

from interleaf.linux.list import INIT_LIST_HEAD, list_add_tail, list_del_init, list_empty
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.runtime import routine

from .design import rule
from .kvm_host import Kvm, KvmMmuPage

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


@routine
def account_nx_huge_page(kvm: Kvm, sp: KvmMmuPage) -> None:
    """A table that stands for a disallowed huge page has been linked, and could be a huge page otherwise. mmu_lock held
    for read."""
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
    untrack_possible_nx_huge_page(kvm, sp)
