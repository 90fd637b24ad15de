"""How large a page a fault may map (arch/x86/kvm/mmu/mmu.c, v6.12).

As large as the host maps there itself, unless the memslot does not reach that far, is not aligned as the host's memory
is, has its dirty pages logged, or has some other reason against it (`disallow_lpage`).
"""

from __future__ import annotations

from dataclasses import replace

from interleaf.hw.page_table import PG_LEVEL_4K, gfn_round_for_level, pages_per_entry
from interleaf.mm.mm import host_mapping_level
from interleaf.runtime import routine

from .design import rule
from .kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmMemorySlot, KvmMmuPage
from .mmu_internal import KvmPageFault

ADJUST_CHECKS_DISALLOWED = rule(
    "adjust-checks-disallowed",
    "A fault that could map a huge page keeps the table that it finds in its place only if that stands for a "
    "disallowed huge page.",
    "76901e56fb51",
)


@routine
def _crosses_border(slot: KvmMemorySlot, gfn: int, level: int) -> bool:
    """Does the page of `level` around `gfn` reach beyond the slot, or can the host's memory not be aligned as it is?"""
    pages = pages_per_entry(level)
    first = gfn_round_for_level(gfn, level)
    base_gfn = slot.base_gfn
    if first < base_gfn or first + pages > base_gfn + slot.npages:
        return True
    return bool((base_gfn ^ slot.userspace_addr) & pages - 1)


@routine
def kvm_mmu_max_mapping_level(kvm: Kvm, slot: KvmMemorySlot, gfn: int, max_level: int, is_private: bool) -> int:
    """The level of the largest page that may map `gfn`, `max_level` at most. mmu_lock held."""
    level = min(max_level, kvm.params.max_level)
    while level > PG_LEVEL_4K:
        if (
            not _crosses_border(slot, gfn, level)
            and not slot.arch.disallow_lpage[level, gfn_round_for_level(gfn, level)]
        ):
            break
        level -= 1
    if is_private or level == PG_LEVEL_4K:
        return level
    return min(level, int(host_mapping_level(kvm.mm, gfn - slot.base_gfn + slot.userspace_addr)))


@routine
def kvm_mmu_hugepage_adjust(kvm: Kvm, fault: KvmPageFault) -> KvmPageFault:
    """The fault with the level to map. mmu_lock held for read, and the fault found not to be stale under it, so that
    the host cannot make its own mapping smaller."""
    fault = replace(fault, huge_page_disallowed=fault.exec and fault.nx_huge_page_workaround_enabled)
    slot = fault.slot
    if fault.max_level == PG_LEVEL_4K or slot is None or slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        return fault
    level = kvm_mmu_max_mapping_level(kvm, slot, fault.gfn, fault.max_level, fault.is_private)
    # what could be mapped is remembered, to tell later which tables could be huge pages again
    return replace(fault, req_level=level, goal_level=PG_LEVEL_4K if fault.huge_page_disallowed else level)


@routine
def disallowed_hugepage_adjust(kvm: Kvm, fault: KvmPageFault, child: KvmMmuPage, level: int) -> KvmPageFault:
    """The fault, with a smaller page to map if `child`, the table that its walk has found at `level`, must stay."""
    if level != fault.goal_level or level == PG_LEVEL_4K:
        return fault
    if kvm.design.obeys(ADJUST_CHECKS_DISALLOWED) and not child.nx_huge_page_disallowed:
        return fault
    return replace(fault, goal_level=level - 1)
