"""What follows from a change of an SPTE, and what may not be changed."""

from __future__ import annotations

import functools

from interleaf.designs import V5_16, V5_18, V6_12
from interleaf.hw import ept
from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K, ROOT_LEVEL
from interleaf.hw.platform import EPT
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import ACC_ALL, Kvm, KvmMmuPage, KvmMmuPageRole
from interleaf.kvm.tdp.changed import (
    ATOMIC_FROZEN_WARN,
    EXCLUSIVE_FROZEN_WARN,
    LEAF_REPLACES_TABLE,
    handle_changed_spte,
    kvm_tdp_mmu_write_spte,
    tdp_mmu_clear_spte_bits,
    tdp_mmu_iter_set_spte,
    tdp_mmu_set_spte_atomic,
    tdp_mmu_zap_spte_atomic,
)
from interleaf.kvm.tdp.entries import write_spte
from interleaf.kvm.tdp.iter import TdpIter, tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.link import tdp_mmu_alloc_sp, tdp_mmu_link_sp
from interleaf.kvm.tdp.spte import is_shadow_present_pte, make_mmio_spte, make_nonleaf_spte, make_spte
from interleaf.kvm.trace import PrepareZapPage, SpteChanged
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.mm.mm import mm_alloc
from interleaf.mm.page import Page, alloc_page, page_at
from interleaf.runtime import Value, new, spawn

from .stage import Stage, make_vm, populate, run_alone, traced

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


def _large_vm(design: Design) -> tuple[Kvm, KvmMmuPage]:
    """A VM whose walks visit every entry, and its root."""
    kvm = new(Kvm, design=design, mm=mm_alloc(1), gfns=None, platform=EPT)
    root = tdp_mmu_alloc_sp(kvm, 0, KvmMmuPageRole())
    return kvm, root


def _tear_down(design: Design, shared: bool) -> None:
    """One table, with a page and an MMIO SPTE, is unlinked from a table of level 2."""
    kvm, _ = _large_vm(design)
    upper = tdp_mmu_alloc_sp(kvm, 0, KvmMmuPageRole(level=PG_LEVEL_2M))
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    rcu_read_lock()
    it = TdpIter((upper,), 0, PG_LEVEL_2M, kvm.masks.nonpresent, 0, 0, PG_LEVEL_2M, 0)
    table = tdp_mmu_alloc_sp(kvm, 0, KvmMmuPageRole(level=PG_LEVEL_4K))
    assert tdp_mmu_link_sp(kvm, it, table, shared)
    leaf, _ = make_spte(kvm, KvmMmuPageRole(level=PG_LEVEL_4K), None, ACC_ALL, 3, alloc_page().pfn, 0)
    write_spte(kvm, None, table, 3, PG_LEVEL_4K, leaf)
    write_spte(kvm, None, table, 5, PG_LEVEL_4K, make_mmio_spte(kvm, 2, 5, ACC_ALL))
    it = it._replace(old_spte=make_nonleaf_spte(kvm.masks, table.pfn, False))
    if shared:
        assert tdp_mmu_set_spte_atomic(kvm, it, kvm.masks.nonpresent) is None
    else:
        tdp_mmu_iter_set_spte(kvm, it, kvm.masks.nonpresent)
    rcu_read_unlock()
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)


def test_a_table_that_is_torn_down_is_traced_after_its_parent_and_before_its_entries() -> None:
    for design in (V5_16, V5_18, V6_12):
        for shared, visited in ((True, range(512)), (False, (3,))):
            records = traced(_tear_down, design, shared)
            changes = [record for record in records if isinstance(record, SpteChanged)]
            linked, unlinked, *below = changes
            assert (linked.new_spte, unlinked.new_spte) == (unlinked.old_spte, design.shadow_nonpresent_value)
            assert [type(record) for record in records][-len(below) - 2 :] == [
                SpteChanged,
                PrepareZapPage,
                *[SpteChanged] * len(below),
            ]
            assert [(change.gfn, change.level) for change in below] == [(gfn, 1) for gfn in visited]
            assert {change.new_spte for change in below} == {design.removed_spte}
            if shared:
                assert below[0].old_spte == design.shadow_nonpresent_value
                assert below[5].old_spte & 0b111 == 0b110, "MMIO"


