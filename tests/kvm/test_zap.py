"""Zapping everything, and what is checked when it is done."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.designs import V6_12
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmModule
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.vm import kvm_put_kvm
from interleaf.kvm.zap import kvm_mmu_zap_all, kvm_mmu_zap_all_fast, kvm_zap_gfn_range, set_nx_huge_pages
from interleaf.linux.mutex import mutex_lock, mutex_unlock
from interleaf.runtime import spawn, the
from tests.kvm.mapped import mapped
from tests.kvm.tdp.stage import Stage, make_vm, populate, run_alone


def _zap_fast(kvm: Kvm) -> None:
    mutex_lock(kvm.slots_lock)
    kvm_mmu_zap_all_fast(kvm)
    mutex_unlock(kvm.slots_lock)


def test_a_fast_zap_leaves_nothing_under_the_old_root() -> None:
    def program() -> tuple[tuple[int, ...], bool, int]:
        kvm = make_vm(V6_12, (0, 1 << 27))
        populate(kvm)
        root = kvm.vcpus[0].mmu_root
        assert root is not None
        _zap_fast(kvm)
        return mapped(kvm, root), root.role.invalid, kvm.mmu_valid_gen

    assert run_alone(program)[0] == ((), True, 1)


def test_a_fast_zap_needs_slots_lock() -> None:
    def setup() -> None:
        spawn(kvm_mmu_zap_all_fast, make_vm(V6_12, (0,)), name="test")

    stage = Stage(setup)
    stage.finish_all()
    assert "lockdep" in stage.rules


def _forgets_to_zap(kvm: Kvm, invalidated_roots: Any) -> None:
    pass


def test_an_spte_that_is_left_violates_i7() -> None:
    design = V6_12.derive("broken", "Nobody zaps.", (), kvm_tdp_mmu_zap_invalidated_roots=_forgets_to_zap)

    def setup() -> None:
        kvm = make_vm(design, (0,))
        populate(kvm)
        spawn(_zap_fast, kvm, name="test")

    stage = Stage(setup)
    stage.finish_all()
    [violation] = stage.violations
    assert violation.rule == "I7"
    assert "KvmMmuPage0" in violation.message


def test_a_slow_zap_keeps_the_root() -> None:
    def program() -> tuple[tuple[int, ...], bool]:
        kvm = make_vm(V6_12, (0, 1))
        populate(kvm)
        kvm_mmu_zap_all(kvm)
        root = kvm.vcpus[0].mmu_root
        assert root is not None
        return mapped(kvm), root.role.invalid

    assert run_alone(program)[0] == ((), False)


@pytest.mark.parametrize(("start", "end", "left"), [(0, 1, (1,)), (0, 2, ()), (2, 9, (0, 1))])
def test_a_range_is_zapped_and_flushed(start: int, end: int, left: tuple[int, ...]) -> None:
    def program() -> tuple[tuple[int, ...], tuple[int, ...], int]:
        kvm = make_vm(V6_12, (0, 1))
        populate(kvm)
        kvm_zap_gfn_range(kvm, start, end)
        translated = tuple(sorted(entry.gfn for entry in kvm.vcpus[0].cpu.tlb))
        return mapped(kvm), translated, kvm.mmu_invalidate_seq

    assert run_alone(program)[0] == (left, left, 1)


def test_nx_huge_pages_reaches_all_vms() -> None:
    def program() -> tuple[bool, ...]:
        vms = [make_vm(V6_12, (0,)), make_vm(V6_12, (0,))]
        for kvm in vms:
            populate(kvm)
        roots = [kvm.vcpus[0].mmu_root for kvm in vms]
        set_nx_huge_pages()
        return tuple(root.role.invalid for root in roots if root is not None)

    assert run_alone(program)[0] == (True, True)


def test_nx_huge_pages_does_not_find_a_destroyed_vm() -> None:
    def program() -> int:
        kvm = make_vm(V6_12, (0,))
        kvm_put_kvm(kvm)
        set_nx_huge_pages()
        return len(the(KvmModule).vm_list)

    assert run_alone(program)[0] == 0


def _zap_while_a_fault_is_on_its_way(design: Design) -> Stage:
    """The fault has looked up its page; the range is zapped, except that the walk gives mmu_lock up behind its gfn."""

    def setup() -> None:
        kvm = make_vm(design, (0x5000, 0x5001), 2)
        populate(kvm)
        kvm_zap_gfn_range(kvm, 0x5000, 0x5001)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0x5000), name="vcpu0")
        spawn(kvm_zap_gfn_range, kvm, 0x5000, 0x5002, name="zap")

    stage = Stage(setup)
    assert stage.until("vcpu0", "_follow_pte", "get_user_page")
    assert stage.until("zap", "write_unlock", "tdp_mmu_iter_cond_resched", contended=True)
    stage.until("vcpu0", "put_page_testzero", "put_page")
    return stage


@pytest.mark.parametrize(
    ("design", "retries"),
    [(V6_12, True), (V6_12.without("zap-range-counts"), False), (V6_12.without("zap-range-unit"), False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_fault_does_not_map_behind_the_back_of_a_zap(design: Design, retries: bool) -> None:
    """B49, B50: what the fault has looked up is of before the change for which the range is zapped."""
    stage = _zap_while_a_fault_is_on_its_way(design)
    assert any("tries again" in line for line in stage.story) is retries
    if retries:
        stage.finish("zap")
        stage.finish_all()
    assert stage.rules == (set() if retries else {"stale-range"})
