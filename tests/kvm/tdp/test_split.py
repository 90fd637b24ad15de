"""Splitting huge pages: the table says the same as the huge page did, and who gets in the way."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from interleaf.designs import V5_18, V6_1, V6_12
from interleaf.hw.ept import PT_PAGE_SIZE_MASK, is_leaf, pfn_of
from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.hw.platform import EPT, EPT_NO_AD, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.memslots import kvm_memslots
from interleaf.kvm.tdp.split import kvm_tdp_mmu_try_split_huge_pages
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read
from interleaf.kvm.zap import kvm_zap_gfn_range, set_nx_huge_pages
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.mm.page import HugePage, Page
from interleaf.runtime import Value, routine, spawn
from interleaf.scenarios.stage import make_vm
from tests.kvm.huge import entry, map_huge

from .stage import Stage, run_alone


def huge_vm(design: Design, platform: Platform = EPT) -> Kvm:
    kvm = make_vm(design, pages=2, huge=True, platform=platform)
    map_huge(kvm)
    return kvm


@routine
def split(kvm: Kvm, shared: bool = True) -> None:
    slot = kvm_memslots(kvm).slots[0]
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    kvm_tdp_mmu_try_split_huge_pages(kvm, slot, 0, 512, PG_LEVEL_4K, shared)
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)


@pytest.mark.parametrize("platform", [EPT, EPT_NO_AD, NPT], ids=lambda platform: platform.name)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "exclusive"])
def test_each_small_page_is_mapped_as_the_huge_one_was(platform: Platform, shared: bool) -> None:
    def program() -> tuple[int, int, int, int]:
        kvm = huge_vm(V6_12, platform)
        huge = entry(kvm, 0, PG_LEVEL_2M)
        split(kvm, shared)
        return huge, entry(kvm, 0, PG_LEVEL_2M), entry(kvm, 0, PG_LEVEL_4K), entry(kvm, 1, PG_LEVEL_4K)

    (huge, parent, first, second), _ = run_alone(program)
    assert is_leaf(huge, PG_LEVEL_2M)
    assert not is_leaf(parent, PG_LEVEL_2M)
    assert first == huge & ~PT_PAGE_SIZE_MASK
    assert pfn_of(second) == pfn_of(first) + 1


def test_what_the_tlb_holds_of_a_huge_page_stays() -> None:
    def program() -> tuple[int, int]:
        kvm = huge_vm(V6_12)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(1))
        before = len(kvm.vcpus[0].cpu.tlb)
        split(kvm)
        return before, len(kvm.vcpus[0].cpu.tlb)

    assert run_alone(program)[0] == (1, 1)


def _race(design: Design, other: Callable[..., object], *arguments: Value) -> Stage:
    def setup() -> None:
        kvm = huge_vm(design)
        spawn(split, kvm, name="split")
        spawn(other, *(kvm if argument == "kvm" else argument for argument in arguments), name="other")

    return Stage(setup)


def test_a_table_is_allocated_without_the_lock_and_unused_if_the_page_is_gone() -> None:
    stage = _race(V6_12, kvm_zap_gfn_range, "kvm", 0, 512)
    assert stage.until("split", "read_unlock", "tdp_mmu_alloc_sp_for_split")
    stage.finish("other")
    stage.finish_all()
    assert not stage.violations
    assert any("split free split:KvmMmuPage0" in line for line in stage.story)


@pytest.mark.parametrize("design", [V5_18, V6_1], ids=lambda design: design.name)
def test_older_kernels_try_the_allocation_under_the_lock_first(design: Design) -> None:
    stage = _race(design, kvm_zap_gfn_range, "kvm", 0, 512)
    stage.until("split", "read_unlock", "split")
    assert not any("to allocate a table" in line for line in stage.story)
    stage = _race(design, kvm_zap_gfn_range, "kvm", 0, 512)
    assert stage.until("split", "read_unlock", "tdp_mmu_alloc_sp_for_split", contended=True)


def test_a_split_that_loses_the_race_maps_nothing() -> None:
    """The root is invalidated while the table is allocated, and zapped while it is filled."""
    stage = _race(V6_12, set_nx_huge_pages)
    assert stage.until("split", "read_unlock", "tdp_mmu_alloc_sp_for_split")
    assert stage.until("other", "write_unlock", "kvm_mmu_zap_all_fast")
    assert stage.until("split", "write", "tdp_mmu_init_child_sp")
    stage.finish("other")
    stage.finish_all()
    assert not stage.violations
    assert any("it does not become table" in line for line in stage.story)
    page = stage.execution.world.serials[HugePage, 0]
    assert stage.peek(page, Page.spteps) == frozenset()


def test_every_small_page_counts_as_mapped() -> None:
    def program() -> None:
        split(huge_vm(V6_12))

    _, stage = run_alone(program)
    [page] = [page for (kind, _), page in stage.execution.world.serials.items() if kind is HugePage]
    assert len(stage.peek(page, Page.spteps)) == 2


def test_the_root_of_an_invalidated_tree_is_left_alone() -> None:
    def setup(design: Design) -> None:
        kvm = huge_vm(design)
        spawn(set_nx_huge_pages, name="admin")
        spawn(split, kvm, name="split")

    for design, rules in ((V6_12, False), (V6_12.without("split-valid-roots"), True)):
        stage = Stage(functools.partial(setup, design))
        assert stage.until("admin", "write_unlock", "kvm_mmu_zap_all_fast")
        stage.finish("split")
        split_it = any("-> table" in line and line.startswith("split") for line in stage.story)
        assert split_it is rules
