"""KVM as a user of MMU notifiers: the host takes pages back (virt/kvm/kvm_main.c, v6.12).

invalidate_range_start unmaps the range from the guest, and invalidate_range_end lets faults map it again. Both
find the memslots that the range is in; the slots are not swapped in between (see memslots.py), so that both find
the same. If there are none, they take no lock and count nothing. The other notifiers ask whether pages are used, and
tell of PTEs that are replaced; they wait for nobody and change no more than bits of SPTEs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from interleaf.hw.ept import PFN_SHIFT
from interleaf.linux.bug import BUG_ON, WARN_ON
from interleaf.linux.lockdep import might_sleep
from interleaf.linux.refcount import refcount_t
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.linux.srcu import srcu_dereference, srcu_read_lock, srcu_read_unlock
from interleaf.linux.wait import wake_up
from interleaf.mm.mm import MmKernel, Pte
from interleaf.mm.mmu_notifier import MmuNotifier, MmuNotifierOps
from interleaf.runtime import Memory, Violation, operation, routine, say

from .design import Design, rule
from .invalidate import (
    INVALIDATE_NAMES_GFNS,
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
    kvm_mmu_invalidate_range_add,
)
from .kvm_host import Kvm, KvmGfnRange, KvmMemslots, KvmMmuPage, KvmRequest, KvmVcpu
from .shadow import kvm_memslots_have_rmaps, kvm_rmap_zap_gfn_range
from .tdp import tdp_mmu
from .tdp.age import AGE_LOCKLESS, kvm_tdp_mmu_age_gfn_range, kvm_tdp_mmu_test_age_gfn
from .tdp.change_pte import CHANGE_PTE, kvm_tdp_mmu_set_spte_gfn
from .tdp.work import must_not_yield
from .tlb import kvm_flush_remote_tlbs
from .trace import trace_kvm_age_hva, trace_kvm_set_spte_hva, trace_kvm_test_age_hva, trace_kvm_unmap_hva_range
from .zap import kvm_flush_shadow_all

AGE_ELIDES_FLUSH = rule(
    "age-without-flush",
    "Asking whether pages are used never flushes TLBs: a use that goes unnoticed for a while does no harm.",
    "v6.13",
)


def _gfn_ranges(slots: KvmMemslots, start: int, end: int, may_block: bool, arg: Pte | None) -> Iterator[KvmGfnRange]:
    """The parts of the slots that are backed by the hvas start <= hva < end."""
    for slot in slots.slots:
        first = max(start, slot.userspace_addr)
        last = min(end, slot.userspace_addr + slot.npages)
        if first < last:
            offset = slot.base_gfn - slot.userspace_addr
            yield KvmGfnRange(slot, first + offset, last + offset, may_block, arg)


@routine
def kvm_handle_hva_range(
    kvm: Kvm,
    start: int,
    end: int,
    handler: Callable[[Kvm, KvmGfnRange], bool] | None,
    on_lock: Callable[[Kvm], None] | None = None,
    flush_on_ret: bool = False,
    may_block: bool = False,
    lockless: bool = False,
    arg: Pte | None = None,
) -> bool:
    """Do something for the memslots that are backed by the hvas start <= hva < end: nothing if there is none, and else
    `on_lock` once, and `handler` for each; did any return True? With `flush_on_ret` TLBs are flushed if so.

    Takes mmu_lock for write, unless `lockless`, and may give it up on the way if `may_block`.
    """
    srcu = srcu_read_lock(kvm.srcu)
    ranges = tuple(_gfn_ranges(_memslots(kvm), start, end, may_block, arg))
    found = False
    if ranges:
        if not lockless:
            write_lock(kvm.mmu_lock)
        if on_lock is not None:
            on_lock(kvm)
        if on_lock is kvm_mmu_invalidate_begin and not kvm.design.obeys(INVALIDATE_NAMES_GFNS):
            kvm_mmu_invalidate_range_add(kvm, start, end)
        if not may_block:
            must_not_yield(True)
        for gfn_range in ranges:
            if handler is not None:
                found = handler(kvm, gfn_range) or found
        if not may_block:
            must_not_yield(False)
        if found and flush_on_ret:
            kvm_flush_remote_tlbs(kvm)
        if handler is kvm_mmu_unmap_gfn_range:
            for gfn_range in ranges:
                _expect_no_tlb_entry(kvm, gfn_range.start, gfn_range.end)
        if not lockless:
            write_unlock(kvm.mmu_lock)
    srcu_read_unlock(kvm.srcu, srcu)
    return found


@routine
def kvm_mmu_unmap_gfn_range(kvm: Kvm, gfn_range: KvmGfnRange) -> bool:
    """Unmap a range for a notifier, and have faults on it wait for the end. mmu_lock held for write."""
    if kvm.design.obeys(INVALIDATE_NAMES_GFNS):
        kvm_mmu_invalidate_range_add(kvm, gfn_range.start, gfn_range.end)
    say(f"unmap notifier for gfns {gfn_range.start:#x} to {gfn_range.end:#x}")
    return bool(kvm_unmap_gfn_range(kvm, gfn_range))


@routine
def kvm_unmap_gfn_range(kvm: Kvm, gfn_range: KvmGfnRange) -> bool:
    """Unmap a range from the guest; returns whether TLBs must be flushed. mmu_lock held for write."""
    flush = kvm_memslots_have_rmaps(kvm) and kvm_rmap_zap_gfn_range(kvm, gfn_range.start, gfn_range.end)
    return tdp_mmu.kvm_tdp_mmu_unmap_gfn_range(kvm, gfn_range, flush)


@operation(marked=False)
def _expect_no_tlb_entry(memory: Memory, kvm: Kvm, start: int, end: int) -> None:
    """I1 for TLBs: no vCPU has a translation of start <= gfn < end that it could use without flushing first.

    A vCPU flushes before it uses another root than its current and its previous ones, so an entry of another is
    harmless. So is one of an invalid root: the request to take another was made before mmu_lock was released, and no
    guest code runs on an invalid root after that (I9). So is everything once the last reference on the VM is gone, or
    the last thread of its process, which alone may call KVM_RUN (kvm_vcpu_ioctl): no vCPU can run any more, and the
    release notifier flushes nothing for that reason.
    """
    memory.exercise("I1")
    if 0 in (memory.look(refcount_t.refs.cell(count)) for count in (kvm.users_count, kvm.mm.mm_users)):
        return
    for vcpu in memory.look(Kvm.vcpus.cell(kvm)):
        requests = memory.look(KvmVcpu.requests.cell(vcpu))
        if requests >> KvmRequest.MMU_RELOAD & 1:
            continue
        roots = (memory.look(KvmVcpu.mmu_root.cell(vcpu)), *memory.look(KvmVcpu.prev_roots.cell(vcpu)))
        usable = [root for root in roots if root is not None and not memory.look(KvmMmuPage.role.cell(root)).invalid]
        for entry in memory.look(type(vcpu.cpu).tlb.cell(vcpu.cpu)):
            if entry.root in usable and start <= entry.gfn < end:
                message = (
                    f"invalidate_range_start has unmapped gfn {entry.gfn:#x}, but vCPU{vcpu.index} can still use its "
                    f"TLB entry for it (pfn {entry.pfn:#x})"
                )
                memory.violate(Violation("I1", message, object=kvm.name))


@routine
def kvm_mmu_notifier_invalidate_range_start(kvm: Kvm, start: int, end: int, blockable: bool) -> None:
    """Unmap the hvas start <= hva < end from the guest. Sleeps only if `blockable`.

    When it returns, no SPTE and no TLB entry maps any of the pages, and none will until the end of the range (I1).
    """
    if blockable:
        might_sleep()
    trace_kvm_unmap_hva_range(start << PFN_SHIFT, end << PFN_SHIFT)
    # the slots that range_end will see must be those that this sees: no swap of the slots in between
    spin_lock(kvm.mn_invalidate_lock)
    kvm.mn_active_invalidate_count += 1
    spin_unlock(kvm.mn_invalidate_lock)
    kvm_handle_hva_range(kvm, start, end, kvm_mmu_unmap_gfn_range, kvm_mmu_invalidate_begin, True, blockable)


@routine
def kvm_mmu_notifier_invalidate_range_end(kvm: Kvm, start: int, end: int) -> None:
    """The host has taken the pages at start <= hva < end: faults may look them up again."""
    kvm_handle_hva_range(kvm, start, end, None, kvm_mmu_invalidate_end)
    spin_lock(kvm.mn_invalidate_lock)
    BUG_ON(kvm.mn_active_invalidate_count == 0, "range_end without range_start")
    kvm.mn_active_invalidate_count -= 1
    last = kvm.mn_active_invalidate_count == 0
    spin_unlock(kvm.mn_invalidate_lock)
    if last:
        wake_up(kvm.mn_memslots_update_rcuwait)


@routine
def kvm_age_hva_range(
    kvm: Kvm, start: int, end: int, handler: Callable[[Kvm, KvmGfnRange], bool], flush_on_ret: bool
) -> bool:
    """Ask of the pages at start <= hva < end by `handler`, with mmu_lock held for write unless the design does without;
    was any used? With `flush_on_ret` TLBs are flushed if so. Does not sleep."""
    lockless = kvm.design.obeys(AGE_LOCKLESS)
    return bool(kvm_handle_hva_range(kvm, start, end, handler, None, flush_on_ret, False, lockless))


@routine
def kvm_mmu_notifier_clear_flush_young(kvm: Kvm, start: int, end: int) -> bool:
    """Was any page at start <= hva < end used since this was last asked?"""
    trace_kvm_age_hva(start << PFN_SHIFT, end << PFN_SHIFT)
    flush = not kvm.design.obeys(AGE_ELIDES_FLUSH)
    return kvm_age_hva_range(kvm, start, end, kvm_tdp_mmu_age_gfn_range, flush)


@routine
def kvm_mmu_notifier_clear_young(kvm: Kvm, start: int, end: int) -> bool:
    """The same, and never flush: whoever asks is content with an estimate."""
    trace_kvm_age_hva(start << PFN_SHIFT, end << PFN_SHIFT)
    return kvm_age_hva_range(kvm, start, end, kvm_tdp_mmu_age_gfn_range, False)


@routine
def kvm_mmu_notifier_test_young(kvm: Kvm, hva: int) -> bool:
    """Was the page at `hva` used since that was last asked? Asking changes nothing."""
    trace_kvm_test_age_hva(hva << PFN_SHIFT)
    return kvm_age_hva_range(kvm, hva, hva + 1, kvm_tdp_mmu_test_age_gfn, False)


@operation(words=lambda kvm, counts: "looks whether an invalidation is going on")
def _invalidations(memory: Memory, kvm: Kvm) -> tuple[bool, bool]:
    """Is any notifier between its start and its end, and does it concern a memslot? READ_ONCE() without the locks of
    the counters, which are counted up by plain accesses; for an aligned counter the kernel does not call that a
    race. Neither can change to no meanwhile if it is this task that has counted."""
    active = memory.look(Kvm.mn_active_invalidate_count.cell(kvm)) != 0
    return active, memory.look(Kvm.mmu_invalidate_in_progress.cell(kvm)) != 0


@routine
def kvm_change_spte_gfn(kvm: Kvm, gfn_range: KvmGfnRange) -> bool:
    """Change what maps a gfn whose PTE is replaced. Returns whether a TLB flush is needed. mmu_lock held for write."""
    assert gfn_range.arg is not None
    return bool(kvm_tdp_mmu_set_spte_gfn(kvm, gfn_range, gfn_range.arg))


@routine
def kvm_mmu_notifier_change_pte(kvm: Kvm, hva: int, entry: Pte) -> None:
    """The host's PTE of `hva` becomes `entry`, inside an invalidation. Does not sleep. (Up to v6.9.)"""
    trace_kvm_set_spte_hva(hva << PFN_SHIFT)
    active, in_progress = _invalidations(kvm)
    WARN_ON(not active, "a PTE changes outside an invalidation")
    if not in_progress:
        return
    kvm_handle_hva_range(kvm, hva, hva + 1, kvm_change_spte_gfn, None, True, arg=entry)


