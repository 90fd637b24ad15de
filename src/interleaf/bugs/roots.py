"""Bugs in the life of roots: references, invalidation, and who can still see a root."""

from __future__ import annotations

from typing import Any

from interleaf.designs import SERIES_V3
from interleaf.designs.v6_4 import tdp_mmu_schedule_zap_root
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.tdp import tdp_mmu
from interleaf.kvm.tdp.ghost import WORK
from interleaf.kvm.tdp.references import gives_back, hands_over, root_invalidated
from interleaf.kvm.tdp.roots import step_root
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import list_for_each_entry
from interleaf.linux.lockdep import lockdep_assert_held_write
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.refcount import refcount_dec_and_test
from interleaf.runtime import routine

from .bug import Bug
from .change import taking, with_functions


@routine
def _invalidate_queueing_twice(kvm: Kvm, invalidated_roots: Any) -> None:
    """As in v5.18, but for roots that are invalid already, whose work is queued, too."""
    lockdep_assert_held_write(kvm.mmu_lock)
    for root in list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage):
        if tdp_mmu.kvm_tdp_mmu_get_root(kvm, root):
            # vCPUs look at it without mmu_lock (is_obsolete_root)
            WRITE_ONCE(root, KvmMmuPage.role, root.role.invalidated())
            root_invalidated(kvm, root)
            hands_over(root, None, WORK)
            tdp_mmu_schedule_zap_root(kvm, root)


@routine
def _next_root_decrementing(kvm: Kvm, prev: KvmMmuPage | None, shared: bool, only_valid: bool) -> KvmMmuPage | None:
    """As in v6.12, but the reference on the previous root is only counted down, and nobody looks whether it was the
    last one."""
    rcu_read_lock()
    root = step_root(kvm, prev, False)
    while root is not None and ((only_valid and root.role.invalid) or not tdp_mmu.kvm_tdp_mmu_get_root(kvm, root)):
        root = step_root(kvm, root, False)
    rcu_read_unlock()
    if prev is not None:
        gives_back(prev)
        refcount_dec_and_test(prev.tdp_mmu_root_count)
    return root


