"""Faults that are handled without mmu_lock."""

from __future__ import annotations

import pytest

from interleaf.designs import V5_13, V6_12
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.hw.platform import EPT, EPT_NO_AD, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_get_dirty_log, kvm_vm_set_slot_flags
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm
from interleaf.kvm.mmu_internal import RetPf
from interleaf.kvm.tdp.entries import write_spte
from interleaf.kvm.tdp.iter import tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.spte import is_access_track_spte, is_writable_pte, mark_spte_for_access_track
from interleaf.kvm.tlb import kvm_flush_remote_tlbs
from interleaf.kvm.trace import FastPageFault
from interleaf.kvm.vcpu import GuestAccess, kvm_arch_vcpu_ioctl_run, read, write
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.runtime import Execution, World, spawn
from interleaf.scenarios.stage import make_vm, populate
from tests.kvm.huge import entry
from tests.kvm.tdp.stage import Stage, run_alone


def _logged(design: Design, platform: Platform = EPT) -> Kvm:
    kvm = make_vm(design, platform=platform)
    populate(kvm)
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    return kvm


def _write(design: Design, platform: Platform) -> Stage:
    def setup() -> None:
        spawn(kvm_arch_vcpu_ioctl_run, _logged(design, platform).vcpus[0], write(0), name="vcpu0")

    stage = Stage(setup)
    stage.finish("vcpu0")
    assert not stage.violations
    return stage


@pytest.mark.parametrize(
    ("design", "fast"),
    [(V6_12, True), (V6_12.without("fast-page-fault"), False), (V5_13, False)],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("platform", [EPT, EPT_NO_AD, NPT], ids=lambda platform: platform.name)
def test_a_write_protected_page_is_made_writable_without_mmu_lock(
    design: Design, fast: bool, platform: Platform
) -> None:
    story = _write(design, platform).story
    assert any("without mmu_lock" in line for line in story) is fast
    assert any("takes Kvm0.mmu_lock for reading" in line for line in story) is not fast


def test_the_page_is_logged() -> None:
    def program() -> tuple[int, ...]:
        kvm = _logged(V6_12)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        return kvm_get_dirty_log(kvm, 0)

    assert run_alone(program)[0] == (0,)


def _track(kvm: Kvm) -> None:
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    write_lock(kvm.mmu_lock)
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, 0)
    while it is not None and it.level > PG_LEVEL_4K:
        it = tdp_iter_next(kvm, it)
    assert it is not None
    write_spte(kvm, root, it.sp, 0, PG_LEVEL_4K, mark_spte_for_access_track(kvm.masks, it.old_spte))
    rcu_read_unlock()
    write_unlock(kvm.mmu_lock)
    kvm_flush_remote_tlbs(kvm)


@pytest.mark.parametrize(("access", "writable"), [(read(0), False), (write(0), True)])
def test_an_access_tracked_page_gets_back_what_the_access_needs(access: GuestAccess, writable: bool) -> None:
    def program() -> tuple[bool, bool, bool]:
        kvm = make_vm(V6_12, platform=EPT_NO_AD)
        populate(kvm)
        _track(kvm)
        tracked = is_access_track_spte(kvm.masks, entry(kvm, 0, PG_LEVEL_4K))
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], access)
        spte = entry(kvm, 0, PG_LEVEL_4K)
        return tracked, is_access_track_spte(kvm.masks, spte), is_writable_pte(spte)

    result, stage = run_alone(program)
    assert result == (True, False, writable)
    assert any("without mmu_lock" in line for line in stage.story)


def test_it_is_traced_with_old_and_new_value() -> None:
    world, records = World(), list[object]()
    world.listener = lambda task, record: records.append(record)
    run = Execution(
        world,
        lambda: spawn(kvm_arch_vcpu_ioctl_run, _logged(V6_12, NPT).vcpus[0], write(0), name="vcpu0"),
    )
    records.clear()
    while run.unfinished:
        assert run.step(run.unfinished[0]) is not None
    [traced] = [record for record in records if isinstance(record, FastPageFault)]
    assert traced.ret == RetPf.FIXED
    assert not is_writable_pte(traced.old_spte)
    assert traced.new_spte == traced.old_spte | 0b10
    assert traced.error_code == 0x100000007


def test_an_entry_that_has_changed_is_looked_at_again() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, vcpus=2)
        populate(kvm)
        kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
        for vcpu in kvm.vcpus:
            spawn(kvm_arch_vcpu_ioctl_run, vcpu, write(0), name=f"vcpu{vcpu.index}")

    stage = Stage(setup)
    assert stage.until("vcpu0", "kvm_tdp_mmu_read_spte", "_seek")
    for _level in range(3):
        stage.until("vcpu0", "kvm_tdp_mmu_read_spte", "_seek")
    stage.finish("vcpu1")
    stage.finish("vcpu0")
    assert not stage.violations
    assert sum("it does not become" in line for line in stage.story) == 1
    assert sum("without mmu_lock" in line for line in stage.story) == 1
