"""Aging SPTEs: what is asked, what changes, and what must not be lost by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from interleaf.designs import V5_13, V5_18, V6_1, V6_12, V6_18
from interleaf.hw.ept import VMX_EPT_ACCESS_BIT, VMX_EPT_DIRTY_BIT, VMX_EPT_RWX_MASK
from interleaf.hw.platform import EPT, EPT_NO_AD, NPT, Platform
from interleaf.kvm import trace
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.memslots import kvm_create_memslot
from interleaf.kvm.mmu_notifier import mm_kernel
from interleaf.kvm.tdp.spte import is_accessed_spte
from interleaf.kvm.trace import AgeHva, SetSpteHva, SpteChanged, UnmapHvaRange
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.vm import kvm_create_vm, kvm_vm_ioctl_create_vcpu
from interleaf.mm.ksm import try_to_merge_two_pages
from interleaf.mm.mm import Kind, Mm, PteKind, mm_alloc, mmap
from interleaf.mm.unmap import munmap
from interleaf.mm.vmscan import damon_young, folio_referenced, madvise_pageout, page_idle_clear_pte_refs, shrink_list
from interleaf.runtime import Execution, World, spawn
from tests.kvm.mapped import only_spte
from tests.kvm.tdp.stage import Stage, run_alone

DESIGNS = pytest.mark.parametrize("design", [V5_13, V5_18, V6_1, V6_12, V6_18], ids=lambda design: design.name)
PLATFORMS = pytest.mark.parametrize("platform", [EPT, EPT_NO_AD, NPT], ids=lambda platform: platform.name)


def vm(design: Design, platform: Platform = EPT, kind: Kind = Kind.PROVIDED, pages: int = 1) -> Kvm:
    """A VM with memory at the gfns from 0 on, at the same hvas."""
    mm = mm_alloc(1, mm_kernel(design))
    mmap(mm, 0, pages, kind, populate=kind is Kind.PROVIDED)
    kvm = kvm_create_vm(design, mm, tuple(range(pages)), platform)
    kvm_create_memslot(kvm, 0, 0, pages, 0)
    kvm_vm_ioctl_create_vcpu(kvm)
    return kvm


def leaf(kvm: Kvm, gfn: int = 0) -> int:
    """The SPTE that maps `gfn`."""
    page = kvm.mm.pte[gfn].page
    assert page is not None
    [(table, index)] = page.spteps
    assert isinstance(table, KvmMmuPage)
    return int(table.spt[index])


def traced(program: Callable[[], object], *kinds: type) -> list[object]:
    """The records of these kinds that a program has traced."""
    world, records = World(), list[object]()
    world.listener = lambda task, record: records.append(record)
    run = Execution(world, lambda: spawn(program, name="test"))
    while run.unfinished:
        step = run.step(run.unfinished[0])
        assert step is not None
        assert not step.violations, step.violations
    return [record for record in records if isinstance(record, kinds)]


@DESIGNS
@PLATFORMS
def test_use_is_asked_for_and_counts_anew(design: Design, platform: Platform) -> None:
    def program() -> None:
        kvm = vm(design, platform)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        assert damon_young(kvm.mm, 0)
        assert page_idle_clear_pte_refs(kvm.mm, 0)
        assert not is_accessed_spte(kvm.masks, leaf(kvm))
        assert not damon_young(kvm.mm, 0)
        assert not page_idle_clear_pte_refs(kvm.mm, 0)
        assert not page_idle_clear_pte_refs(kvm.mm, 1)

    run_alone(program)


def test_only_the_a_bit_is_cleared_where_there_is_one() -> None:
    def program() -> None:
        kvm = vm(V6_12)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        before = leaf(kvm)
        page_idle_clear_pte_refs(kvm.mm, 0)
        assert leaf(kvm) == before & ~VMX_EPT_ACCESS_BIT
        page = kvm.mm.pte[0].page
        assert page is not None
        assert not page.accessed
        assert not page.dirty

    run_alone(program)


@DESIGNS
def test_without_a_bits_the_next_use_faults_and_counts(design: Design) -> None:
    def program() -> None:
        kvm = vm(design, EPT_NO_AD)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        shrink_list(kvm.mm, 0, 1)
        assert not leaf(kvm) & VMX_EPT_RWX_MASK
        page = kvm.mm.pte[0].page
        assert page is not None
        assert page.dirty

    run_alone(program)


def loses_a_write(design: Design) -> Stage:
    """A page has a copy on swap; the guest writes to it, then it is aged and reclaimed."""

    def setup() -> None:
        kvm = vm(design, EPT_NO_AD)
        madvise_pageout(kvm.mm, 0, 1)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0), write(0))
        page_idle_clear_pte_refs(kvm.mm, 0)
        spawn(madvise_pageout, kvm.mm, 0, 1, name="reclaim")

    stage = Stage(setup)
    stage.finish_all()
    return stage


@DESIGNS
def test_what_the_guest_wrote_is_not_lost_by_aging(design: Design) -> None:
    assert not loses_a_write(design).violations


@DESIGNS
def test_what_the_guest_wrote_is_lost_without_the_rule(design: Design) -> None:
    [violation] = loses_a_write(design.without("age-keeps-dirty")).violations
    assert violation.rule == "I11"
    assert "what it wrote is lost" in violation.message


def ages_while_the_guest_writes(design: Design) -> Stage:
    """The processor sets the D bit between the look of the aging task at the SPTE and its change."""

    def setup() -> None:
        kvm = vm(design)
        madvise_pageout(kvm.mm, 0, 1)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        table, index = only_spte(kvm, 0)
        table.spt[index] = table.spt[index] & ~VMX_EPT_DIRTY_BIT
        kvm.vcpus[0].cpu.tlb = frozenset()
        spawn(page_idle_clear_pte_refs, kvm.mm, 0, name="idle")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")

    stage = Stage(setup)
    seen = False
    while not seen:
        [idle] = [task for task in stage.execution.unfinished if task.name == "idle"]
        step = stage.execution.step(idle)
        assert step is not None
        stage.steps.append(step)
        seen = any("level 1, is pfn" in event.text for event in step.events)
    stage.until("vcpu0", "_guest_walk", "_run_guest")
    stage.finish("vcpu0")
    stage.finish_all()
    return stage


@pytest.mark.parametrize(
    ("design", "lost"),
    [
        (V6_12, False),
        (V6_12.without("age-clears-accessed-bit"), False),
        (V6_18, False),
        (V5_18, False),
        (V5_18.without("xchg-volatile-sptes"), True),
        (V6_12.without("age-clears-accessed-bit").without("xchg-volatile-sptes"), True),
        (V6_12.without("xchg-volatile-sptes"), False),
    ],
    ids=lambda value: value.name if isinstance(value, Design) else "",
)
def test_a_bit_that_the_processor_sets_meanwhile_is_kept(design: Design, lost: bool) -> None:
    assert ages_while_the_guest_writes(design).rules == ({"I11"} if lost else set())


@pytest.mark.parametrize(
    ("design", "locked"), [(V6_12, True), (V6_18, False), (V6_18.without("age-without-mmu-lock"), True)]
)
def test_aging_waits_for_mmu_lock_or_not(design: Design, locked: bool) -> None:
    def setup() -> None:
        kvm = vm(design)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        spawn(page_idle_clear_pte_refs, kvm.mm, 0, name="idle")

    stage = Stage(setup)
    stage.finish_all()
    assert any("mmu_lock for writing" in line for line in stage.story) is locked


@pytest.mark.parametrize(
    ("design", "flushes"), [(V6_12, True), (V6_18, False), (V6_18.without("age-without-flush"), True)]
)
def test_asking_whether_a_page_is_referenced_flushes_or_not(design: Design, flushes: bool) -> None:
    def setup() -> None:
        kvm = vm(design)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        spawn(_referenced, kvm.mm, name="reclaim")

    stage = Stage(setup)
    stage.finish_all()
    kvm = next(obj for obj in stage.execution.world.objects.values() if isinstance(obj, Kvm))
    [vcpu] = stage.peek(kvm, Kvm.vcpus)
    assert bool(stage.peek(vcpu.cpu, type(vcpu.cpu).tlb)) is not flushes


def _referenced(mm: Mm) -> None:
    page = mm.pte[0].page
    assert page is not None
    assert folio_referenced(mm, 0, page)


@pytest.mark.parametrize(("design", "readers"), [(V6_12, 2), (V6_12.without("rcu-per-root"), 1)])
def test_each_root_has_a_reader_of_its_own(design: Design, readers: int) -> None:
    def setup() -> None:
        kvm = vm(design)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        second = kvm_vm_ioctl_create_vcpu(kvm)
        second.root_role = replace(second.root_role, guest_mode=True)
        kvm_arch_vcpu_ioctl_run(second, write(0))
        spawn(page_idle_clear_pte_refs, kvm.mm, 0, name="idle")

    stage = Stage(setup)
    stage.finish_all()
    operations = [event.operation for step in stage.steps for event in step.events]
    assert operations.count("rcu_read_lock") == readers


def test_the_tracepoints_are_in_bytes_and_in_the_kernels_order() -> None:
    def program() -> None:
        kvm = vm(V6_12, NPT)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        page_idle_clear_pte_refs(kvm.mm, 0)
        damon_young(kvm.mm, 0)
        munmap(kvm.mm, 0, 1)

    records = traced(program, AgeHva, trace.TestAgeHva, UnmapHvaRange, SpteChanged)[-5:]
    assert [type(record) for record in records] == [AgeHva, SpteChanged, trace.TestAgeHva, UnmapHvaRange, SpteChanged]
    assert records[0] == AgeHva(0, 0x1000)
    aged = records[1]
    assert isinstance(aged, SpteChanged)
    assert (aged.gfn, aged.level, aged.old_spte ^ aged.new_spte) == (0, 1, 0x20)
    assert records[2:4] == [trace.TestAgeHva(0), UnmapHvaRange(0, 0x1000)]


def test_a_copy_on_write_is_traced_as_on_6_1() -> None:
    """The page of zeros is zapped by the start, and the new PTE finds nothing to change; then the vCPU faults again."""

    def program() -> None:
        kvm = vm(V6_1, NPT, Kind.ANONYMOUS)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0), write(0))
        assert kvm.mm.pte[0].kind is PteKind.PRESENT

    records = traced(program, UnmapHvaRange, SetSpteHva, SpteChanged)[-4:]
    assert [type(record) for record in records] == [UnmapHvaRange, SpteChanged, SetSpteHva, SpteChanged]
    zapped, mapped = records[1], records[3]
    assert isinstance(zapped, SpteChanged)
    assert isinstance(mapped, SpteChanged)
    assert (zapped.new_spte, mapped.old_spte) == (0, 0)


def test_merged_pages_are_mapped_read_only() -> None:
    def program() -> None:
        kvm = vm(V6_1, pages=2)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0), write(1))
        assert try_to_merge_two_pages(kvm.mm, 0, 1)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0), read(1), write(1), write(0))

    run_alone(program)
