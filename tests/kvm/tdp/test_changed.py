"""What follows from a change of an SPTE, and what may not be changed."""

from __future__ import annotations

from interleaf.designs import V5_16, V5_18, V6_12
from interleaf.hw import ept
from interleaf.hw.page_table import PG_LEVEL_4K, ROOT_LEVEL
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import ACC_ALL, Kvm, KvmMmuPage
from interleaf.kvm.tdp.changed import (
    kvm_tdp_mmu_write_spte,
    tdp_mmu_iter_set_spte,
    tdp_mmu_set_spte_atomic,
    tdp_mmu_zap_spte_atomic,
)
from interleaf.kvm.tdp.entries import write_spte
from interleaf.kvm.tdp.iter import TdpIter, tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.spte import is_shadow_present_pte, make_spte
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.mm.page import Page, alloc_page, page_at
from interleaf.runtime import Value, spawn

from .stage import Stage, make_vm, populate, run_alone

GFN = 8


def find(kvm: Kvm, level: int) -> TdpIter:
    """A walk that stands at the entry of `level` for GFN."""
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    it = tdp_iter_start(kvm, root, level, GFN)
    while it is not None and it.level != level:
        it = tdp_iter_next(kvm, it)
    assert it is not None
    return it


def vm(design: Design) -> Kvm:
    kvm = make_vm(design, (GFN,))
    populate(kvm)
    return kvm


def _zap_leaf(design: Design, shared: bool) -> tuple[Value, ...]:
    kvm = vm(design)
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    rcu_read_lock()
    it = find(kvm, PG_LEVEL_4K)
    page = page_at(ept.pfn_of(it.old_spte))
    before = page.dirty, page.accessed
    if shared:
        assert tdp_mmu_zap_spte_atomic(kvm, it) is None
    else:
        tdp_mmu_iter_set_spte(kvm, it, design.shadow_nonpresent_value)
    rcu_read_unlock()
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)
    return before, (page.dirty, page.accessed), page.spteps, it.sp.spt[GFN], kvm.vcpus[0].cpu.tlb


def test_zapping_a_leaf_writes_dirty_and_accessed_state_back() -> None:
    for design in (V5_16, V5_18, V6_12):
        for shared in (True, False):
            result, _ = run_alone(_zap_leaf, design, shared)
            before, after, mapped, spte, _tlb = result
            assert before == (False, False)
            assert after == (True, True)
            assert mapped == frozenset()
            assert spte == 0, "non-present"


def test_an_atomic_zap_flushes_and_an_exclusive_one_leaves_it_to_its_caller() -> None:
    (*_, after_atomic), _ = run_alone(_zap_leaf, V6_12, True)
    (*_, after_exclusive), _ = run_alone(_zap_leaf, V6_12, False)
    assert not after_atomic
    assert after_exclusive


def test_an_atomic_zap_freezes_flushes_and_then_lets_go() -> None:
    zap = ["cmpxchg_spte", "kvm_flush_remote_tlbs_range", "write_spte"]
    write_back = ["set_page_dirty", "mark_page_accessed"]
    for design, expected in ((V5_16, [zap[0], *write_back, *zap[1:]]), (V6_12, [*zap, *write_back])):
        _, stage = run_alone(_zap_leaf, design, True)
        operations = [event.operation for step in stage.steps for event in step.events]
        order = [name for name in operations if name in (*zap, *write_back)]
        assert order[-5:] == expected, design.name


def _zap_table(design: Design, shared: bool) -> tuple[KvmMmuPage, ...]:
    kvm = vm(design)
    tables = find(kvm, PG_LEVEL_4K).pt_path
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    rcu_read_lock()
    it = find(kvm, ROOT_LEVEL)
    if shared:
        assert tdp_mmu_set_spte_atomic(kvm, it, design.shadow_nonpresent_value) is None
    else:
        tdp_mmu_iter_set_spte(kvm, it, design.shadow_nonpresent_value)
    frozen = tuple(table.spt[index] for table, index in zip(tables[1:], (0, 0, GFN), strict=True))
    assert frozen == (design.removed_spte,) * 3, frozen
    rcu_read_unlock()
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)
    return tables


