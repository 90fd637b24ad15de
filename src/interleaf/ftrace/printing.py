"""The model's records as the kernel prints its events: the counterpart of `texts`.

What the model does not have is printed as a kernel could have it: rip is 0, no shadow page is in use, and `%p` prints
a number that stands for the address, as the kernel's hash does. The probes are those that `record` sets.
 (kernel arch/x86/kvm/mmu/mmutrace.h,
arch/x86/kvm/trace.h, include/trace/events/kvm.h; v5.13 to v6.18)
"""

from __future__ import annotations

from interleaf.hw.access import (
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from interleaf.hw.page_table import pages_per_entry
from interleaf.hw.platform import Paging
from interleaf.kvm import trace as model
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmVcpu, kvm_dirty_ring
from interleaf.kvm.mmu_internal import RetPf
from interleaf.kvm.tdp.spte import is_executable_pte, is_writable_pte
from interleaf.linux.refcount import refcount_t
from interleaf.runtime import Memory, ModelError

from .access import qualification_of

ACCESS = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")
"""By ACC_*: the access of a page-table page."""

FLAGS = (
    (PFERR_PRESENT_MASK, "P"),
    (PFERR_WRITE_MASK, "W"),
    (PFERR_USER_MASK, "U"),
    (PFERR_RSVD_MASK, "RSVD"),
    (PFERR_FETCH_MASK, "F"),
)

HASH = 0x9E3779B1

ZAP_RANGE = "zap_range", "kvm_zap_gfn_range"
"""The probe of that function, and the function."""


def printed(record: object, memory: Memory) -> list[tuple[str, str]]:
    """The events of a record that has just been emitted in the execution of `memory`: name and text of each. Raises
    ModelError for what is no record of an event."""
    if isinstance(record, model.Entry) and _requested(_vm(memory), memory, record.vcpu_id):
        return []  # the vCPU looks for requests before it says that it enters the guest
    if isinstance(record, model.EmptyFrozen):
        as_id, first, end, level, old, new = record
        gfns = range(first, end, pages_per_entry(level))
        return [_printed(model.SpteChanged(as_id, gfn, level, old, new), memory) for gfn in gfns]
    return [_printed(record, memory)]


def _printed(record: object, memory: Memory) -> tuple[str, str]:
    match record:
        case model.SpteChanged(as_id, gfn, level, old, new):
            text = f"as id {as_id} gfn {gfn:x} level {level} old_spte {old:x} new_spte {new:x}"
            return "kvm_tdp_mmu_spte_changed", text
        case model.SpteRequested(gfn, pfn, level):
            return "kvm_mmu_spte_requested", f"gfn {gfn:x} pfn {pfn:x} level {level}"
        case model.SetSpte(gfn, spte, level, sptep):
            rights = _rights(_vm(memory), spte)
            return "kvm_mmu_set_spte", f"gfn {gfn:x} spte {spte:x} ({rights}) level {level} at {sptep:x}"
        case model.GetPage(sp):
            return "kvm_mmu_get_page", f"{_page(memory, sp)} new"
        case model.PrepareZapPage(sp):
            return "kvm_mmu_prepare_zap_page", _page(memory, sp)
        case model.ZapAllFast(generation):
            return "kvm_mmu_zap_all_fast", f"kvm-mmu-valid-gen {generation} used_pages 0"
        case model.FastPageFault(vcpu, gpa, code, old, new, ret, sptep):
            text = (
                f"vcpu {vcpu} gva {gpa:x} error_code {_flags(code)} sptep {_pointer(sptep)} old {old:#x} new {new:x} "
                f"spurious {ret == RetPf.SPURIOUS:d} fixed {ret == RetPf.FIXED:d}"
            )
            return "fast_page_fault", text
        case model.SplitHugePage(gfn, spte, level, errno):
            return "kvm_mmu_split_huge_page", f"gfn {gfn:x} spte {spte:x} level {level} errno {errno}"
        case model.MarkMmioSpte(gfn, access, generation, sptep):
            return "mark_mmio_spte", f"sptep:{_pointer(sptep)} gfn {gfn:x} access {access:x} gen {generation:x}"
        case model.CheckMmioSpte(kvm_gen, spte_gen, spte, valid):
            text = f"spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {valid:d}"
            return "check_mmio_spte", text
        case model.HandleMmioPageFault(addr, gfn, access):
            return "handle_mmio_page_fault", f"addr:{addr:x} gfn {gfn:x} access {access:x}"
        case model.PageFault(vcpu, address, code):
            return "kvm_page_fault", _fault(_vm(memory), vcpu, address, code)
        case model.Entry(vcpu):
            return "kvm_entry", f"vcpu {vcpu}, rip 0x0"
        case model.UnmapHvaRange(start, end):
            return "kvm_unmap_hva_range", f"mmu notifier unmap range: {start:#016x} -- {end:#016x}"
        case model.AgeHva(start, end):
            return "kvm_age_hva", f"mmu notifier age hva: {start:#016x} -- {end:#016x}"
        case model.TestAgeHva(hva):
            return "kvm_test_age_hva", f"mmu notifier test age hva: {hva:#016x}"
        case model.SetSpteHva(hva):
            return "kvm_set_spte_hva", f"mmu notifier set pte hva: {hva:#016x}"
        case model.DirtyRingPush(ring, slot, offset):
            dirty, reset = _ring(_vm(memory), memory, ring)
            indices = f"ring {ring}: dirty {dirty:#x} reset {reset:#x}"
            return "kvm_dirty_ring_push", f"{indices} slot {slot} offset {offset:#x} (used {dirty - reset})"
        case model.DirtyRingReset(ring):
            dirty, reset = _ring(_vm(memory), memory, ring)
            return "kvm_dirty_ring_reset", f"ring {ring}: dirty {dirty:#x} reset {reset:#x} (used {dirty - reset})"
        case model.DirtyRingExit(vcpu):
            return "kvm_dirty_ring_exit", f"vcpu {vcpu}"
        case model.SetMemoryRegion(slot, flags, gpa, size, hva):
            values = f"slot={slot} flags={flags} gpa={gpa:#x} size={size:#x} hva={hva:#x}"
            return "set_memory_region", f"{_function('__kvm_set_memory_region', 'kvm')} {values}"
        case model.LoadMmuPgd(vcpu, root, level):
            ept = _vm(memory).platform.paging is Paging.EPT
            where = _function("vmx_load_mmu_pgd", "kvm_intel") if ept else _function("svm_load_mmu_pgd", "kvm_amd")
            return "load_pgd", f"{where} vcpu={vcpu + 1:#x} root={root:#x} level={level:#x}"
        case model.ZapAll():
            return "zap_all", f"{_function('kvm_mmu_zap_all', 'kvm')} kvm=0x1"
        case model.ZapGfnRange(start, end, attributes):
            name, symbol = ("set_attributes", "kvm_arch_pre_set_memory_attributes") if attributes else ZAP_RANGE
            return name, f"{_function(symbol, 'kvm')} start={start:#x} end={end:#x}"
    raise ModelError(f"{record!r} is no record of an event that a kernel has.")


def _function(symbol: str, module: str) -> str:
    """Where a probe has been hit."""
    return f"({symbol}+0x0/0x1 [{module}])"


def _vm(memory: Memory) -> Kvm:
    """The latest VM; those before it are gone."""
    return [found for found in memory.world.objects.values() if isinstance(found, Kvm)][-1]


def _page(memory: Memory, sp: KvmMmuPage) -> str:
    """Of a TDP MMU page, `gen` is 0 when it is made and when it is removed."""
    role = memory.peek(KvmMmuPage.role.cell(sp))
    gfn = memory.peek(KvmMmuPage.gfn.cell(sp)) & -pages_per_entry(role.level + 1)
    references = memory.peek(refcount_t.refs.cell(sp.tdp_mmu_root_count))
    return (
        f"sp gen 0 gfn {gfn:x} l{role.level} 8-byte q0{' direct' if role.direct else ''} {ACCESS[role.access]}"
        f"{' invalid' if role.invalid else ''} {'' if role.efer_nx else '!'}nxe {'!' if role.ad_disabled else ''}ad "
        f"root {references} sync"
    )


def _rights(kvm: Kvm, spte: int) -> str:
    masks = kvm.masks
    return (
        f"r{'w' if is_writable_pte(spte) else '-'}{'x' if is_executable_pte(masks, spte) else '-'}"
        f"{'u' if spte & masks.user else '-'}"
    )


def _fault(kvm: Kvm, vcpu: int, address: int, code: int) -> str:
    """On Intel's processors the event has the exit qualification as its error code."""
    if kvm.platform.paging is Paging.EPT:
        code = qualification_of(code)
    if kvm.design.fault_event_names_vcpu:
        return f"vcpu {vcpu} rip 0x0 address {address:#018x} error_code {code:#x}"
    return f"address {address:x} error_code {code:x}"


def _flags(code: int) -> str:
    """As __print_flags() does, with what has no name as a number."""
    parts = [name for mask, name in FLAGS if code & mask]
    rest = code & ~sum(mask for mask, _ in FLAGS)
    return "|".join([*parts, f"{rest:#x}"] if rest else parts)


def _pointer(address: int) -> str:
    return f"{address * HASH & 0xFFFFFFFF:016x}"


def _requested(kvm: Kvm, memory: Memory, index: int) -> bool:
    vcpus: tuple[KvmVcpu, ...] = memory.peek(Kvm.vcpus.cell(kvm))
    return bool(memory.peek(KvmVcpu.requests.cell(vcpus[index])))


def _ring(kvm: Kvm, memory: Memory, vcpu: int) -> tuple[int, int]:
    """Its dirty and its reset index."""
    vcpus: tuple[KvmVcpu, ...] = memory.peek(Kvm.vcpus.cell(kvm))
    ring = vcpus[vcpu].dirty_ring
    return memory.peek(kvm_dirty_ring.dirty_index.cell(ring)), memory.peek(kvm_dirty_ring.reset_index.cell(ring))
