"""KVM's tracepoints: what the model tells whoever follows one of its runs, in the kernel's own terms.

Besides, the entries of a few functions at which whoever traces a kernel sets probes, because no event tells of them:
memslot changes, root loads, zaps that nobody has asked for by a notifier.

One record a tracepoint, with the fields of the kernel's event (arch/x86/kvm/mmu/mmutrace.h, arch/x86/kvm/trace.h,
include/trace/events/kvm.h; v6.12), and one function a tracepoint that emits it, called where the kernel calls it. A
search does not listen, and pays nothing for them.
"""

from __future__ import annotations

from typing import NamedTuple

from interleaf.runtime import trace

from .kvm_host import KvmMmuPage


class SpteChanged(NamedTuple):
    """kvm_tdp_mmu_spte_changed: after the write, with the value that KVM believes to have replaced."""

    as_id: int
    gfn: int
    level: int
    old_spte: int
    new_spte: int


class EmptyFrozen(NamedTuple):
    """kvm_tdp_mmu_spte_changed, once for each entry of `level` for gfn to `end`: it was empty, and is frozen.

    A VM that names its gfns does not visit entries that lead to none of them, but the kernel does.
    """

    as_id: int
    gfn: int
    end: int
    level: int
    old_spte: int
    new_spte: int


class SpteRequested(NamedTuple):
    """kvm_mmu_spte_requested: a fault is going to be mapped; `pfn` is that of the very page."""

    gfn: int
    pfn: int
    level: int


class SetSpte(NamedTuple):
    """kvm_mmu_set_spte: a leaf has been installed for a fault, at the physical address `sptep`."""

    gfn: int
    spte: int
    level: int
    sptep: int


class GetPage(NamedTuple):
    """kvm_mmu_get_page: a table has been made (before it is linked, or on the list of roots)."""

    sp: KvmMmuPage


class PrepareZapPage(NamedTuple):
    """kvm_mmu_prepare_zap_page: a table has been disconnected and is about to be torn down. Never a TDP root."""

    sp: KvmMmuPage


class ZapAllFast(NamedTuple):
    """kvm_mmu_zap_all_fast: with the generation as it was before."""

    mmu_valid_gen: int


class FastPageFault(NamedTuple):
    """fast_page_fault: a fault has been handled without mmu_lock, or not."""

    vcpu_id: int
    gpa: int
    error_code: int
    old_spte: int
    new_spte: int
    ret: int
    sptep: int


class SplitHugePage(NamedTuple):
    """kvm_mmu_split_huge_page: a huge page has been split for dirty logging, or not (`errno`)."""

    gfn: int
    spte: int
    level: int
    errno: int


class MarkMmioSpte(NamedTuple):
    """mark_mmio_spte: a gfn without memslot gets an MMIO SPTE."""

    gfn: int
    access: int
    generation: int
    sptep: int


class CheckMmioSpte(NamedTuple):
    """check_mmio_spte: an MMIO SPTE was met, of generation `spte_gen`."""

    kvm_gen: int
    spte_gen: int
    spte: int
    valid: bool


class HandleMmioPageFault(NamedTuple):
    """handle_mmio_page_fault: MMIO that an SPTE has cached."""

    addr: int
    gfn: int
    access: int


class PageFault(NamedTuple):
    """kvm_page_fault: an EPT violation or nested page fault at guest physical `address`."""

    vcpu_id: int
    address: int
    error_code: int


class Entry(NamedTuple):
    """kvm_entry: a vCPU is about to enter the guest."""

    vcpu_id: int


class UnmapHvaRange(NamedTuple):
    """kvm_unmap_hva_range: the unmap notifier, for start <= hva < end in bytes."""

    start: int
    end: int


class AgeHva(NamedTuple):
    """kvm_age_hva: the notifier that clears and reports accessed state, for start <= hva < end in bytes."""

    start: int
    end: int


class TestAgeHva(NamedTuple):
    """kvm_test_age_hva: the notifier that reports accessed state of one page."""

    hva: int


class SetSpteHva(NamedTuple):
    """kvm_set_spte_hva: the host has changed the PTE of one page (v5.13 to v6.9)."""

    hva: int


class DirtyRingPush(NamedTuple):
    """kvm_dirty_ring_push: a vCPU has logged a page in its ring."""

    ring: int
    slot: int
    offset: int


class DirtyRingReset(NamedTuple):
    """kvm_dirty_ring_reset: userspace has collected entries of a ring, and KVM has protected the pages again."""

    ring: int


class DirtyRingExit(NamedTuple):
    """kvm_dirty_ring_exit: a vCPU leaves to userspace because its ring is nearly full."""

    vcpu_id: int


class SetMemoryRegion(NamedTuple):
    """kvm_set_memory_region() is called with what user space gives: the address space in the upper half of `slot`;
    sizes and addresses in bytes."""

    slot: int
    flags: int
    gpa: int
    size: int
    hva: int


class LoadMmuPgd(NamedTuple):
    """vmx_load_mmu_pgd() or svm_load_mmu_pgd() is called: a vCPU is going to use the root table at the physical address
    `root`."""

    vcpu_id: int
    root: int
    level: int


class ZapAll(NamedTuple):
    """kvm_mmu_zap_all() is called: the VM or its process ends."""


