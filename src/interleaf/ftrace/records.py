"""The events of KVM's MMU as records. Fields are named as the kernel names them, in the events' `format` files.

Addresses and hashes of pointers are integers. gfn and pfn are frame numbers, gpa and hva byte addresses, levels
count from 1 (4 KiB). A field that some kernels do not print is None there. (kernel arch/x86/kvm/mmu/mmutrace.h,
arch/x86/kvm/trace.h, include/trace/events/kvm.h; v5.12 to v6.18)
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Task(NamedTuple):
    """Where and under what circumstances an event was written."""

    comm: str
    pid: int
    """Thread id."""
    tgid: int | None
    """Process id, if the trace has it (option record-tgid)."""
    cpu: int
    flags: str
    """irqs-off, need-resched, hardirq/softirq, preempt-depth, migrate-disable; empty if the trace has none."""


# kvmmmu


class KvmTdpMmuSpteChanged(NamedTuple):
    """KVM has changed an entry of a TDP MMU page table from `old_spte` to `new_spte`. Written after the change."""

    as_id: int
    gfn: int
    level: int
    old_spte: int
    new_spte: int


class KvmMmuSpteRequested(NamedTuple):
    """A fault is about to walk to the entry that shall map `gfn` to `pfn` at `level`."""

    gfn: int
    pfn: int
    level: int


class KvmMmuSetSpte(NamedTuple):
    """A fault has mapped (or found mapped) `gfn`; `sptep` is the physical address of the entry."""

    gfn: int
    spte: int
    level: int
    sptep: int
    access: str
    """As printed: r or -, w or -, x or -, and u, - or nothing."""


class KvmMmuPage(NamedTuple):
    """A page-table page: kvm_mmu_get_page, _prepare_zap_page, _sync_page and _unsync_page."""

    mmu_valid_gen: int | None
    gfn: int
    level: int
    quadrant: int
    direct: bool
    access: str
    invalid: bool
    ad_disabled: bool | None
    root_count: int
    unsync: bool
    created: bool | None
    """Of kvm_mmu_get_page alone."""


class KvmMmuZapAllFast(NamedTuple):
    """All roots are about to become invalid. `mmu_valid_gen` is the generation before."""

    mmu_valid_gen: int
    mmu_used_pages: int


class FastPageFault(NamedTuple):
    """A fault was tried without mmu_lock. `fixed`: the entry has become `new_spte`; no other event says so."""

    vcpu_id: int
    cr2_or_gpa: int
    error_code: str
    sptep: int
    old_spte: int
    new_spte: int
    spurious: bool
    fixed: bool


class KvmMmuSplitHugePage(NamedTuple):
    """A huge page was split eagerly (v5.18 and later); `errno` is 0 if it worked."""

    gfn: int
    spte: int
    level: int
    errno: int


class MarkMmioSpte(NamedTuple):
    """An entry was made that says: no memory here, ask the device model."""

    sptep: int
    gfn: int
    access: int
    gen: int


class CheckMmioSpte(NamedTuple):
    """Is an MMIO entry of the current memslot generation?"""

    spte: int
    kvm_gen: int
    spte_gen: int
    valid: bool


class HandleMmioPageFault(NamedTuple):
    """A fault on a valid MMIO entry."""

    addr: int
    gfn: int
    access: int


class KvmMmuPagetableWalk(NamedTuple):
    """A walk through the guest's own tables begins (shadow paging)."""

    addr: int
    pferr: int


class KvmMmuPagingElement(NamedTuple):
    """One entry of such a walk."""

    pte: int
    level: int


class KvmMmuWalkerError(NamedTuple):
    """Such a walk failed."""

    pferr: int


class KvmMmuSetBit(NamedTuple):
    """Such a walk set an accessed or a dirty bit: kvm_mmu_set_accessed_bit and kvm_mmu_set_dirty_bit."""

    gpa: int


# kvm


class KvmPageFault(NamedTuple):
    """A guest access that the page tables do not allow. Up to v5.19 without vCPU and rip."""

    vcpu_id: int | None
    guest_rip: int | None
    fault_address: int
    error_code: int


class KvmEntry(NamedTuple):
    """A vCPU enters the guest."""

    vcpu_id: int
    rip: int | None


