"""What a task does between two yield points: what counts, where it begins anew, and what is too much."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from interleaf import scenarios
from interleaf.designs import V5_16, V5_18, V6_12, load
from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, pages_per_entry
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.mmu import kvm_mmu_reset_context
from interleaf.kvm.tdp.work import CHANGED, TORN_DOWN
from interleaf.kvm.tdp.wrprot import kvm_tdp_mmu_wrprot_slot
from interleaf.kvm.tdp.zap import tdp_mmu_zap_leafs
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.zap import kvm_zap_gfn_range
from interleaf.linux.rwlock import rwlock_t, write_lock, write_unlock
from interleaf.mm.unmap import munmap, oom_reap_task_mm
from interleaf.runtime import Value, spawn

from .stage import Stage, make_vm, populate

ONE_TABLE = (8, 9, 10)
BOTH_SIDES = (pages_per_entry(PG_LEVEL_1G) - 1, pages_per_entry(PG_LEVEL_1G))
"""The last page below 1 GiB and the first one above it."""


def _zap(kvm: Kvm, can_yield: bool) -> None:
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    write_lock(kvm.mmu_lock)
    tdp_mmu_zap_leafs(kvm, root, 0, 1 << 27, can_yield, False)
    write_unlock(kvm.mmu_lock)


def _write_protect(kvm: Kvm) -> None:
    assert kvm.memslots is not None
    write_lock(kvm.mmu_lock)
    kvm_tdp_mmu_wrprot_slot(kvm, kvm.memslots.slots[0])
    write_unlock(kvm.mmu_lock)


def _begin(
    design: Design, gfns: tuple[int, ...], function: Callable[..., object], arguments: tuple[Value, ...]
) -> None:
    kvm = make_vm(design, gfns)
    populate(kvm)
    spawn(function, kvm, *arguments, name="test")


def staged(design: Design, gfns: tuple[int, ...], function: Callable[..., object], *arguments: Value) -> Stage:
    """A task of a VM whose memory is mapped, run to its end."""
    return ended(functools.partial(_begin, design, gfns, function, arguments))


def ended(setup: Callable[[], object]) -> Stage:
    stage = Stage(setup)
    stage.finish_all()
    return stage


def most(stage: Stage, name: str = CHANGED, task: str = "test") -> int:
    return stage.execution.world.measured.get((name, task), 0)


def test_a_walk_that_offers_to_yield_changes_one_spte_in_one_go_and_one_that_does_not_all() -> None:
    assert most(staged(V6_12, ONE_TABLE, _zap, True)) == 1
    stage = staged(V6_12, ONE_TABLE, _zap, False)
    assert (most(stage), most(stage, TORN_DOWN)) == (3, 3)


def test_what_is_protected_is_changed_and_not_torn_down() -> None:
    stage = staged(V6_12, ONE_TABLE, _write_protect)
    assert (most(stage), most(stage, TORN_DOWN)) == (1, 0)


def _fault(design: Design) -> None:
    kvm = make_vm(design, ONE_TABLE)
    spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], *(write(gfn) for gfn in ONE_TABLE), name="test")


def test_a_fault_changes_the_entries_on_its_way_and_each_lock_is_a_new_beginning() -> None:
    stage = ended(functools.partial(_fault, V6_12))
    assert (most(stage), most(stage, TORN_DOWN)) == (4, 0)


def test_nothing_is_left_of_the_count_when_the_lock_is_given_back() -> None:
    stage = staged(V6_12, ONE_TABLE, _zap, False)
    (kvm,) = (known for known in stage.execution.world.objects.values() if isinstance(known, Kvm))
    task = next(task for task in stage.execution.world.tasks if task.name == "test")
    assert stage.element(kvm.mmu_lock, rwlock_t.done, task.index) is None


def test_a_table_that_is_torn_down_counts_with_all_that_is_in_it() -> None:
    stage = staged(V5_16, ONE_TABLE, kvm_zap_gfn_range, 0, pages_per_entry(PG_LEVEL_2M))
    assert (most(stage), most(stage, TORN_DOWN)) == (4, 4)


def _reset(design: Design) -> None:
    kvm = make_vm(design, BOTH_SIDES)
    populate(kvm)
    spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")


@pytest.mark.parametrize(
    ("design", "task", "torn_down"),
    [
        ("v5.13", "vcpu0", 7),
        ("v5.16", "vcpu0", 7),
        ("off-list", "vcpu0", 7),
        ("series-v3", "vcpu0", 3),
        ("v5.18", "work:KvmMmuPage0.tdp_mmu_async_work", 3),
        ("v6.12", "vcpu0", 0),
    ],
)
def test_who_pays_for_a_root_whose_last_user_is_gone_and_how_much_in_one_go(
    design: str, task: str, torn_down: int
) -> None:
    stage = ended(functools.partial(_reset, load(design)))
    assert most(stage, TORN_DOWN, task) == torn_down
    payers = {name for (what, name), number in stage.execution.world.measured.items() if what == TORN_DOWN and number}
    assert payers == ({task} if torn_down else set())
    assert stage.rules == ({"I14"} if torn_down > 3 else set())


def test_a_walk_that_does_not_offer_to_yield_may_change_what_is_below_one_entry_of_1_gib() -> None:
    assert staged(V6_12, ONE_TABLE, _zap, False).rules == set()
    (violation,) = staged(V6_12, BOTH_SIDES, _zap, False).violations
    assert violation.rule == "I14"
    assert "at gfn 0x0 and at gfn 0x40000" in violation.message


def test_a_walk_that_offers_to_yield_may_change_everything() -> None:
    assert staged(V6_12, BOTH_SIDES, _zap, True).rules == set()


def _take_back(blockable: bool) -> None:
    kvm = scenarios.make_vm(V6_12, pages=2, base_gfn=BOTH_SIDES[0])
    populate(kvm)
    if blockable:
        spawn(munmap, kvm.mm, scenarios.GUEST_HVA, 2, name="test")
    else:
        spawn(oom_reap_task_mm, kvm.mm, name="test")


@pytest.mark.parametrize(("blockable", "torn_down"), [(True, 1), (False, 2)])
def test_a_notifier_that_must_not_sleep_is_excused_and_what_it_does_is_counted(blockable: bool, torn_down: int) -> None:
    stage = ended(functools.partial(_take_back, blockable))
    assert not stage.violations
    assert most(stage, TORN_DOWN) == torn_down


def test_where_all_memory_is_below_one_entry_the_bound_is_not_exercised() -> None:
    assert "I14" not in staged(V5_18, ONE_TABLE, _zap, True).execution.world.exercised
    assert "I14" in staged(V5_18, BOTH_SIDES, _zap, True).execution.world.exercised