@routine
def kvm_mmu_notifier_release(kvm: Kvm) -> None:
    """The address space goes away: no SPTE may be left in the VM."""
    say("the address space goes away: release notifier")
    srcu = srcu_read_lock(kvm.srcu)
    kvm_flush_shadow_all(kvm)
    srcu_read_unlock(kvm.srcu, srcu)


def _memslots(kvm: Kvm) -> KvmMemslots:
    slots = srcu_dereference(kvm, Kvm.memslots, kvm.srcu)
    assert slots is not None
    return slots


_OPS = MmuNotifierOps(
    invalidate_range_start=kvm_mmu_notifier_invalidate_range_start,
    invalidate_range_end=kvm_mmu_notifier_invalidate_range_end,
    release=kvm_mmu_notifier_release,
    clear_flush_young=kvm_mmu_notifier_clear_flush_young,
    clear_young=kvm_mmu_notifier_clear_young,
    test_young=kvm_mmu_notifier_test_young,
)
_OPS_CHANGE_PTE = replace(_OPS, change_pte=kvm_mmu_notifier_change_pte)


def mmu_notifier_of(kvm: Kvm) -> MmuNotifier:
    """The VM's registration with its address space (`kvm->mmu_notifier`)."""
    return MmuNotifier(_OPS_CHANGE_PTE if kvm.design.obeys(CHANGE_PTE) else _OPS, kvm)


def mm_kernel(design: Design) -> MmKernel:
    """What the kernel of a design does to a process's memory, as far as the design says."""
    return MmKernel(set_pte_at_notify=design.obeys(CHANGE_PTE))