class KvmExit(NamedTuple):
    """A vCPU leaves the guest."""

    vcpu_id: int | None
    exit_reason: str
    guest_rip: int
    info1: int
    info2: int


class KvmUserspaceExit(NamedTuple):
    """KVM_RUN returns."""

    reason: str
    errno: int


class KvmMmio(NamedTuple):
    """An access to a device in memory. `type`: read, write or unsatisfied-read."""

    type: str
    len: int
    gpa: int
    val: int


class HvaRange(NamedTuple):
    """A notifier about [start, end) of the host's addresses: kvm_unmap_hva_range and kvm_age_hva."""

    start: int
    end: int


class Hva(NamedTuple):
    """A notifier about one address: kvm_test_age_hva and kvm_set_spte_hva (up to v6.9)."""

    hva: int


class KvmAgePage(NamedTuple):
    """Aging of one page (up to v5.12)."""

    hva: int
    gfn: int
    level: int
    referenced: bool


class KvmDirtyRingPush(NamedTuple):
    """A gfn enters a vCPU's dirty ring."""

    ring: int
    """Index of the vCPU (field `index`)."""
    dirty_index: int
    reset_index: int
    slot: int
    offset: int
    used: int


class KvmDirtyRingReset(NamedTuple):
    """User space has collected entries of a ring."""

    ring: int
    """Index of the vCPU (field `index`)."""
    dirty_index: int
    reset_index: int
    used: int


class KvmDirtyRingExit(NamedTuple):
    """A vCPU leaves for user space because its ring is full."""

    vcpu_id: int


class KvmAsyncGetPage(NamedTuple):
    """A page that the host has to fetch first: kvm_try_async_get_page, kvm_async_pf_repeated_fault."""

    gva: int
    gfn: int


class KvmAsyncPf(NamedTuple):
    """kvm_async_pf_not_present and kvm_async_pf_ready."""

    token: int
    gva: int


class KvmAsyncPfCompleted(NamedTuple):
    """kvm_async_pf_completed"""

    gva: int
    address: int


# what is no event of KVM


class Kprobe(NamedTuple):
    """A probe at the entry of a function; its event's name is free."""

    symbol: str
    arguments: bytes
    """As printed: `name=value`, separated by blanks."""

    def value(self, name: str) -> int | None:
        """An argument as a number; None if there is none of that name, or it is no number."""
        for part in self.arguments.split():
            key, equals, value = part.partition(b"=")
            if equals and key == name.encode():
                try:
                    return int(value, 0)
                except ValueError:
                    return None
        return None


class Mark(NamedTuple):
    """A line that user space wrote into the trace (trace_marker)."""

    text: str


class Unknown(NamedTuple):
    """An event that is none of KVM's MMU, as it was printed."""

    text: bytes


class Lost(NamedTuple):
    """Here events are missing: the trace says so itself, or there was a line that could not be read."""

    missing: int | None
    """How many. None: nobody knows how many."""


Record: TypeAlias = (
    KvmTdpMmuSpteChanged
    | KvmMmuSpteRequested
    | KvmMmuSetSpte
    | KvmMmuPage
    | KvmMmuZapAllFast
    | FastPageFault
    | KvmMmuSplitHugePage
    | MarkMmioSpte
    | CheckMmioSpte
    | HandleMmioPageFault
    | KvmMmuPagetableWalk
    | KvmMmuPagingElement
    | KvmMmuWalkerError
    | KvmMmuSetBit
    | KvmPageFault
    | KvmEntry
    | KvmExit
    | KvmUserspaceExit
    | KvmMmio
    | HvaRange
    | Hva
    | KvmAgePage
    | KvmDirtyRingPush
    | KvmDirtyRingReset
    | KvmDirtyRingExit
    | KvmAsyncGetPage
    | KvmAsyncPf
    | KvmAsyncPfCompleted
    | Kprobe
    | Mark
    | Unknown
    | Lost
)


class Event(NamedTuple):
    """One line of a trace."""

    line: int
    """Number of the line in its file, from 1 on."""
    time: int
    """Nanoseconds; ticks where the trace's clock counts those (`Account.clock`)."""
    task: Task
    name: str
    """The event's name, without its system; "lost" for Lost."""
    record: Record
