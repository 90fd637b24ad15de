"""Memory attributes: which gfns are private to the guest (virt/kvm/kvm_main.c, arch/x86/kvm/mmu/mmu.c, v6.12).

Private memory is not mapped in the process; it comes from a file of its own (guest_memfd). When userspace makes gfns
private or shared, what maps them is zapped first, and faults on them retry until the new attributes are there. A huge
page must not cover gfns of both kinds, which the slot remembers for each huge page (KVM_LPAGE_MIXED_FLAG).
"""

from __future__ import annotations

from collections.abc import Iterator

from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, gfn_round_for_level, pages_per_entry
from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.mm.page import Page, alloc_page
from interleaf.runtime import Memory, Violation, free, operation, routine, say

from .design import rule
from .invalidate import kvm_mmu_invalidate_begin, kvm_mmu_invalidate_end, kvm_mmu_invalidate_range_add
from .kvm_host import Kvm, KvmGfnRange, KvmMemorySlot, KvmVcpu
from .memslots import kvm_memslots
from .mmu_notifier import kvm_unmap_gfn_range
from .tlb import kvm_flush_remote_tlbs
from .trace import trace_kvm_zap_gfn_range

KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3
KVM_LPAGE_MIXED_FLAG = 1 << 31
"""In `disallow_lpage`: the huge page would cover gfns of both kinds."""

MEMORY_ATTRIBUTES = rule(
    "memory-attributes",
    "Userspace can make guest memory private.",
    "v6.8",
)
ATTRIBUTES_COVER_HUGE_PAGES = rule(
    "attributes-cover-huge-pages",
    "While attributes change, faults on all gfns of the huge pages at the borders of the range retry, because they "
    "could map one that covers both kinds.",
    "9129633d568e",
)


def kvm_mem_is_private(kvm: Kvm, gfn: int) -> bool:
    """Is the gfn private memory? Without a lock the answer may be old."""
    return kvm.params.private_mem and bool(READ_ONCE(kvm, Kvm.mem_attr_array[gfn]) & KVM_MEMORY_ATTRIBUTE_PRIVATE)


@operation(
    focus=lambda kvm, gfn, fresh: Kvm.gmem.element(kvm, gfn),
    words=lambda kvm, gfn, fresh, page: (
        f"finds {page.name} in the guest_memfd for gfn {gfn:#x}" if page else f"finds no page for private gfn {gfn:#x}"
    ),
)
def _filemap_get(memory: Memory, kvm: Kvm, gfn: int, fresh: Page | None) -> Page | None:
    """The page of a private gfn, with a reference; `fresh` becomes that if there is none."""
    cell = Kvm.gmem.element(kvm, gfn)
    page: Page | None = memory.load_cell(cell)
    if page is None and fresh is not None:
        page = fresh
        memory.store_cell(cell, page)
    if page is not None:
        memory.store(page, Page.refcount, memory.load(page, Page.refcount) + 1)
    return page


@routine
def kvm_gmem_get_pfn(kvm: Kvm, gfn: int) -> int:
    """The frame of the page of a private gfn, with a reference for the caller. May sleep."""
    page: Page | None = _filemap_get(kvm, gfn, None)
    if page is None:
        fresh = alloc_page()
        page = _filemap_get(kvm, gfn, fresh)
        assert page is not None
        if page is not fresh:
            free(fresh)
    return page.pfn


def expect_private(memory: Memory, vcpu: KvmVcpu, gfn: int, pfn: int) -> None:
    """Part of the guest's access to `gfn`, which was translated to `pfn`. Property "memory-attributes": it gets private
    memory if, and only if, userspace has made the gfn private."""
    kvm = vcpu.kvm
    if not kvm.params.private_mem:
        return
    memory.exercise("memory-attributes")
    private = bool(memory.look(Kvm.mem_attr_array.element(kvm, gfn)) & KVM_MEMORY_ATTRIBUTE_PRIVATE)
    page = memory.look(Kvm.gmem.element(kvm, gfn))
    if private != (page is not None and page.pfn == pfn):
        message = (
            f"vCPU{vcpu.index} accesses gfn {gfn:#x}, which is {'private' if private else 'shared'}, but is given "
            f"{'shared' if private else 'private'} memory (pfn {pfn:#x})"
        )
        memory.violate(Violation("memory-attributes", message, object=kvm.name))


