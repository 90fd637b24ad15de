"""The dirty log: what it tells, what it protects again, and writes that are lost where a rule is dropped (I10)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from interleaf.designs import V5_18, V6_1, V6_4, V6_12
from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.hw.platform import EPT, EPT_NO_AD, EPT_PML, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import (
    kvm_clear_dirty_log,
    kvm_get_dirty_log,
    kvm_vm_set_slot_flags,
    mark_page_dirty_in_slot,
)
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Kvm, KvmParams
from interleaf.kvm.memslots import kvm_memslots
from interleaf.kvm.tdp.entries import write_spte
from interleaf.kvm.tdp.iter import tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.spte import is_dirty_spte, is_last_spte, is_writable_pte, mark_spte_for_access_track
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.vm import kvm_put_kvm
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.runtime import ModelError, routine, spawn
from interleaf.scenarios.stage import enter_l2, make_vm, populate
from tests.kvm.huge import entry, map_huge
from tests.kvm.tdp.stage import Stage, run_alone

LOG = KVM_MEM_LOG_DIRTY_PAGES
MANUAL = KvmParams(manual_protect=True, initially_all_set=True)


def vm(design: Design, platform: Platform = EPT, params: KvmParams | None = None, nested: bool = False) -> Kvm:
    kvm = make_vm(design, pages=3, platform=platform, params=params or KvmParams())
    if nested:
        enter_l2(kvm.vcpus[0])
        kvm.vcpus[0].guest_mode = True
    populate(kvm)
    return kvm


def _writable(kvm: Kvm) -> tuple[int, ...]:
    return tuple(gfn for gfn in kvm.named_gfns if is_writable_pte(entry(kvm, gfn, PG_LEVEL_4K)))


@pytest.mark.parametrize("platform", [EPT, EPT_NO_AD, NPT], ids=lambda platform: platform.name)
def test_enabling_protects_all_pages_and_flushes(platform: Platform) -> None:
    def program() -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        kvm = vm(V6_12, platform)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        return _writable(kvm), len(kvm.vcpus[0].cpu.tlb), kvm_get_dirty_log(kvm, 0)

    assert run_alone(program)[0] == ((), 0, ())


def test_with_pml_enabling_makes_pages_clean_and_the_processor_logs() -> None:
    def program() -> tuple[tuple[int, ...], bool, tuple[int, ...], tuple[int, ...], bool]:
        kvm = vm(V6_12, EPT_PML)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        clean = any(is_dirty_spte(kvm.masks, entry(kvm, gfn, PG_LEVEL_4K)) for gfn in kvm.named_gfns)
        writable = _writable(kvm)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(2), read(0), write(1))
        first = kvm_get_dirty_log(kvm, 0)
        return writable, clean, first, kvm_get_dirty_log(kvm, 0), is_dirty_spte(kvm.masks, entry(kvm, 1, PG_LEVEL_4K))

    (writable, dirty, first, second, still), stage = run_alone(program)
    assert (writable, dirty, first, second, still) == ((0, 1, 2), False, (1, 2), (), False)
    assert stage.execution.world.exercised["I10"] == 2


def test_getting_the_log_protects_what_it_tells_of_and_flushes() -> None:
    def program() -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        kvm = vm(V6_12)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        _dirty(kvm, 0)
        _dirty(kvm, 2)
        return _writable(kvm), kvm_get_dirty_log(kvm, 0), _writable(kvm)

    (before, told, after), stage = run_alone(program)
    assert (before, told, after) == ((0, 2), (0, 2), ())
    unlock = max(i for i, line in enumerate(stage.story) if "mmu_lock (writer)" in line)
    assert any("flushes gfns 0x0 to 0x3" in line for line in stage.story[unlock:])


@routine
def _dirty(kvm: Kvm, gfn: int) -> None:
    """As a write fault: log the page, and make it writable."""
    slot, root = kvm_memslots(kvm).slots[0], kvm.vcpus[0].mmu_root
    assert root is not None
    write_lock(kvm.mmu_lock)
    mark_page_dirty_in_slot(kvm, slot, gfn, kvm.vcpus[0])
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, gfn)
    while it is not None and it.level > PG_LEVEL_4K:
        it = tdp_iter_next(kvm, it)
    assert it is not None
    write_spte(kvm, root, it.sp, gfn, PG_LEVEL_4K, it.old_spte | 1 << 1)
    rcu_read_unlock()
    write_unlock(kvm.mmu_lock)


def test_a_log_that_says_all_pages_are_dirty_protects_those_that_are_cleared() -> None:
    def program() -> tuple[tuple[int, ...], ...]:
        kvm = vm(V6_12, params=MANUAL)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        before = _writable(kvm)
        told = kvm_get_dirty_log(kvm, 0)
        after = _writable(kvm)
        kvm_clear_dirty_log(kvm, 0, (0, 2))
        return before, told, after, _writable(kvm), kvm_get_dirty_log(kvm, 0)

    every = (0, 1, 2)
    assert run_alone(program)[0] == (every, every, every, (1,), (1,))


@pytest.mark.parametrize(
    ("design", "split"), [(V6_12, True), (V6_12.without("clear-splits-last-page"), False), (V6_4, False)]
)
def test_clearing_the_log_of_its_first_page_splits_a_huge_page(design: Design, split: bool) -> None:
    def program() -> tuple[bool, bool]:
        kvm = make_vm(design, pages=2, huge=True, params=MANUAL)
        map_huge(kvm)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        before = is_last_spte(entry(kvm, 0, PG_LEVEL_2M), PG_LEVEL_2M)
        kvm_clear_dirty_log(kvm, 0, (0,))
        after = entry(kvm, 0, PG_LEVEL_2M)
        # a huge page that is not split is write-protected instead
        return before, not is_last_spte(after, PG_LEVEL_2M) or is_writable_pte(after)

    assert run_alone(program)[0] == (True, split)


@pytest.mark.parametrize(
    ("design", "params", "level"),
    [
        (V6_12, KvmParams(), PG_LEVEL_4K),
        (V6_1, KvmParams(), PG_LEVEL_4K),
        (V6_12, KvmParams(eager_page_split=False), PG_LEVEL_2M),
        (V6_12.without("eager-page-split"), KvmParams(), PG_LEVEL_2M),
    ],
)
def test_enabling_splits_eagerly_and_disabling_collapses(design: Design, params: KvmParams, level: int) -> None:
    def program() -> tuple[int, int]:
        kvm = make_vm(design, pages=2, huge=True, params=params)
        map_huge(kvm)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        parent = entry(kvm, 0, PG_LEVEL_2M)
        found = PG_LEVEL_2M if is_last_spte(parent, PG_LEVEL_2M) else PG_LEVEL_4K
        writable = is_writable_pte(entry(kvm, 0, found))
        kvm_vm_set_slot_flags(kvm, 0, 0)
        assert not writable
        return found, entry(kvm, 0, PG_LEVEL_4K)

    assert run_alone(program)[0] == (level, 0)


def test_the_bitmap_comes_and_goes_with_the_flag() -> None:
    def program() -> tuple[bool, ...]:
        kvm = vm(V6_12)
        found = [kvm_memslots(kvm).slots[0].dirty_bitmap is None]
        for flags in (LOG, LOG, 0):
            kvm_vm_set_slot_flags(kvm, 0, flags)
            found.append(kvm_memslots(kvm).slots[0].dirty_bitmap is None)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        kvm_put_kvm(kvm)
        return tuple(found)

    assert run_alone(program)[0] == (True, False, False, True)


def test_what_cannot_be_done_is_refused() -> None:
    def program() -> None:
        kvm = vm(V6_12)
        with pytest.raises(ModelError, match="cannot change from 0x0 to 0x2"):
            kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_READONLY)

    def unlogged() -> None:
        with pytest.raises(ModelError, match="memslot 0 has no dirty bitmap"):
            kvm_get_dirty_log(vm(V6_12), 0)

    for task in (program, unlogged):
        Stage(functools.partial(spawn, task, name="test")).finish_all()


@routine
def _age(kvm: Kvm) -> None:
    """The page is not accessed any more, for all that the SPTE says. No flush, as aging has none."""
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    write_lock(kvm.mmu_lock)
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, 0)
    while it is not None:
        if it.level == PG_LEVEL_4K:
            spte = mark_spte_for_access_track(kvm.masks, it.old_spte)
            write_spte(kvm, root, it.sp, it.gfn, PG_LEVEL_4K, spte)
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    write_unlock(kvm.mmu_lock)


def _write_and_collect(setup: Callable[[], None]) -> Stage:
    """Logging has begun; the guest writes gfn 0 if it can, and then the log is asked for."""
    stage = Stage(setup)
    stage.until("vcpu0", "_guest_access", "_run_guest")
    stage.finish("log")
    return stage


@pytest.mark.parametrize(
    ("design", "rules"),
    [(V6_12, set()), (V6_12.without("enable-log-always-flushes"), {"I10"}), (V5_18, {"I10"})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_enabling_flushes_even_if_no_entry_was_writable(design: Design, rules: set[str]) -> None:
    """B33: all SPTEs are access-tracked, but the TLB still has a translation to write through."""

    def setup() -> None:
        kvm = vm(design, EPT_NO_AD)
        _age(kvm)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
        spawn(kvm_get_dirty_log, kvm, 0, name="log")

    stage = _write_and_collect(setup)
    assert stage.rules == rules


@pytest.mark.parametrize(
    ("design", "rules"),
    [(V6_12, set()), (V6_12.without("clear-dirty-by-root"), {"I10"})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_nested_guest_needs_write_protection(design: Design, rules: set[str]) -> None:
    """B45: the processor does not log what a nested guest writes, so that clearing D is not enough."""

    def setup() -> None:
        kvm = vm(design, EPT_PML, nested=True)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
        spawn(kvm_get_dirty_log, kvm, 0, name="log")

    stage = _write_and_collect(setup)
    assert stage.rules == rules


def test_a_write_that_the_processor_has_logged_is_not_lost() -> None:
    """The log is asked for while the entry is still in the processor's buffer."""

    def setup() -> None:
        kvm = vm(V6_12, EPT_PML)
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
        spawn(kvm_get_dirty_log, kvm, 0, name="log")
        spawn(_last, kvm, name="last")

    stage = Stage(setup)
    assert stage.until("vcpu0", "_guest_access", "_run_guest")
    stage.finish("log")
    stage.finish("vcpu0")
    stage.finish("last")
    assert not stage.violations
    assert [line for line in stage.story if "tells of" in line] == [
        "the dirty log of memslot 0 tells of nothing",
        "the dirty log of memslot 0 tells of 0x0",
    ]


def _last(kvm: Kvm) -> None:
    kvm_get_dirty_log(kvm, 0)
