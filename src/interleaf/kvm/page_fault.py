"""Page faults of the guest: finding the page and mapping it (kvm_tdp_page_fault; arch/x86/kvm/mmu/mmu.c, v6.12).

The pfn is looked up without mmu_lock, because that may sleep; under the lock the fault then makes sure that
nothing has happened meanwhile that would make what it found wrong (is_page_fault_stale), and starts again if so.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.linux.bug import BUG_ON
from interleaf.linux.lockdep import lockdep_assert_held
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.linux.srcu import srcu_dereference
from interleaf.mm.mm import get_user_page
from interleaf.runtime import Memory, Violation, operation, routine, say
from interleaf.runtime.cells import Cell

from .attributes import kvm_gmem_get_pfn, kvm_mem_is_private
from .design import rule
from .fast_page_fault import fast_page_fault
from .invalidate import INVALIDATE_NAMES_GFNS, mmu_invalidate_retry_gfn, mmu_invalidate_retry_hva
from .kvm_host import (
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    KVM_PFN_NOSLOT,
    PFERR_PRIVATE_ACCESS,
    Kvm,
    KvmMemorySlot,
    KvmMmuPage,
    KvmVcpu,
)
from .memslots import gfn_to_memslot
from .mmio import handle_mmio_page_fault, vcpu_cache_mmio_info
from .mmu_internal import KvmPageFault, RetPf
from .page_track import kvm_gfn_is_write_tracked
from .paging_tmpl import ept_fetch
from .pfn import kvm_release_pfn_clean
from .request import kvm_test_reload_request
from .shadow import (
    RECLAIM_FOR_LEGACY_ONLY,
    is_obsolete_sp,
    make_mmu_pages_available,
    to_shadow_page,
)
from .tdp import ghost
from .tdp.map import kvm_tdp_mmu_map
from .tdp.spte import is_nx_huge_page_enabled

STALE_ROOT_CHECK = rule(
    "stale-root-check",
    "A page fault that finds its root invalid once it holds mmu_lock maps nothing and tries again with a new root.",
    "a955cad84cda",
)
SPECIAL_ROOT_CHECK = rule(
    "special-root-check",
    "A page fault on a root without a shadow page takes it for invalid if the vCPU is requested to put its root, "
    "instead of looking into the shadow page.",
    "18c841e1f411",
)
STALE_CHECK_AFTER_RECLAIM = rule(
    "stale-check-after-reclaim",
    "A page fault looks whether its root is invalid after it has recycled shadow pages, which may make it so.",
    "2abd5287f083",
)
NOTIFIER_RETRY = rule(
    "notifier-retry",
    "A page fault maps nothing and tries again if an MMU notifier ran, or is running, since it looked up its pfn.",
    "e930bffe95e1",
)
INVALID_SLOT_RETRY = rule(
    "invalid-slot-retry",
    "A page fault that finds its memslot marked INVALID maps nothing and tries again until the slot is gone, instead "
    "of taking the access for MMIO.",
    "e0c378684b65",
)
PREFAULT_INVALID_SLOT = rule(
    "prefault-invalid-slot",
    "A prefetch that finds its memslot marked INVALID fails, instead of trying again while the deletion of the slot "
    "waits for it.",
    "3ccbf6f47098",
)
RETRY_BEFORE_LOCK = rule(
    "retry-before-lock",
    "A page fault tries again without having taken mmu_lock if it knows already, before or after the lookup of its "
    "pfn, that it would have to under the lock.",
    "d02c357e5bfa",
)
FULL_MMU_SEQ = rule(
    "full-mmu-seq",
    "A page fault remembers all bits of the sequence number of invalidations, instead of as many as an int has.",
    "ba6e3fe25543",
)


@routine
def _is_obsolete(vcpu: KvmVcpu, root: KvmMmuPage) -> bool:
    """Has the vCPU's root been invalidated, or (for a special root, of which that is not known) may it have been?
    mmu_lock held."""
    sp = to_shadow_page(root)
    if sp is not None:
        return bool(is_obsolete_sp(vcpu.kvm, sp))
    BUG_ON(not vcpu.kvm.design.obeys(SPECIAL_ROOT_CHECK), "NULL pointer dereference: the root has no shadow page")
    requested: bool = kvm_test_reload_request(vcpu)
    return requested


@routine
def is_page_fault_stale(vcpu: KvmVcpu, fault: KvmPageFault) -> bool:
    """Must the fault start again, because its root or its pfn may be out of date? mmu_lock held."""
    kvm = vcpu.kvm
    lockdep_assert_held(kvm.mmu_lock)
    root = vcpu.mmu_root
    if kvm.design.obeys(STALE_ROOT_CHECK) and root is not None and _is_obsolete(vcpu, root):
        return True
    if fault.slot is None or not kvm.design.obeys(NOTIFIER_RETRY):
        return False
    if kvm.design.obeys(INVALIDATE_NAMES_GFNS):
        return bool(mmu_invalidate_retry_gfn(kvm, fault.mmu_seq, fault.gfn))
    return bool(mmu_invalidate_retry_hva(kvm, fault.mmu_seq, fault.hva))


def remembered_mmu_seq(kvm: Kvm, seq: int) -> int:
    """What a fault keeps of the sequence number: all of it, or an int, which is widened with its sign again when it
    is compared."""
    if kvm.design.obeys(FULL_MMU_SEQ):
        return seq
    bits = kvm.params.mmu_seq_bits
    half = 1 << bits // 2
    low = seq & half - 1
    return (low - half if low & half >> 1 else low) & (1 << bits) - 1


def _must_retry(memory: Memory, kvm: Kvm, gfn: int, seq: int) -> bool:
    in_progress = memory.look(Kvm.mmu_invalidate_in_progress.cell(kvm))
    start = memory.look(Kvm.mmu_invalidate_range_start.cell(kvm))
    end = memory.look(Kvm.mmu_invalidate_range_end.cell(kvm))
    return bool(in_progress and start <= gfn < end) or memory.look(Kvm.mmu_invalidate_seq.cell(kvm)) != seq


def _looked_up(memory: Memory) -> Cell:
    return ghost.looked_up.cell(memory.world.tasks[memory.task])


@operation(marked=False)
def _expect_up_to_date(memory: Memory, kvm: Kvm, gfn: int) -> None:
    """Property "stale-range": what has just been mapped was not looked up before a zap of its gfn that has begun, or
    is over. mmu_lock held for read."""
    memory.exercise("stale-range")
    since = memory.look(ghost.range_zaps.cell(kvm))[memory.look(_looked_up(memory)) :]
    if any(start <= gfn < end for start, end in since):
        message = (
            f"gfn {gfn:#x} is mapped with what was looked up before it was zapped because that changes: it stays as it "
            "was"
        )
        memory.violate(Violation("stale-range", message, object=kvm.name))


@operation(
    focus=lambda kvm, gfn: Kvm.mmu_invalidate_seq.cell(kvm),
    words=lambda kvm, gfn, seq: f"{kvm.name}.mmu_invalidate_seq == {seq}",
)
def _snapshot(memory: Memory, kvm: Kvm, gfn: int) -> int | None:
    """Read the sequence number of invalidations; None if one is in progress for `gfn`, so that the fault must retry.

    The kernel reads what is in progress after the number. If that changes in between, then either the fault retries
    here although it need not, or it finds the same under mmu_lock: one moment for both leaves no mapping out.
    """
    seq: int = memory.load(kvm, Kvm.mmu_invalidate_seq)
    ghost.note(memory, _looked_up(memory), len(memory.look(ghost.range_zaps.cell(kvm))))
    if kvm.design.obeys(RETRY_BEFORE_LOCK) and _must_retry(memory, kvm, gfn, seq):
        return None
    return seq


@operation(marked=False)
def mmu_invalidate_retry_gfn_unsafe(memory: Memory, kvm: Kvm, mmu_seq: int, gfn: int) -> bool:
    """May a pfn for `gfn`, looked up after the snapshot `mmu_seq`, be out of date? Without mmu_lock.

    If so it will be when mmu_lock is held, too, so it does not matter at which moment the question is asked: here it
    is right after the lookup.
    """
    return _must_retry(memory, kvm, gfn, mmu_seq)


@routine
def kvm_handle_noslot_fault(vcpu: KvmVcpu, fault: KvmPageFault) -> KvmPageFault | RetPf:
    """A fault on a gfn without a memslot: MMIO. EMULATE, or the fault that is to be mapped by an MMIO SPTE. In a reader
    of `kvm->srcu`."""
    vcpu_cache_mmio_info(vcpu, fault.gfn)
    if not vcpu.kvm.params.mmio_caching or not vcpu.kvm.masks.mmio_value:
        return RetPf.EMULATE
    return replace(fault, slot=None, pfn=KVM_PFN_NOSLOT, map_writable=False)


@routine
def kvm_faultin_pfn(vcpu: KvmVcpu, fault: KvmPageFault) -> KvmPageFault | RetPf | int:
    """Find the page behind the fault's gfn.

    Returns the fault with its pfn, on which it has a reference (KVM_PFN_NOSLOT for a gfn without a slot); or RETRY for
    a slot that is being deleted, EMULATE for MMIO that is not cached and for a write to a read-only slot; -EFAULT if
    the slot's memory is not mapped, or private memory is accessed as if it were shared, or the other way round. In a
    reader of `kvm->srcu`, in which `fault.slot` was found. May sleep.
    """
    kvm, slot = vcpu.kvm, fault.slot
    hva = 0 if slot is None else slot.userspace_addr + fault.gfn - slot.base_gfn
    where = fault.gfn if kvm.design.obeys(INVALIDATE_NAMES_GFNS) else hva
    seq = _snapshot(kvm, where)
    if fault.is_private != kvm_mem_is_private(kvm, fault.gfn):
        return -errno.EFAULT
    if slot is None:
        return kvm_handle_noslot_fault(vcpu, fault)
    flags = slot.flags
    if flags & KVM_MEMSLOT_INVALID:
        return _invalid_slot(vcpu, fault)
    if seq is None:
        return RetPf.RETRY
    fault = replace(fault, mmu_seq=remembered_mmu_seq(kvm, seq), hva=hva)
    if fault.is_private:
        found = kvm_gmem_get_pfn(kvm, fault.gfn)
        return replace(fault, pfn=found, max_level=PG_LEVEL_4K)
    if fault.write and flags & KVM_MEM_READONLY:
        return RetPf.EMULATE
    pinned = get_user_page(kvm.mm, hva, fault.write)
    if pinned is None:
        return -errno.EFAULT
    if kvm.design.obeys(RETRY_BEFORE_LOCK) and mmu_invalidate_retry_gfn_unsafe(kvm, fault.mmu_seq, where):
        kvm_release_pfn_clean(pinned.pfn)
        return RetPf.RETRY
    return replace(fault, pfn=pinned.pfn, map_writable=pinned.writable and not flags & KVM_MEM_READONLY)


@routine
def _invalid_slot(vcpu: KvmVcpu, fault: KvmPageFault) -> KvmPageFault | RetPf | int:
    """A fault on a gfn whose memslot is being deleted, or moved."""
    design = vcpu.kvm.design
    if fault.prefetch and design.obeys(PREFAULT_INVALID_SLOT):
        return -errno.EAGAIN
    if not design.obeys(INVALID_SLOT_RETRY):
        return kvm_handle_noslot_fault(vcpu, fault)
    say(f"gfn {fault.gfn:#x} is in a memslot that is being deleted: tries again")
    return RetPf.RETRY


def page_fault_handle_page_track(kvm: Kvm, fault: KvmPageFault) -> bool:
    """Is it a write to a page whose writes are tracked, and which is mapped? It must be emulated then."""
    if fault.rsvd or not fault.present or not fault.write or fault.slot is None:
        return False
    return kvm_gfn_is_write_tracked(fault.slot, fault.gfn)


@routine
def direct_page_fault(vcpu: KvmVcpu, fault: KvmPageFault) -> tuple[RetPf | int, int]:
    """Handle a fault on a gfn that is translated by the TDP MMU alone (kvm_tdp_mmu_page_fault).

    Returns RET_PF_* or a negative errno, and the level that was mapped. In a reader of `kvm->srcu`, in which
    `fault.slot` was found; the vCPU has a root. May sleep.
    """
    kvm: Kvm = vcpu.kvm
    if page_fault_handle_page_track(kvm, fault):
        return RetPf.WRITE_PROTECTED, PG_LEVEL_4K
    fast = fast_page_fault(vcpu, fault)
    if fast is not RetPf.INVALID:
        return fast, PG_LEVEL_4K
    found = kvm_faultin_pfn(vcpu, fault)
    if not isinstance(found, KvmPageFault):
        return found, PG_LEVEL_4K
    result: RetPf | int = RetPf.RETRY
    level = PG_LEVEL_4K
    read_lock(kvm.mmu_lock)
    if is_page_fault_stale(vcpu, found):
        say(f"the fault on gfn {fault.gfn:#x} is stale: tries again")
    elif not kvm.design.obeys(RECLAIM_FOR_LEGACY_ONLY) and make_mmu_pages_available(vcpu):
        result = -errno.ENOSPC
    else:
        result, level = kvm_tdp_mmu_map(vcpu, found)
        if result is RetPf.FIXED:
            _expect_up_to_date(kvm, fault.gfn)
    read_unlock(kvm.mmu_lock)
    if found.pfn is not None and found.pfn != KVM_PFN_NOSLOT:
        kvm_release_pfn_clean(found.pfn)
    return result, level


@routine
def ept_page_fault(vcpu: KvmVcpu, fault: KvmPageFault) -> tuple[RetPf | int, int]:
    """Handle a fault of L2 on a gfn that L1 translates, too (FNAME(page_fault)). As direct_page_fault()."""
    kvm: Kvm = vcpu.kvm
    found = kvm_faultin_pfn(vcpu, replace(fault, max_level=PG_LEVEL_4K))
    if not isinstance(found, KvmPageFault):
        return found, PG_LEVEL_4K
    result: RetPf | int = RetPf.RETRY
    write_lock(kvm.mmu_lock)
    if kvm.design.obeys(STALE_CHECK_AFTER_RECLAIM):
        available = make_mmu_pages_available(vcpu)
        stale = is_page_fault_stale(vcpu, found)
    else:
        stale = is_page_fault_stale(vcpu, found)
        available = 0 if stale else make_mmu_pages_available(vcpu)
    if available:
        result = available
    elif stale:
        say(f"the fault on gfn {fault.gfn:#x} is stale: tries again")
    else:
        result = ept_fetch(vcpu, found)
    write_unlock(kvm.mmu_lock)
    if found.pfn is not None and found.pfn != KVM_PFN_NOSLOT:
        kvm_release_pfn_clean(found.pfn)
    return result, PG_LEVEL_4K


@routine
def find_memslot(vcpu: KvmVcpu, gfn: int) -> KvmMemorySlot | None:
    """The memslot of a gfn in the vCPU's address space (kvm_vcpu_gfn_to_memslot). In a reader of `kvm->srcu`."""
    slots = srcu_dereference(vcpu.kvm, Kvm.memslots, vcpu.kvm.srcu)
    assert slots is not None
    return gfn_to_memslot(slots, gfn, vcpu.root_role.as_id)