def test_a_disconnected_table_is_frozen_and_freed_after_a_grace_period() -> None:
    for design in (V5_16, V5_18, V6_12):
        for shared in (True, False):
            (root, *tables), stage = run_alone(_zap_table, design, shared)
            assert len(tables) == 3
            assert root.life is not None
            freed = [stage.execution.memory.peek(table.life) for table in tables if table.life is not None]
            assert freed == [2, 2, 2]
            assert stage.execution.memory.peek(root.life) == 1


def _lose_the_race(design: Design) -> tuple[int | None, int]:
    kvm = vm(design)
    read_lock(kvm.mmu_lock)
    rcu_read_lock()
    it = find(kvm, PG_LEVEL_4K)
    stale = it._replace(old_spte=it.old_spte & ~ept.VMX_EPT_DIRTY_BIT)
    found = tdp_mmu_set_spte_atomic(kvm, stale, design.shadow_nonpresent_value)
    rcu_read_unlock()
    read_unlock(kvm.mmu_lock)
    return found, it.old_spte


def test_an_atomic_change_fails_if_the_entry_is_not_what_it_was() -> None:
    (found, actual), _ = run_alone(_lose_the_race, V6_12)
    assert found == actual
    assert is_shadow_present_pte(actual)


def _write_stale(design: Design) -> tuple[int, int, int]:
    kvm = vm(design)
    write_lock(kvm.mmu_lock)
    rcu_read_lock()
    it = find(kvm, PG_LEVEL_4K)
    clean = it.old_spte & ~ept.VMX_EPT_DIRTY_BIT
    replaced = kvm_tdp_mmu_write_spte(kvm, it.root, it.sp, it.gfn, it.level, clean, clean)
    rcu_read_unlock()
    write_unlock(kvm.mmu_lock)
    return replaced, clean, it.old_spte


def test_an_exclusive_write_returns_what_it_really_replaced_from_v5_18_on() -> None:
    (replaced, _, actual), _ = run_alone(_write_stale, V5_18)
    assert replaced == actual


def test_before_an_exclusive_write_loses_what_the_hardware_has_set() -> None:
    stage = Stage(lambda: spawn(_write_stale, V5_16, name="writer"))
    stage.finish_all()
    assert stage.rules == {"I11"}
    assert "it was given D since, of which nobody is told" in stage.violations[0].message


def _freeze(kvm: Kvm, it: TdpIter) -> None:
    write_spte(kvm, it.root, it.sp, it.gfn, it.level, kvm.design.removed_spte)


def _thaw(kvm: Kvm, it: TdpIter) -> None:
    write_spte(kvm, it.root, it.sp, it.gfn, it.level, kvm.design.shadow_nonpresent_value)


def test_only_the_task_that_froze_an_entry_may_change_it() -> None:
    def setup() -> None:
        kvm = vm(V6_12)
        it = find(kvm, PG_LEVEL_4K)
        spawn(_freeze, kvm, it, name="zapper")
        spawn(_thaw, kvm, it, name="other")

    stage = Stage(setup)
    stage.finish("zapper")
    assert not stage.violations
    stage.finish("other")
    [violation] = stage.violations
    assert violation.rule == "I4"
    assert "zapper has frozen it" in violation.message


def _replace(kvm: Kvm, it: TdpIter) -> None:
    page: Page = alloc_page()
    new_spte, _ = make_spte(kvm, it.sp.role, None, ACC_ALL, it.gfn, page.pfn, 0)
    write_spte(kvm, it.root, it.sp, it.gfn, it.level, new_spte)


def test_a_present_leaf_must_not_change_to_another_page() -> None:
    def setup() -> None:
        kvm = vm(V6_12)
        spawn(_replace, kvm, find(kvm, PG_LEVEL_4K), name="changer")

    stage = Stage(setup)
    stage.finish("changer")
    assert stage.rules == {"I3"}