@routine
def kvm_vm_set_mem_attributes(kvm: Kvm, start: int, end: int, attributes: int) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES: the gfns start <= gfn < end are private from now on, or shared. Sleeps. Does nothing
    where there is no such call."""
    if not kvm.design.obeys(MEMORY_ATTRIBUTES):
        return
    mutex_lock(kvm.slots_lock)
    if not _has_attributes(kvm, start, end, attributes):
        ranges = tuple(_ranges(kvm, start, end))
        _pre_set(kvm, ranges)
        _xa_store(kvm, start, end, attributes)
        say(f"gfns {start:#x} to {end:#x} are {'private' if attributes else 'shared'}")
        _post_set(kvm, ranges, attributes)
    mutex_unlock(kvm.slots_lock)


def _ranges(kvm: Kvm, start: int, end: int) -> Iterator[KvmGfnRange]:
    """The parts of the slots that the gfns are in. slots_lock held."""
    for slot in kvm_memslots(kvm).slots:
        base = slot.base_gfn
        first, last = max(start, base), min(end, base + slot.npages)
        if first < last:
            yield KvmGfnRange(slot, first, last, True)


@routine
def _pre_set(kvm: Kvm, ranges: tuple[KvmGfnRange, ...]) -> None:
    """Zap the gfns, and keep faults from mapping them (kvm_pre_set_memory_attributes)."""
    if not ranges:
        return
    write_lock(kvm.mmu_lock)
    kvm_mmu_invalidate_begin(kvm)
    flush = False
    for gfn_range in ranges:
        kvm_mmu_invalidate_range_add(kvm, gfn_range.start, gfn_range.end)
        if kvm.design.obeys(ATTRIBUTES_COVER_HUGE_PAGES):
            for level, gfn in _at_borders(gfn_range):
                if not gfn_range.slot.arch.disallow_lpage[level, gfn] & KVM_LPAGE_MIXED_FLAG:
                    kvm_mmu_invalidate_range_add(kvm, gfn, gfn + pages_per_entry(level))
        trace_kvm_zap_gfn_range(gfn_range.start, gfn_range.end, True)
        flush |= kvm_unmap_gfn_range(kvm, gfn_range)
    if flush:
        kvm_flush_remote_tlbs(kvm)
    write_unlock(kvm.mmu_lock)


@routine
def _post_set(kvm: Kvm, ranges: tuple[KvmGfnRange, ...], attributes: int) -> None:
    """Note which huge pages would cover both kinds now (kvm_arch_post_set_memory_attributes), and let faults map the
    gfns again."""
    if not ranges:
        return
    write_lock(kvm.mmu_lock)
    kvm_mmu_invalidate_end(kvm)
    for gfn_range in ranges:
        for level, gfn in _at_borders(gfn_range):
            mixed = not _hugepage_has_attrs(kvm, gfn_range.slot, gfn, level, attributes)
            _set_mixed(gfn_range.slot, gfn, level, mixed)
        for level, gfn in _inside(gfn_range):
            _set_mixed(gfn_range.slot, gfn, level, False)
    write_unlock(kvm.mmu_lock)


def _huge_pages(gfn_range: KvmGfnRange) -> Iterator[tuple[int, int]]:
    """Level and first gfn of all huge pages of the slot that the range touches, small ones first."""
    slot = gfn_range.slot
    base, behind = slot.base_gfn, slot.base_gfn + slot.npages
    for level in (PG_LEVEL_2M, PG_LEVEL_1G):
        pages = pages_per_entry(level)
        for gfn in range(gfn_round_for_level(gfn_range.start, level), gfn_range.end, pages):
            if base <= gfn and gfn + pages <= behind:
                yield level, gfn


def _is_inside(gfn_range: KvmGfnRange, level: int, gfn: int) -> bool:
    return gfn_range.start <= gfn and gfn + pages_per_entry(level) <= gfn_range.end


def _at_borders(gfn_range: KvmGfnRange) -> tuple[tuple[int, int], ...]:
    """Those of which the range has a part only: at most two of each level."""
    return tuple(found for found in _huge_pages(gfn_range) if not _is_inside(gfn_range, *found))


def _inside(gfn_range: KvmGfnRange) -> tuple[tuple[int, int], ...]:
    return tuple(found for found in _huge_pages(gfn_range) if _is_inside(gfn_range, *found))


def _set_mixed(slot: KvmMemorySlot, gfn: int, level: int, mixed: bool) -> None:
    count = slot.arch.disallow_lpage[level, gfn]
    slot.arch.disallow_lpage[level, gfn] = count & ~KVM_LPAGE_MIXED_FLAG | (KVM_LPAGE_MIXED_FLAG if mixed else 0)


@routine
def _hugepage_has_attrs(kvm: Kvm, slot: KvmMemorySlot, gfn: int, level: int, attributes: int) -> bool:
    """Have all gfns of the huge page these attributes? slots_lock held."""
    if level == PG_LEVEL_2M:
        return bool(_has_attributes(kvm, gfn, gfn + pages_per_entry(level), attributes))
    for small in range(gfn, gfn + pages_per_entry(level), pages_per_entry(level - 1)):
        mixed = slot.arch.disallow_lpage[level - 1, small] & KVM_LPAGE_MIXED_FLAG
        if mixed or not _has_attributes(kvm, small, small + 1, attributes):
            return False
    return True


@operation(marked=False, words=lambda kvm, start, end, attributes, _: f"looks at the attributes of gfns {start:#x} ff.")
def _has_attributes(memory: Memory, kvm: Kvm, start: int, end: int, attributes: int) -> bool:
    """Have all these gfns these attributes (kvm_range_has_memory_attributes)? slots_lock held."""
    return all(memory.load_cell(Kvm.mem_attr_array.element(kvm, gfn)) == attributes for gfn in range(start, end))


@operation(words=lambda kvm, start, end, attributes, _: f"stores attributes {attributes:#x} for gfns {start:#x} ff.")
def _xa_store(memory: Memory, kvm: Kvm, start: int, end: int, attributes: int) -> None:
    """Store the attributes of these gfns. In the kernel one after the other; until all are there, faults on any of them
    retry. slots_lock held."""
    for gfn in range(start, end):
        memory.store_cell(Kvm.mem_attr_array.element(kvm, gfn), attributes)