def _zap_one(design: Design) -> None:
    kvm = vm(design)
    read_lock(kvm.mmu_lock)
    rcu_read_lock()
    tdp_mmu_zap_spte_atomic(kvm, find(kvm, PG_LEVEL_4K))
    rcu_read_unlock()
    read_unlock(kvm.mmu_lock)


def test_of_an_atomic_zap_only_one_of_the_two_writes_is_traced() -> None:
    for design, new_spte in ((V5_16, 0x5A0), (V6_12, 1 << 63)):
        [last] = [record for record in traced(_zap_one, design) if isinstance(record, SpteChanged)][-1:]
        assert (last.gfn, last.level, last.new_spte) == (GFN, 1, new_spte)


def _clear(design: Design, seen_clean: bool) -> tuple[int, int, int]:
    kvm = vm(design)
    write_lock(kvm.mmu_lock)
    rcu_read_lock()
    it = find(kvm, PG_LEVEL_4K)
    actual, dirty = it.old_spte, ept.VMX_EPT_DIRTY_BIT
    if seen_clean:
        it = it._replace(old_spte=actual & ~dirty)
    was = tdp_mmu_clear_spte_bits(kvm, it, dirty)
    rcu_read_unlock()
    write_unlock(kvm.mmu_lock)
    return was, actual, it.sp.spt[GFN]


def test_bits_are_cleared_from_what_is_there_now() -> None:
    for seen_clean in (False, True):
        (was, actual, left), _ = run_alone(_clear, V6_12, seen_clean)
        assert was == actual
        assert left == actual & ~ept.VMX_EPT_DIRTY_BIT


def _replace_table(design: Design) -> bool:
    kvm, _ = _large_vm(design)
    table = tdp_mmu_alloc_sp(kvm, 0, KvmMmuPageRole(level=PG_LEVEL_4K))
    old_spte = make_nonleaf_spte(kvm.masks, table.pfn, False)
    new_spte = old_spte | ept.PT_PAGE_SIZE_MASK | kvm.masks.host_writable | kvm.masks.mmu_writable
    write_lock(kvm.mmu_lock)
    rcu_read_lock()
    handle_changed_spte(kvm, 0, 0, old_spte, new_spte, PG_LEVEL_2M, False)
    rcu_read_unlock()
    write_unlock(kvm.mmu_lock)
    return True


def test_a_table_is_torn_down_when_a_leaf_of_the_same_frame_takes_its_place() -> None:
    for design, torn_down in ((V6_12, 1), (V6_12.without(LEAF_REPLACES_TABLE.name), 0)):
        records = traced(_replace_table, design)
        assert sum(isinstance(record, PrepareZapPage) for record in records) == torn_down


def _update_frozen(design: Design, shared: bool) -> None:
    kvm = vm(design)
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    rcu_read_lock()
    it = find(kvm, PG_LEVEL_4K)
    if shared:
        tdp_mmu_set_spte_atomic(kvm, it._replace(old_spte=kvm.masks.frozen), kvm.masks.nonpresent)
    else:
        tdp_mmu_iter_set_spte(kvm, it, kvm.masks.frozen)
    rcu_read_unlock()
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)


def test_frozen_entries_are_reported_where_they_are_not_expected() -> None:
    for shared, rule in ((True, ATOMIC_FROZEN_WARN), (False, EXCLUSIVE_FROZEN_WARN)):
        for design, rules in (
            (V6_12, {"frozen-spte-atomic" if shared else "frozen-spte-exclusive"}),
            (V6_12.without(rule.name), set()),
        ):
            stage = Stage(functools.partial(spawn, _update_frozen, design, shared, name="task"))
            stage.finish_all()
            assert stage.rules == rules
