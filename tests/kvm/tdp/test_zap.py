"""Zapping leafs and roots: what is left, what is flushed, and when a walk yields."""

from __future__ import annotations

from interleaf.designs import V5_18, V6_12
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.hw.platform import Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.tdp.iter import tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.spte import is_shadow_present_pte
from interleaf.kvm.tdp.wrprot import kvm_tdp_mmu_wrprot_slot
from interleaf.kvm.tdp.zap import (
    MAX_GFN_OF_ARCHITECTURE,
    kvm_tdp_mmu_zap_possible_nx_huge_page,
    kvm_tdp_mmu_zap_sp,
    tdp_mmu_zap_leafs,
    tdp_mmu_zap_root,
)
from interleaf.kvm.trace import SpteChanged
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.runtime import spawn, trace
from tests.kvm.mapped import page_behind

from .stage import Stage, make_vm, populate, run_alone, traced


def _root(kvm: Kvm) -> KvmMmuPage:
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    return root


def _zap_leafs(design: Design, start: int, end: int, invalid: bool) -> tuple[bool, tuple[bool, ...]]:
    kvm = make_vm(design, (8, 9, 10))
    populate(kvm)
    root = _root(kvm)
    pages = tuple(page_behind(kvm, gfn) for gfn in kvm.named_gfns)
    write_lock(kvm.mmu_lock)
    if invalid:
        root.role = root.role.invalidated()
    flush = tdp_mmu_zap_leafs(kvm, root, start, end, False, False)
    write_unlock(kvm.mmu_lock)
    return flush, tuple(bool(page.spteps) for page in pages)


def test_leafs_of_the_range_are_zapped_and_no_others() -> None:
    result, _ = run_alone(_zap_leafs, V6_12, 9, 10, False)
    assert result == (True, (True, False, True))


def test_nothing_zapped_is_nothing_to_flush() -> None:
    result, _ = run_alone(_zap_leafs, V6_12, 11, 20, False)
    assert result == (False, (True, True, True))


def test_an_invalid_root_needs_no_flush_from_v6_9_on() -> None:
    (flush, _), _ = run_alone(_zap_leafs, V6_12, 8, 11, True)
    assert not flush
    (flush, _), _ = run_alone(_zap_leafs, V5_18, 8, 11, True)
    assert flush


def _zap_contended(kvm: Kvm) -> None:
    write_lock(kvm.mmu_lock)
    tdp_mmu_zap_leafs(kvm, _root(kvm), 8, 11, True, False)
    write_unlock(kvm.mmu_lock)


def test_a_walk_flushes_before_it_gives_the_lock_up() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, (8, 9, 10))
        populate(kvm)
        spawn(_zap_contended, kvm, name="zap")

    stage = Stage(setup)
    stage.finish("zap", contended=True)
    assert not stage.violations
    operations = [event.operation for step in stage.steps for event in step.events]
    wanted = ("kvm_flush_remote_tlbs", "rcu_read_unlock", "write_unlock")
    order = [name for name in operations if name in wanted]
    assert order == [*wanted, *wanted, "rcu_read_unlock", "write_unlock"], "it yields before gfns 9 and 10"


def _zap_root(design: Design, shared: bool) -> tuple[int, int]:
    kvm = make_vm(design, (8, 1 << 27))
    populate(kvm)
    root = _root(kvm)
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    tdp_mmu_zap_root(kvm, root, shared)
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)
    return root.spt[0], root.spt[1]


def test_a_root_is_zapped_whole() -> None:
    for design in (V5_18, V6_12):
        for shared in (True, False):
            left, _ = run_alone(_zap_root, design, shared)
            assert left == (0, 0), "non-present"


def _wrprot(design: Design) -> tuple[bool, bool]:
    kvm = make_vm(design, (8, 9))
    populate(kvm)
    assert kvm.memslots is not None
    slot = kvm.memslots.slots[0]
    read_lock(kvm.mmu_lock)
    changed = kvm_tdp_mmu_wrprot_slot(kvm, slot)
    again = kvm_tdp_mmu_wrprot_slot(kvm, slot)
    read_unlock(kvm.mmu_lock)
    return changed, again


def test_write_protecting_a_slot_asks_for_a_flush_if_anything_was_writable() -> None:
    result, _ = run_alone(_wrprot, V6_12)
    assert result == (True, False)


