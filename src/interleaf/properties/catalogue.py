"""The properties by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Property:
    """One thing that must hold in every execution."""

    name: str
    text: str
    """The property as a sentence."""
    reason: str
    """What goes wrong in a real machine when it does not hold."""
    source: str
    """Where the kernel says so: functions, commits, documents."""
    rules: tuple[str, ...] = ()
    """The rules of the search or of the building blocks of which it consists; empty if it is checked by its name."""


def _by_name(*properties: Property) -> dict[str, Property]:
    return {known.name: known for known in properties}


PROPERTIES: dict[str, Property] = _by_name(
    Property(
        "I1",
        "After invalidate_range_start has returned, no SPTE and no TLB entry maps an affected page, and nothing "
        "writes dirty or accessed state back to it.",
        "The host frees the page and gives it to somebody else: the guest reads or writes another program's memory, "
        "or KVM sets the dirty flag of a page that is not its own.",
        "Documentation/mm/mmu_notifier.rst; d62007edf01f",
    ),
    Property(
        "I2",
        "No shadow page is freed while a vCPU can still use it through its TLB or paging-structure cache, or while a "
        "walker holds a pointer to it.",
        "The hardware or a walker follows a page table whose memory has been reused.",
        "tdp_mmu_free_sp_rcu_callback; bd29677952fa",
    ),
    Property(
        "I3",
        "The pfn of a present leaf SPTE never changes directly to another pfn.",
        "Some vCPU goes on with the old translation while others use the new one; the architecture forbids it without "
        "a flush in between.",
        "__handle_changed_spte: BUG on a present leaf replaced by one with another pfn",
    ),
    Property(
        "I4",
        "A frozen (REMOVED) SPTE is changed only by the task that froze it.",
        "Freezing is how the zapper keeps others out until the TLBs are flushed.",
        "tdp_mmu_zap_spte_atomic; 08f07c800e9d",
    ),
    Property(
        "I5",
        "A valid root is on the list of roots with a reference count of at least one for each holder; a root without "
        "references cannot be reached; each reference is put once.",
        "A root is freed while somebody uses it, or is never freed.",
        "kvm_tdp_mmu_put_root",
    ),
    Property(
        "I6",
        "At most one valid root exists for each role.",
        "vCPUs with the same role would use different page tables, and the memory for them is wasted.",
        "kvm_tdp_mmu_get_vcpu_root_hpa",
    ),
    Property(
        "I7",
        "When zap-all-fast returns, no SPTE is left under any root that was on the list when it was called.",
        "After the memslot is gone, notifiers cannot find what it mapped any more.",
        "kvm_mmu_zap_all_fast; f28e9c7fce14",
    ),
    Property(
        "I8",
        "No SPTE is installed under an invalid root after its zapper has passed.",
        "Nobody will ever zap it: the page table leaks, and the mapping outlives the page.",
        "is_page_fault_stale; a955cad84cda",
    ),
    Property(
        "I9",
        "A vCPU never runs guest code on an invalid root after it has acknowledged the request to reload.",
        "That no TLB flush is needed for invalid roots rests on it.",
        "kvm_mmu_zap_all_fast; vcpu_enter_guest",
    ),
    Property(
        "I10",
        "Every write of the guest to a memslot whose dirty pages are logged is told of by a reading of the log that "
        "ends after it, or by a later one.",
        "A VM that is migrated loses what its guest has written.",
        "kvm_get_dirty_log_protect; Documentation/virt/kvm/api.rst; b64d740ea7dd",
    ),
    Property(
        "I11",
        "What the processor, or a fault that takes no lock, sets in an SPTE is not lost by whoever changes the SPTE.",
        "The host drops a page that was written, as if it were clean; or KVM takes a page for read-only that is not.",
        "kvm_tdp_mmu_write_spte; ba3a6120a4e7",
    ),
    Property(
        "I12",
        "When the VM is destroyed no roots and no shadow pages are left.",
        "They are leaked, and the kernel warns.",
        "kvm_mmu_uninit_tdp_mmu",
    ),
    Property(
        "I13",
        "Faults, zaps, notifiers and memslot updates come to their end, if the scheduler is fair: each task that can "
        "run again and again does, so locks are handed over. The environment need not be fair: allocations may fail "
        "and locks be contended each time, as long as there are two tasks that run.",
        "vCPUs spin on faults that are never done, or the host waits for a notifier for ever.",
        "tdp_mmu_iter_cond_resched; ed5e484b79e8",
        ("deadlock", "livelock", "starvation"),
    ),
    Property(
        "I14",
        "Nobody sleeps with mmu_lock held or inside an RCU read-side section, nor works there for as long as there is "
        "memory: a walk over the entries of a root offers to give mmu_lock up before it changes SPTEs below a second "
        "entry of 1 GiB. A notifier that must not sleep is excused.",
        "Everybody who wants the lock spins for as long, and the grace period stalls: soft lockups of 15 minutes were "
        "seen. What is below one entry of 1 GiB must be bearable, because a page of 1 GiB may take its place.",
        "might_sleep, __might_resched; tdp_mmu_zap_root; 8351779ce65f, 1b6043e8e584",
        ("sleeping-while-atomic",),
    ),
    Property(
        "I15",
        "The tables on the list of possible huge pages are those that are linked and stand for one that must not be "
        "executable.",
        "The recovery follows a pointer to a table that is freed, or never recovers one.",
        "account_nx_huge_page, tdp_mmu_unlink_sp; 21a36ac6b6c7, 61f94478547b",
    ),
)

NAMES: tuple[str, ...] = tuple(PROPERTIES)
"""The invariants on which every verdict reports, even when nothing exercised them (then they are vacuous)."""

MADE_OF: dict[str, tuple[str, ...]] = {name: known.rules for name, known in PROPERTIES.items() if known.rules}
"""The invariants that consist of rules, with these."""


def property_of(rule: str) -> Property | None:
    """The property that is violated where `rule` is, by its name or because it consists of it, if there is one."""
    for known in PROPERTIES.values():
        if rule == known.name or rule in known.rules:
            return known
    return None
