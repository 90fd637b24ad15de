"""Each two activities that can race, as a scenario of nothing else.

These are not in the matrix, but can be checked by name: `interleaf check unmap-with-age`. An activity needs things to
be as it finds them (`Activity.needs`), and does what it does; vCPUs have one each. Of the guest's memory gfn 0 is
mapped, gfn 1 is not unless one huge page maps both, and gfn NEXT_GFN would be in another huge page; memslot 1 may be
at SPARE_GFN.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K, pages_per_entry
from interleaf.hw.platform import EPT, EPT_PML
from interleaf.kvm.attributes import KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_vm_set_mem_attributes
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_clear_dirty_log, kvm_get_dirty_log, kvm_vm_set_slot_flags
from interleaf.kvm.dirty_ring import dirty_ring_collect, kvm_vm_ioctl_reset_dirty_pages
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmModule, KvmParams, KvmVcpu
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot, kvm_move_memslot
from interleaf.kvm.mmu import kvm_mmu_reset_context
from interleaf.kvm.mmu_notifier import mm_kernel
from interleaf.kvm.nx_recovery import kvm_recover_nx_huge_pages
from interleaf.kvm.page_track import kvm_write_track_add_gfn
from interleaf.kvm.prefault import kvm_vcpu_pre_fault_memory
from interleaf.kvm.vcpu import GuestAction, execute, kvm_arch_vcpu_ioctl_run, read, rsm, smi, write
from interleaf.kvm.vm import kvm_create_vm, kvm_put_kvm, kvm_vm_ioctl_create_vcpu
from interleaf.kvm.zap import kvm_zap_gfn_range, set_nx_huge_pages
from interleaf.mm.huge_memory import split_folio
from interleaf.mm.khugepaged import collapse_huge_page
from interleaf.mm.ksm import try_to_merge_two_pages
from interleaf.mm.mm import Kind, mm_alloc, mmap
from interleaf.mm.unmap import madvise_dontneed, mmput
from interleaf.mm.vmscan import page_idle_clear_pte_refs
from interleaf.runtime import spawn, the

from .scenario import Scenario
from .stage import DUMMY_GFN, DUMMY_HVA, HUGE_HVA, destroy_after

SPARE_GFN = DUMMY_GFN

NEXT_GFN = pages_per_entry(PG_LEVEL_2M)
"""The first gfn of the second block of 2 MiB."""

VCPU = "a vCPU's thread"
IOCTL = "a thread of the process, in an ioctl"
HOST = "the host, on behalf of whoever uses the memory"
ADMIN = "a thread of the kernel, or another process"
EXIT = "the end of the process"
END = "the end of the VM"


@dataclass(frozen=True, slots=True)
class Activity:
    """Something that happens to a VM."""

    name: str
    who: str
    """Whose thread it happens in."""
    run: Callable[[Kvm, KvmVcpu], object]
    """What it does; the vCPU is its own."""
    needs: frozenset[str] = frozenset()
    """How the VM must be: its memory "huge", or "small" where it could be huge; dirty logging on ("log"), in a "bitmap"
    or a "ring", cleared by userspace ("manual"), by the processor ("pml") or not; or off ("not-log"); "nx" huge pages;
    "private" or "smm" memory."""
    before: tuple[GuestAction, ...] = ()
    """What its vCPU has done before."""
    slots_lock: bool = False
    """All of it is done under slots_lock."""


def _run(*actions: GuestAction) -> Callable[[Kvm, KvmVcpu], object]:
    return lambda kvm, vcpu: kvm_arch_vcpu_ioctl_run(vcpu, *actions)


def _ioctl(name: str, run: Callable[[Kvm], object], *needs: str, before: tuple[GuestAction, ...] = ()) -> Activity:
    return Activity(name, IOCTL, lambda kvm, vcpu: run(kvm), frozenset(needs), before, slots_lock=True)


def _collect_and_reset(kvm: Kvm) -> None:
    for vcpu in kvm.vcpus:
        dirty_ring_collect(vcpu)
    kvm_vm_ioctl_reset_dirty_pages(kvm)


def _host(name: str, run: Callable[[Kvm], object], *needs: str, who: str = HOST) -> Activity:
    return Activity(name, who, lambda kvm, vcpu: run(kvm), frozenset(needs))


ACTIVITIES: tuple[Activity, ...] = (
    Activity("fault", VCPU, _run(read(1), read(NEXT_GFN))),
    Activity("fast-fault", VCPU, _run(write(0)), frozenset({"log", "bitmap", "not-pml"})),
    Activity("prefault", VCPU, lambda kvm, vcpu: kvm_vcpu_pre_fault_memory(vcpu, 1, 1)),
    Activity("mmio-fault", VCPU, _run(read(SPARE_GFN))),
    Activity("smi", VCPU, _run(smi(), read(0)), frozenset({"smm"})),
    Activity("rsm", VCPU, _run(rsm(), read(0)), frozenset({"smm"}), before=(smi(), read(0))),
    Activity("unload", VCPU, lambda kvm, vcpu: kvm_mmu_reset_context(vcpu)),
    Activity("pml", VCPU, _run(write(0)), frozenset({"log", "bitmap", "pml"})),
    _host("unmap", lambda kvm: madvise_dontneed(kvm.mm, HUGE_HVA, 1)),
    _host("age", lambda kvm: page_idle_clear_pte_refs(kvm.mm, HUGE_HVA)),
    _host("change-pte", lambda kvm: try_to_merge_two_pages(kvm.mm, HUGE_HVA, HUGE_HVA + 1), "small"),
    _host("khugepaged", lambda kvm: collapse_huge_page(kvm.mm, HUGE_HVA), "small"),
    _host("release", lambda kvm: mmput(kvm.mm), who=EXIT),
    Activity("zap-range", IOCTL, lambda kvm, vcpu: kvm_zap_gfn_range(kvm, 0, 2)),
    _ioctl("create-slot", lambda kvm: kvm_create_memslot(kvm, 1, SPARE_GFN, 1, DUMMY_HVA)),
    _ioctl("delete-slot", lambda kvm: kvm_delete_memslot(kvm, 0)),
    _ioctl("move-slot", lambda kvm: kvm_move_memslot(kvm, 0, NEXT_GFN)),
    _ioctl("enable-log", lambda kvm: kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES), "not-log"),
    _ioctl("get-log", lambda kvm: kvm_get_dirty_log(kvm, 0), "log", "bitmap", before=(write(0),)),
    _ioctl("clear-log", lambda kvm: kvm_clear_dirty_log(kvm, 0, (0,)), "log", "bitmap", "manual"),
    _ioctl("reset-ring", _collect_and_reset, "log", "ring"),
    _ioctl("eager-split", lambda kvm: kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES), "not-log", "huge"),
    _ioctl("collapse", lambda kvm: kvm_vm_set_slot_flags(kvm, 0, 0), "log", "huge"),
    _ioctl(
        "attributes", lambda kvm: kvm_vm_set_mem_attributes(kvm, 1, 2, KVM_MEMORY_ATTRIBUTE_PRIVATE), "private", "huge"
    ),
    _ioctl("page-track", lambda kvm: kvm_write_track_add_gfn(kvm, 0)),
    _host("nx-recovery", kvm_recover_nx_huge_pages, "nx", "huge", "not-log", who=ADMIN),
    _host("zap-all", lambda kvm: set_nx_huge_pages(), who=ADMIN),
    _host("teardown", kvm_put_kvm, who=END),
)

UNDER_MMAP_LOCK = {"unmap", "change-pte", "khugepaged", "release"}

EXCLUDE = (("huge", "small"), ("log", "not-log"), ("ring", "bitmap"), ("pml", "not-pml"))


def cannot_race(one: Activity, other: Activity) -> str:
    """Why the two cannot happen at the same time; empty if they can."""
    needs = one.needs | other.needs
    if {one.name, other.name} == {"prefault", "change-pte"}:
        return "kernels have no change_pte notifier any more since they can prefault"
    for what, opposite in EXCLUDE:
        if what in needs and opposite in needs:
            return f"a VM is not {what} and {opposite} at the same time"
    if one.slots_lock and other.slots_lock:
        return "both are done under slots_lock"
    whose = {one.who, other.who}
    if EXIT in whose and whose & {VCPU, IOCTL, EXIT}:
        return "the process ends when none of its threads runs any more, and once"
    if END in whose and whose & {VCPU, IOCTL, END}:
        return "whoever is in an ioctl has a reference on the VM, which ends once"
    if "khugepaged" in (one.name, other.name) and {one.name, other.name} <= UNDER_MMAP_LOCK:
        return "khugepaged holds mmap_lock for writing, and the other one takes it, too"
    if END in whose and "nx-recovery" in (one.name, other.name):
        return "the thread is stopped before the VM ends"
    return ""


def make_vm(design: Design, needs: frozenset[str]) -> Kvm:
    """A VM as two activities need it, whose vCPUs have written gfn 0; where huge pages must not be executable, they
    have executed it then, and written another huge page."""
    mm = mm_alloc(1, mm_kernel(design))
    npages = 2 * NEXT_GFN
    level = PG_LEVEL_2M if needs & {"huge", "small"} else PG_LEVEL_4K
    mmap(mm, HUGE_HVA, npages, Kind.ANONYMOUS, level=level, hvas=(HUGE_HVA, HUGE_HVA + 1, HUGE_HVA + NEXT_GFN))
    if "small" in needs:
        split_folio(mm, (PG_LEVEL_2M, HUGE_HVA))
        split_folio(mm, (PG_LEVEL_2M, HUGE_HVA + NEXT_GFN))
    mmap(mm, DUMMY_HVA, 1)
    params = KvmParams(
        dirty_ring_size=4 if "ring" in needs else 0,
        manual_protect="manual" in needs,
        private_mem="private" in needs,
    )
    platform = EPT_PML if "pml" in needs else EPT
    kvm = kvm_create_vm(design, mm, (0, 1, NEXT_GFN, NEXT_GFN + 1, SPARE_GFN), platform, params)
    for _ in range(2):
        kvm_vm_ioctl_create_vcpu(kvm)
    kvm_create_memslot(kvm, 0, 0, npages, HUGE_HVA)
    if "smm" in needs:
        kvm_create_memslot(kvm, 2, 0, 1, HUGE_HVA, as_id=1)
    if "nx" in needs:
        the(KvmModule).nx_huge_pages = True
    if "log" in needs:
        kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    for vcpu in kvm.vcpus:
        kvm_arch_vcpu_ioctl_run(vcpu, write(0), *((execute(0), write(NEXT_GFN)) if "nx" in needs else ()))
    if "log" in needs and "bitmap" in needs:
        kvm_get_dirty_log(kvm, 0)
    return kvm


def _set_up(one: Activity, other: Activity, design: Design) -> None:
    kvm = make_vm(design, one.needs | other.needs)
    for activity, vcpu in zip((one, other), kvm.vcpus, strict=True):
        if activity.before:
            kvm_arch_vcpu_ioctl_run(vcpu, *activity.before)
    same = one is other
    tasks = [
        spawn(activity.run, kvm, vcpu, name=f"{activity.name}{index + 1}" if same else activity.name)
        for index, (activity, vcpu) in enumerate(zip((one, other), kvm.vcpus, strict=True))
    ]
    if END not in (one.who, other.who):
        destroy_after(kvm, *tasks)


def of_pairs() -> dict[str, Scenario]:
    """A scenario for each two activities that can race, by name."""
    found = {}
    for one, other in itertools.combinations_with_replacement(ACTIVITIES, 2):
        if not cannot_race(one, other):
            name = f"{one.name}-with-{other.name}"
            title = f"{one.name} while {other.name}"
            text = f"{one.name} ({one.who}) and {other.name} ({other.who}), and nothing else."
            found[name] = Scenario(name, title, text, functools.partial(_set_up, one, other))
    return found