@routine
def kvm_mmu_do_page_fault(vcpu: KvmVcpu, gfn: int, error_code: int, prefetch: bool = False) -> tuple[RetPf | int, int]:
    """Handle an access to `gfn` that has faulted, or (`prefetch`) will: RET_PF_* or a negative errno, and the level
    that was mapped. In a reader of `kvm->srcu`; the vCPU has a root. May sleep."""
    kvm = vcpu.kvm
    fault = KvmPageFault(
        gfn,
        error_code,
        prefetch,
        nx_huge_page_workaround_enabled=is_nx_huge_page_enabled(kvm),
        max_level=kvm.params.max_level,
        slot=find_memslot(vcpu, gfn),
    )
    return direct_page_fault(vcpu, fault) if vcpu.root_role.direct else ept_page_fault(vcpu, fault)


@routine
def kvm_mmu_page_fault(vcpu: KvmVcpu, gfn: int, error_code: int) -> RetPf | int:
    """Handle an exit of the guest because of its access to `gfn`. Returns RET_PF_* (never INVALID) or a negative errno.

    In a reader of `kvm->srcu`; the vCPU has a root. May sleep.
    """
    if kvm_mem_is_private(vcpu.kvm, gfn):
        error_code |= PFERR_PRIVATE_ACCESS
    result: RetPf | int = RetPf.INVALID
    if KvmPageFault(gfn, error_code).rsvd:
        result = handle_mmio_page_fault(vcpu, gfn)
    if result is RetPf.INVALID:
        result, _level = kvm_mmu_do_page_fault(vcpu, gfn, error_code)
    return result