def _table(kvm: Kvm, gfn: int) -> KvmMmuPage:
    """The table of level 1 that leads to `gfn`."""
    it = tdp_iter_start(kvm, _root(kvm), PG_LEVEL_4K, gfn)
    while it is not None and it.level != PG_LEVEL_4K:
        it = tdp_iter_next(kvm, it)
    assert it is not None
    return it.sp


def _zap_sp(design: Design, shared: bool, twice: bool) -> tuple[bool, ...]:
    kvm = make_vm(design, (8,))
    populate(kvm)
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    rcu_read_lock()
    sp = _table(kvm, 8)
    zap = kvm_tdp_mmu_zap_possible_nx_huge_page if shared else kvm_tdp_mmu_zap_sp
    zapped = (zap(kvm, sp), *((zap(kvm, sp),) if twice else ()))
    parent = sp.parent
    assert parent is not None
    left = is_shadow_present_pte(parent[0].spt[parent[1]])
    rcu_read_unlock()
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)
    return (*zapped, left)


def test_one_table_is_zapped_with_what_it_maps() -> None:
    for shared in (True, False):
        result, _ = run_alone(_zap_sp, V6_12, shared, False)
        assert result == (True, False)


def test_a_table_that_is_zapped_already_is_left_alone_under_the_read_lock() -> None:
    result, _ = run_alone(_zap_sp, V6_12, True, True)
    assert result == (True, False, False)


def test_a_table_that_is_to_be_zapped_under_the_write_lock_must_be_linked() -> None:
    stage = Stage(lambda: spawn(_zap_sp, V6_12, False, True, name="task"))
    stage.finish_all()
    assert stage.rules == {"zap-sp-not-present"}


BEGIN = "the zap begins"


def _order(design: Design, shared: bool) -> None:
    kvm = make_vm(design, (8, 9, 1 << 18))
    populate(kvm)
    (read_lock if shared else write_lock)(kvm.mmu_lock)
    trace(BEGIN)
    tdp_mmu_zap_root(kvm, _root(kvm), shared)
    (read_unlock if shared else write_unlock)(kvm.mmu_lock)


def test_the_order_in_which_a_root_is_zapped() -> None:
    for shared in (True, False):
        small_first, large_only = (_changes(design, shared) for design in (V6_12, V5_18))
        empty, frozen = V6_12.shadow_nonpresent_value, V6_12.removed_spte
        below = [(frozen, level, gfn) for level, gfn in ((1, 8), (1, 9))] if shared else []
        assert small_first[:3] == [(empty, 1, 8), (empty, 1, 9), (empty, 1, 1 << 18)]
        assert small_first[3 : 4 + len(below)] == [(empty, 2, 0), *below]
        assert [level for value, level, _ in small_first if value == empty] == [1, 1, 1, 2, 2, 3, 3, 4]
        assert [level for value, level, _ in large_only if value == 0] == [3, 3, 4]
        assert large_only[:4] == [(0, 3, 0), (0x5A0, 2, 0), (0x5A0, 1, 8), (0x5A0, 1, 9)]


def _changes(design: Design, shared: bool) -> list[tuple[int, int, int]]:
    """(new value, level, gfn) of the SPTEs that are changed when a root is zapped, in order."""
    records = traced(_order, design, shared)
    changes = [record for record in records[records.index(BEGIN) :] if isinstance(record, SpteChanged)]
    return [(change.new_spte, change.level, change.gfn) for change in changes]


def _zap_high(design: Design) -> tuple[bool, ...]:
    """The page at gfn 2**24 lies beyond what a processor of 36 address bits has."""
    kvm = make_vm(design, (8, 1 << 27), platform=Platform(maxphyaddr=36))
    populate(kvm)
    root = _root(kvm)
    write_lock(kvm.mmu_lock)
    tdp_mmu_zap_root(kvm, root, False)
    write_unlock(kvm.mmu_lock)
    return tuple(is_shadow_present_pte(root.spt[index]) for index in (0, 1))


def test_what_lies_beyond_the_host_s_largest_gfn_was_left_before_v5_18() -> None:
    assert run_alone(_zap_high, V6_12)[0] == (False, False)
    assert run_alone(_zap_high, V6_12.without(MAX_GFN_OF_ARCHITECTURE.name))[0] == (False, True)
