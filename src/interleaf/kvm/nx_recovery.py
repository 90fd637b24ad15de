"""The thread that makes huge pages of what had to be small for execution (arch/x86/kvm/mmu/mmu.c, v6.12).

It zaps tables from the list of possible huge pages, oldest first; the next fault for data maps the huge page again. It
works once in a period, and when nx_huge_pages is written. A period is not modelled: whoever wants one to be over
wakes the thread.
"""

from __future__ import annotations

from interleaf.linux.kthread import kthread_run, kthread_should_stop, kthread_stop
from interleaf.linux.list import list_empty, list_first_entry_or_null
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, rwlock_needbreak, write_lock, write_unlock
from interleaf.linux.sched import TASK_INTERRUPTIBLE, TASK_RUNNING, schedule, set_current_state, wake_up_process
from interleaf.linux.spinlock import spin_lock, spin_unlock
from interleaf.linux.srcu import srcu_dereference, srcu_read_lock, srcu_read_unlock
from interleaf.runtime import checkpoint, routine, say, warn

from .design import rule
from .kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmMmuPage
from .memslots import gfn_to_memslot
from .nx_huge_page import expect_possible_nx_huge_pages, unaccount_nx_huge_page
from .tdp.zap import kvm_tdp_mmu_zap_possible_nx_huge_page, kvm_tdp_mmu_zap_sp
from .tlb import kvm_flush_remote_tlbs

NX_SKIPS_DIRTY_LOGGED = rule(
    "nx-skips-dirty-logged",
    "The recovery leaves tables alone whose memslot's dirty pages are logged, because they would be made again at "
    "once.",
    "eb298605705a",
)
NX_RECOVERY_FLUSHES = rule(
    "nx-recovery-flushes",
    "The recovery flushes the TLBs for the tables that it has zapped before it gives mmu_lock up.",
    "048f49809c52",
)
NX_RECOVERY_UNDER_READ_LOCK = rule(
    "nx-recovery-under-read-lock",
    "The recovery holds mmu_lock for read, and zaps a table only if the SPTE still points to it.",
    "a57750909580",
)


@routine
def kvm_recover_nx_huge_pages(kvm: Kvm, most: int | None = None) -> bool:
    """Zap the tables that are on the list of possible huge pages now, the first `most` of them (None: all, as a ratio
    of 1 does). Was any of the last ones zapped, so that TLBs had to be flushed at the end? Takes mmu_lock, and may give
    it up on the way. Sleeps."""
    shared = kvm.design.obeys(NX_RECOVERY_UNDER_READ_LOCK)
    srcu = srcu_read_lock(kvm.srcu)
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    if not shared:
        expect_possible_nx_huge_pages(kvm)
    rcu_read_lock()
    to_zap, flush = kvm.nx_lpage_splits if most is None else most, False
    while to_zap:
        checkpoint()
        sp = _first_shared(kvm) if shared else _first(kvm)
        if sp is None:
            break
        flush = _recover(kvm, sp, shared) or flush
        to_zap -= 1
        del sp
        if to_zap:
            flush = _cond_resched(kvm, flush, shared)
    _flush(kvm, flush)
    rcu_read_unlock()
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)
    srcu_read_unlock(kvm.srcu, srcu)
    return flush


@routine
def _first(kvm: Kvm) -> KvmMmuPage | None:
    """The first table on the list, which stays there. mmu_lock held for write."""
    return _expect_disallowed(_first_on_list(kvm))


@routine
def _first_shared(kvm: Kvm) -> KvmMmuPage | None:
    """The first table on the list, which is off it now. mmu_lock held for read."""
    spin_lock(kvm.tdp_mmu_pages_lock)
    sp = _expect_disallowed(_first_on_list(kvm))
    if sp is not None:
        unaccount_nx_huge_page(kvm, sp)
    spin_unlock(kvm.tdp_mmu_pages_lock)
    return sp