class ZapGfnRange(NamedTuple):
    """kvm_zap_gfn_range() is called, or kvm_arch_pre_set_memory_attributes() (`attributes`): for start <= gfn < end."""

    start: int
    end: int
    attributes: bool


def trace_kvm_tdp_mmu_spte_changed(as_id: int, gfn: int, level: int, old_spte: int, new_spte: int) -> None:
    """Emitted only where the two values differ."""
    trace(SpteChanged(as_id, gfn, level, old_spte, new_spte))


def trace_empty_frozen(as_id: int, gfn: int, end: int, level: int, old_spte: int, new_spte: int) -> None:
    """Nothing, where there is no such entry."""
    if gfn < end:
        trace(EmptyFrozen(as_id, gfn, end, level, old_spte, new_spte))


def trace_kvm_mmu_spte_requested(gfn: int, pfn: int, level: int) -> None:
    """`gfn` and `pfn` in 4 KiB pages."""
    trace(SpteRequested(gfn, pfn, level))


def trace_kvm_mmu_set_spte(gfn: int, spte: int, level: int, sptep: int) -> None:
    """`sptep`: physical address of the entry in bytes."""
    trace(SetSpte(gfn, spte, level, sptep))


def trace_kvm_mmu_get_page(sp: KvmMmuPage) -> None:
    """A new table."""
    trace(GetPage(sp))


def trace_kvm_mmu_prepare_zap_page(sp: KvmMmuPage) -> None:
    """A table that has been disconnected."""
    trace(PrepareZapPage(sp))


def trace_kvm_mmu_zap_all_fast(mmu_valid_gen: int) -> None:
    """Before the generation is toggled."""
    trace(ZapAllFast(mmu_valid_gen))


def trace_fast_page_fault(
    vcpu_id: int, gpa: int, error_code: int, old_spte: int, new_spte: int, ret: int, sptep: int
) -> None:
    """`gpa` in bytes; `ret` is a RetPf; `sptep`: physical address of the entry in bytes."""
    trace(FastPageFault(vcpu_id, gpa, error_code, old_spte, new_spte, ret, sptep))


def trace_kvm_mmu_split_huge_page(gfn: int, spte: int, level: int, errno: int) -> None:
    """`spte`: the huge page's."""
    trace(SplitHugePage(gfn, spte, level, errno))


def trace_mark_mmio_spte(gfn: int, access: int, generation: int, sptep: int) -> None:
    """`access`: a mask of ACC_*; `sptep`: physical address of the entry in bytes."""
    trace(MarkMmioSpte(gfn, access, generation, sptep))


def trace_check_mmio_spte(spte: int, kvm_gen: int, spte_gen: int) -> None:
    """Valid if both generations are the same."""
    trace(CheckMmioSpte(kvm_gen, spte_gen, spte, kvm_gen == spte_gen))


def trace_handle_mmio_page_fault(addr: int, gfn: int, access: int) -> None:
    """`addr` in bytes."""
    trace(HandleMmioPageFault(addr, gfn, access))


def trace_kvm_page_fault(vcpu_id: int, address: int, error_code: int) -> None:
    """`address` in bytes."""
    trace(PageFault(vcpu_id, address, error_code))


def trace_kvm_entry(vcpu_id: int) -> None:
    """The vCPU runs guest code next."""
    trace(Entry(vcpu_id))


def trace_kvm_unmap_hva_range(start: int, end: int) -> None:
    """In bytes, whether or not a memslot is there."""
    trace(UnmapHvaRange(start, end))


def trace_kvm_age_hva(start: int, end: int) -> None:
    """In bytes."""
    trace(AgeHva(start, end))


def trace_kvm_test_age_hva(hva: int) -> None:
    """In bytes."""
    trace(TestAgeHva(hva))


def trace_kvm_set_spte_hva(hva: int) -> None:
    """In bytes."""
    trace(SetSpteHva(hva))


def trace_kvm_dirty_ring_push(ring: int, slot: int, offset: int) -> None:
    """`offset`: of the page in its slot."""
    trace(DirtyRingPush(ring, slot, offset))


def trace_kvm_dirty_ring_reset(ring: int) -> None:
    """The entries that userspace has collected are free again."""
    trace(DirtyRingReset(ring))


def trace_kvm_dirty_ring_exit(vcpu_id: int) -> None:
    """The vCPU stops until its ring is emptied."""
    trace(DirtyRingExit(vcpu_id))


def trace_kvm_set_memory_region(slot: int, flags: int, gpa: int, size: int, hva: int) -> None:
    """`slot` as user space gives it; the rest in bytes. size 0: the slot is deleted."""
    trace(SetMemoryRegion(slot, flags, gpa, size, hva))


def trace_load_mmu_pgd(vcpu_id: int, root: int, level: int) -> None:
    """`root`: a physical address in bytes."""
    trace(LoadMmuPgd(vcpu_id, root, level))


def trace_kvm_mmu_zap_all() -> None:
    """Before mmu_lock is taken."""
    trace(ZapAll())


def trace_kvm_zap_gfn_range(start: int, end: int, attributes: bool = False) -> None:
    """In 4 KiB pages."""
    trace(ZapGfnRange(start, end, attributes))