BUGS: tuple[Bug, ...] = (
    Bug(
        "B01",
        "A notifier does not see invalid roots",
        "Roots that are being zapped are skipped when the host takes a page back; the zapper comes to them when the "
        "page is freed, and writes its dirty and accessed state back.",
        fix="d62007edf01f",
        culprit="b7cccd397f31 and 7533377215b6",
        kind="use-after-free",
        design="v6.12",
        deviation="without unmap-sees-invalid-roots",
        scenarios=("memslot-delete-vs-unmap", "nx-huge-pages-vs-release"),
        rules=("I1",),
    ),
    Bug(
        "B03",
        "The last put takes the root off the list, and then zaps it with yields",
        "Any last put of a root hides what is still mapped in it from notifiers, no memslot update is needed.",
        fix="8351779ce65f",
        culprit="20211120045046.3940942-11-seanjc@google.com",
        kind="use-after-free",
        design="v5.16",
        deviation="swap kvm_tdp_mmu_put_root=series-v1",
        scenarios=("last-put-vs-unmap",),
        rules=("I1",),
    ),
    Bug(
        "B04",
        "A reference is given back twice",
        "The last put of a valid root makes it invalid and zaps it with a reference of its own; whoever zaps the "
        "invalidated roots puts one on each invalid root, and so puts that one.",
        fix="20220303193842.370645-1-pbonzini@redhat.com",
        culprit="20220226001546.360188-1-seanjc@google.com",
        kind="use-after-free",
        design="v5.18",
        deviation=taking(
            SERIES_V3,
            "kvm_mmu_init_tdp_mmu",
            "kvm_mmu_uninit_tdp_mmu",
            "kvm_tdp_mmu_put_root",
            "kvm_tdp_mmu_invalidate_all_roots",
            "kvm_tdp_mmu_zap_invalidated_roots",
            "kvm_mmu_zap_all_fast",
        ),
        scenarios=("reset-vs-other-memslot-delete",),
        rules=("I5", "use-after-free"),
    ),
    Bug(
        "B05",
        "The unmap notifier walks the roots without references, but yields",
        "While it has given mmu_lock up, the last reference on the root in which it stands is put, and the root freed.",
        fix="7533377215b6",
        culprit="",
        kind="use-after-free",
        design="v5.16",
        deviation="swap kvm_tdp_mmu_unmap_gfn_range=v5.13",
        scenarios=("last-put-vs-unmap",),
        rules=("use-after-free",),
    ),
    Bug(
        "B06",
        "A walk advances after the restart that a yield causes",
        "The entry before which it yielded is skipped, with everything below: it is never zapped.",
        fix="3a0f64de479c",
        culprit="ed5e484b79e8",
        kind="leak",
        design="v6.12",
        deviation="without iter-yielded",
        scenarios=("last-put-vs-unmap",),
        rules=("I12",),
    ),
    Bug(
        "B07",
        "A fault maps a page in a root that was invalidated meanwhile",
        "The zapper has passed already: nobody will zap it before the memslot is gone.",
        fix="a955cad84cda",
        culprit="b7cccd397f31",
        kind="leak, stale mapping",
        design="v6.12",
        deviation="without stale-root-check",
        scenarios=("fault-vs-other-memslot-delete",),
        rules=("I8",),
    ),
    Bug(
        "B10",
        "A walk that puts the last reference on a root does not free it",
        "The reference that kept the root while the walk yielded is only counted down: the root leaks.",
        fix="a889ea54b3da",
        culprit="",
        kind="leak",
        design="v6.12",
        deviation=with_functions(tdp_mmu_next_root=_next_root_decrementing),
        scenarios=("yielding-walk-vs-invalidate-and-create",),
        rules=("I12",),
    ),
    Bug(
        "B12",
        "A work item is queued twice, and a reference is lost",
        "A root whose work is queued already is invalidated again, with a reference for work that is not queued again.",
        fix="efd995dae5eb",
        culprit="",
        kind="leak",
        design="v5.18",
        deviation=with_functions(kvm_tdp_mmu_invalidate_all_roots=_invalidate_queueing_twice),
        scenarios=("reset-vs-nx-huge-pages",),
        rules=("I12",),
    ),
    Bug(
        "B13",
        "Whoever zaps the invalid roots believes that it has a reference on each",
        "It puts one on every invalid root that it finds; one that the last put has made invalid, for a worker to zap, "
        "loses the worker's.",
        fix="22b94c4b63eb",
        culprit="b7cccd397f31",
        kind="use-after-free",
        design="v5.18",
        deviation=taking(
            SERIES_V3,
            "kvm_tdp_mmu_invalidate_all_roots",
            "kvm_tdp_mmu_zap_invalidated_roots",
            "kvm_mmu_zap_all_fast",
        ),
        scenarios=("reset-vs-other-memslot-delete",),
        rules=("I5", "use-after-free"),
    ),
    Bug(
        "B18",
        "Only the current root is looked at when obsolete ones are put",
        "The loop over the previous roots tests the current one each time: an obsolete one is kept, and come back to.",
        fix="cf4a8693d97a",
        culprit="527d5cd7eece",
        kind="stale root",
        design="v6.12",
        deviation="without free-obsolete-checks-each",
        scenarios=("nested-switch-vs-nx-huge-pages",),
        rules=(
            "I9",
            "obsolete-root-kept",
        ),
    ),
    Bug(
        "B67",
        "What is mapped above the host's largest address is never zapped",
        "The processor under another hypervisor may say less than the guest can use: a page table leaks.",
        fix="86931ff7207b",
        culprit="faaf05b00aec and 524a1e4e381f",
        kind="leak",
        design="v6.12",
        deviation="without zap-up-to-architecture-s-max-gfn",
        scenarios=("memory-above-maxphyaddr",),
        rules=("I12",),
    ),
)