@routine
def _first_on_list(kvm: Kvm) -> KvmMmuPage | None:
    if list_empty(kvm.possible_nx_huge_pages):
        return None
    return list_first_entry_or_null(kvm.possible_nx_huge_pages, KvmMmuPage)


def _expect_disallowed(sp: KvmMmuPage | None) -> KvmMmuPage | None:
    if sp is not None:
        allowed = not sp.nx_huge_page_disallowed
        warn("nx-list", allowed, f"{sp.name} is on the list of possible huge pages, but is not marked as disallowed")
    return sp


@routine
def _recover(kvm: Kvm, sp: KvmMmuPage, shared: bool) -> bool:
    """Zap the table, unless that is of no use; returns whether a flush is needed. In an RCU reader, mmu_lock held."""
    if kvm.design.obeys(NX_SKIPS_DIRTY_LOGGED) and _is_dirty_logged(kvm, sp):
        if not shared:
            unaccount_nx_huge_page(kvm, sp)
        return False
    say(f"{sp.name} could be a huge page: zaps it")
    zapped = kvm_tdp_mmu_zap_possible_nx_huge_page(kvm, sp) if shared else kvm_tdp_mmu_zap_sp(kvm, sp)
    warn("nx-list", sp.nx_huge_page_disallowed, f"{sp.name} is zapped, and still marked as disallowed")
    return zapped


@routine
def _is_dirty_logged(kvm: Kvm, sp: KvmMmuPage) -> bool:
    slots = srcu_dereference(kvm, Kvm.memslots, kvm.srcu)
    assert slots is not None
    slot = gfn_to_memslot(slots, sp.gfn, sp.role.as_id)
    return slot is not None and bool(slot.flags & KVM_MEM_LOG_DIRTY_PAGES)


@routine
def _cond_resched(kvm: Kvm, flush: bool, shared: bool) -> bool:
    """Give mmu_lock up if somebody waits for it; returns whether a flush is still needed."""
    if not rwlock_needbreak(kvm.mmu_lock):
        return flush
    _flush(kvm, flush)
    rcu_read_unlock()
    if shared:
        read_unlock(kvm.mmu_lock)
        read_lock(kvm.mmu_lock)
    else:
        write_unlock(kvm.mmu_lock)
        write_lock(kvm.mmu_lock)
    rcu_read_lock()
    return False


@routine
def _flush(kvm: Kvm, flush: bool) -> None:
    if flush and kvm.design.obeys(NX_RECOVERY_FLUSHES):
        kvm_flush_remote_tlbs(kvm)


@routine
def kvm_nx_huge_page_recovery_worker(kvm: Kvm) -> None:
    """What the thread does: sleep until a period is over, and recover."""
    while True:
        checkpoint()
        set_current_state(TASK_INTERRUPTIBLE)
        if kthread_should_stop():
            set_current_state(TASK_RUNNING)
            return
        schedule()
        kvm_recover_nx_huge_pages(kvm)


@routine
def kvm_mmu_post_init_vm(kvm: Kvm) -> None:
    """Make the VM's thread, and let it run until it sleeps for its first period. Before any vCPU runs."""
    thread = kthread_run(kvm_nx_huge_page_recovery_worker, kvm, name=f"nx-recovery:{kvm.name}")
    kvm.nx_huge_page_recovery_thread = thread


@routine
def wake_nx_recovery_thread(kvm: Kvm) -> None:
    """A period is over, or nx_huge_pages has been written."""
    thread = kvm.nx_huge_page_recovery_thread
    if thread is not None:
        wake_up_process(thread)


@routine
def kvm_mmu_pre_destroy_vm(kvm: Kvm) -> None:
    """Stop the thread, and wait for its end. Sleeps."""
    if kvm.nx_huge_page_recovery_thread is not None:
        kthread_stop(kvm.nx_huge_page_recovery_thread)
