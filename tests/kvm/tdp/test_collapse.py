"""Huge pages again, when dirty logging ends: by zapping tables, or in place."""

from __future__ import annotations

import pytest

from interleaf.designs import V5_18, V6_1, V6_12
from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.memslots import kvm_memslots
from interleaf.kvm.tdp.collapse import kvm_tdp_mmu_zap_collapsible_sptes
from interleaf.kvm.tdp.spte import is_shadow_present_pte
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.runtime import routine, spawn
from tests.kvm.huge import entry

from .stage import Stage, make_vm, populate, run_alone
from .test_split import huge_vm, split

IN_PLACE = V6_12.adding("recover-huge-pages-in-place")


@routine
def collapse(design: Design, dirty: bool = False) -> tuple[int, int, int]:
    """The SPTEs of level 2 and 1 afterwards, and how many translations are left in the TLB."""
    kvm = huge_vm(design)
    split(kvm)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0) if dirty else read(0))
    slot = kvm_memslots(kvm).slots[0]
    read_lock(kvm.mmu_lock)
    kvm_tdp_mmu_zap_collapsible_sptes(kvm, slot)
    read_unlock(kvm.mmu_lock)
    return entry(kvm, 0, PG_LEVEL_2M), entry(kvm, 0, PG_LEVEL_4K), len(kvm.vcpus[0].cpu.tlb)


@pytest.mark.parametrize("design", [V6_1, V6_12], ids=lambda design: design.name)
def test_a_table_is_zapped_as_a_whole_and_flushed(design: Design) -> None:
    (huge, small, translations), _ = run_alone(collapse, design)
    assert (huge in (0, design.shadow_nonpresent_value), small, translations) == (True, 0, 0)


def test_before_the_small_pages_were_zapped_one_by_one_and_the_table_stayed() -> None:
    (table, small, translations), _ = run_alone(collapse, V5_18)
    assert is_shadow_present_pte(table)
    assert small == V5_18.shadow_nonpresent_value
    assert translations == 0


def test_of_single_entries_only_leafs_are_zapped() -> None:
    (table, small, _), _ = run_alone(collapse, V5_18.without("collapse-zaps-leafs"))
    assert is_shadow_present_pte(table)
    assert is_shadow_present_pte(small)


def test_a_table_becomes_a_huge_page_in_place() -> None:
    (huge, small, translations), stage = run_alone(collapse, IN_PLACE)
    before, _ = run_alone(lambda: entry(huge_vm(V6_12), 0, PG_LEVEL_2M))
    assert (huge, small, translations) == (before, 0, 0)
    flush = next(i for i, line in enumerate(stage.story) if "flushes gfns 0x0 to 0x200" in line)
    unlock = next(i for i, line in enumerate(stage.story[flush:]) if "leaves the RCU reader" in line)
    assert unlock > 0


def test_small_pages_of_the_host_stay_small() -> None:
    def program() -> int:
        kvm = make_vm(V6_12, (0, 1))
        populate(kvm)
        slot = kvm_memslots(kvm).slots[0]
        read_lock(kvm.mmu_lock)
        kvm_tdp_mmu_zap_collapsible_sptes(kvm, slot)
        read_unlock(kvm.mmu_lock)
        return entry(kvm, 0, PG_LEVEL_4K)

    assert is_shadow_present_pte(run_alone(program)[0])


@routine
def _recover(kvm: Kvm) -> None:
    slot = kvm_memslots(kvm).slots[0]
    read_lock(kvm.mmu_lock)
    kvm_tdp_mmu_zap_collapsible_sptes(kvm, slot)
    read_unlock(kvm.mmu_lock)


@pytest.mark.parametrize(
    ("design", "rules"),
    [(V6_12, set()), (IN_PLACE, set()), (V6_12.without("atomic-zap-flushes"), {"I2"})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_vcpu_walks_the_table_once_it_is_freed(design: Design, rules: set[str]) -> None:
    """vCPU 0 has the table in its paging-structure cache."""

    def setup() -> None:
        kvm = huge_vm(design)
        split(kvm)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        spawn(_recover, kvm, name="log")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(1), name="vcpu0")

    stage = Stage(setup)
    stage.finish("log")
    for task in stage.execution.unfinished:
        if task.name.startswith("rcu:"):
            stage.finish(task.name)
    stage.finish("vcpu0")
    assert stage.rules == rules
