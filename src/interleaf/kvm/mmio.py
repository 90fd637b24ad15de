"""MMIO: gfns without a memslot, and the SPTEs that remember that there is none (arch/x86/kvm/mmu/mmu.c, x86.h, v6.12).

Such an SPTE makes the hardware exit in a way of its own, and KVM emulates the access without looking for a memslot.
The SPTE holds the generation of the memslots, and counts only as long as that is the current one. So does the latest
MMIO access, which each vCPU remembers.
"""

from __future__ import annotations

import errno

from interleaf.hw.formats import entry_format
from interleaf.linux.atomic import READ_ONCE
from interleaf.linux.bug import WARN_ON_ONCE
from interleaf.linux.srcu import srcu_dereference
from interleaf.runtime import Memory, Violation, operation, routine, say

from .design import rule
from .kvm_host import (
    KVM_MEM_READONLY,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    KVM_MEMSLOT_INVALID,
    Kvm,
    KvmMemorySlot,
    KvmMemslots,
    KvmVcpu,
)
from .mmu_internal import RetPf
from .tdp.lockless import kvm_tdp_mmu_get_walk
from .tdp.spte import (
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_mmio_spte,
    is_shadow_present_pte,
)
from .trace import trace_check_mmio_spte, trace_handle_mmio_page_fault

MMIO_REFUSES_UPDATE = rule(
    "mmio-refuses-update",
    "While the memslots are being replaced, no MMIO SPTE counts and no MMIO access is remembered: their generation may "
    "be that of the old ones.",
    "361209e054a2",
)


@routine
def memslots_generation(vcpu: KvmVcpu) -> int:
    """The generation of the memslots of the vCPU's address space. In a reader of `kvm->srcu`."""
    slots = srcu_dereference(vcpu.kvm, Kvm.memslots, vcpu.kvm.srcu)
    assert slots is not None
    # one set of slots stands for those of both address spaces, whose generations differ in the lowest bit
    return READ_ONCE(slots, KvmMemslots.generation) + vcpu.root_role.as_id


def _refused(vcpu: KvmVcpu, generation: int) -> bool:
    return bool(generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS) and vcpu.kvm.design.obeys(MMIO_REFUSES_UPDATE)


@operation(marked=False)
def expect_no_memory(memory: Memory, vcpu: KvmVcpu, gfn: int) -> None:
    """Property "stale-mmio": an access is taken for MMIO, so no memslot has the gfn since before it was looked at.

    In the reader of `kvm->srcu` in which that was done: memslots that are not being replaced any more were published
    before this reader began, because whoever replaces them waits for it.
    """
    memory.exercise("stale-mmio")
    slots = memory.look(Kvm.memslots.cell(vcpu.kvm))
    if memory.look(KvmMemslots.generation.cell(slots)) & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS:
        return
    as_id = memory.look(KvmVcpu.root_role.cell(vcpu)).as_id
    for slot in memory.look(KvmMemslots.slots.cell(slots)):
        first = memory.look(KvmMemorySlot.base_gfn.cell(slot))
        ours = memory.look(KvmMemorySlot.as_id.cell(slot)) == as_id
        if not ours or not first <= gfn < first + memory.look(KvmMemorySlot.npages.cell(slot)):
            continue
        if not memory.look(KvmMemorySlot.flags.cell(slot)) & (KVM_MEMSLOT_INVALID | KVM_MEM_READONLY):
            message = f"an access of vCPU{vcpu.index} to gfn {gfn:#x} is taken for MMIO, but the gfn has memory"
            memory.violate(Violation("stale-mmio", message, object=vcpu.name))


@routine
def vcpu_cache_mmio_info(vcpu: KvmVcpu, gfn: int) -> None:
    """Remember that `gfn` has no memslot. In a reader of `kvm->srcu`."""
    generation = memslots_generation(vcpu)
    if not _refused(vcpu, generation):
        vcpu.mmio_cache = (gfn, generation)


@routine
def mmio_info_in_cache(vcpu: KvmVcpu, gfn: int) -> bool:
    """Does the vCPU remember that `gfn` has no memslot? (Never of gfn 0, which stands for nothing.)"""
    cached = vcpu.mmio_cache
    return bool(cached and gfn and cached == (gfn, memslots_generation(vcpu)))


@routine
def check_mmio_spte(vcpu: KvmVcpu, spte: int) -> bool:
    """Is an MMIO SPTE of the current generation? In a reader of `kvm->srcu`."""
    generation = memslots_generation(vcpu)
    if _refused(vcpu, generation):
        return False
    kvm_gen = generation & vcpu.kvm.params.mmio_gen_mask
    spte_gen = get_mmio_spte_generation(vcpu.kvm.masks, spte)
    trace_check_mmio_spte(spte, kvm_gen, spte_gen)
    return kvm_gen == spte_gen


@routine
def handle_mmio_page_fault(vcpu: KvmVcpu, gfn: int) -> RetPf | int:
    """The hardware has found reserved bits for `gfn`, as in an MMIO SPTE.

    EMULATE if it is MMIO; INVALID if the SPTE is too old, so that the fault must look for a memslot; RETRY if the SPTE
    has been zapped meanwhile; -EINVAL, with a WARN, if another SPTE has reserved bits. In a reader of `kvm->srcu`.
    """
    kvm = vcpu.kvm
    if mmio_info_in_cache(vcpu, gfn):
        return RetPf.EMULATE
    spte, level = kvm_tdp_mmu_get_walk(vcpu, gfn)
    if not is_mmio_spte(kvm.masks, spte):
        platform = kvm.platform
        reserved = is_shadow_present_pte(spte) and entry_format(platform).malformed(spte, level, platform.maxphyaddr)
        if WARN_ON_ONCE(reserved, f"the SPTE of gfn {gfn:#x}, {spte:#x}, has reserved bits"):
            return -errno.EINVAL
        return RetPf.RETRY
    if not check_mmio_spte(vcpu, spte):
        say(f"the MMIO SPTE of gfn {gfn:#x} is of an old generation")
        return RetPf.INVALID
    trace_handle_mmio_page_fault(0, get_mmio_spte_gfn(kvm.masks, spte), get_mmio_spte_access(kvm.masks, spte))
    vcpu_cache_mmio_info(vcpu, gfn)
    return RetPf.EMULATE
