"""A walk visits parents before children, makes progress, and survives yields."""

from __future__ import annotations

from interleaf.designs import V5_13, V6_12
from interleaf.hw.page_table import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, ROOT_LEVEL
from interleaf.hw.platform import EPT, EPT_5_LEVEL, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPageRole
from interleaf.kvm.mmu import kvm_mmu_reload
from interleaf.kvm.tdp.iter import TdpIter, tdp_iter_next, tdp_iter_start
from interleaf.kvm.tdp.link import tdp_mmu_alloc_sp
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.mm.mm import mm_alloc
from interleaf.runtime import new

from .stage import make_vm, populate, run_alone

GFNS = (0, 1, 0x200, 0x40000, 1 << 27)
"""Two pages in one table, one in the next, one below the next 1 GiB entry, one below the next entry of the root."""


def _visit(design: Design, gfns: tuple[int, ...], mapped: bool, min_level: int, start: int) -> tuple[TdpIter, ...]:
    kvm = make_vm(design, gfns)
    if mapped:
        populate(kvm)
    else:
        kvm_mmu_reload(kvm.vcpus[0])
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    visited: tuple[TdpIter, ...] = ()
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, min_level, start)
    while it is not None:
        visited = (*visited, it)
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    return visited


def visit(
    gfns: tuple[int, ...], *, mapped: bool = True, min_level: int = PG_LEVEL_4K, start: int = 0
) -> list[tuple[int, int]]:
    """(gfn, level) of the entries that a walk visits."""
    visited, _ = run_alone(_visit, V6_12, gfns, mapped, min_level, start)
    return [(it.gfn, it.level) for it in visited]


def test_parents_come_before_children() -> None:
    assert visit(GFNS) == [
        (0, 4),
        (0, 3),
        (0, 2),
        (0, 1),
        (1, 1),
        (0x200, 2),
        (0x200, 1),
        (0x40000, 3),
        (0x40000, 2),
        (0x40000, 1),
        (1 << 27, 4),
        (1 << 27, 3),
        (1 << 27, 2),
        (1 << 27, 1),
    ]


def test_a_walk_stops_at_its_lowest_level() -> None:
    assert visit(GFNS, min_level=ROOT_LEVEL) == [(0, 4), (1 << 27, 4)]
    assert visit(GFNS, min_level=PG_LEVEL_1G) == [(0, 4), (0, 3), (0x40000, 3), (1 << 27, 4), (1 << 27, 3)]
    assert (0x200, PG_LEVEL_2M) in visit(GFNS, min_level=PG_LEVEL_2M)


def test_a_walk_begins_at_the_entries_that_cover_its_start() -> None:
    assert visit(GFNS, start=0x200)[:4] == [(0, 4), (0, 3), (0x200, 2), (0x200, 1)]
    assert visit(GFNS, start=0x201) == [(0, 4), (0, 3), (0x200, 2), *visit(GFNS)[7:]]


def test_a_walk_does_not_go_below_what_is_not_there() -> None:
    assert visit(GFNS, mapped=False) == [(0, 4), (1 << 27, 4)]


def _visit_all(start: int, end: int, platform: Platform) -> tuple[tuple[int, int], ...]:
    kvm = new(Kvm, design=V6_12, mm=mm_alloc(1), gfns=None, platform=platform)
    root = tdp_mmu_alloc_sp(kvm, 0, KvmMmuPageRole(level=platform.levels))
    visited: tuple[tuple[int, int], ...] = ()
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, start)
    while it is not None and it.gfn < end:
        visited = (*visited, (it.gfn, it.level))
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    return visited


def test_a_walk_that_may_meet_any_gfn_visits_every_entry() -> None:
    visited, _ = run_alone(_visit_all, 0, 1 << 36, EPT)
    assert visited == tuple((index << 27, 4) for index in range(512))


def test_a_walk_of_five_levels() -> None:
    visited, _ = run_alone(_visit_all, 1 << 40, 1 << 45, EPT_5_LEVEL)
    assert visited == tuple((index << 36, 5) for index in range(16, 512))


def _progress(design: Design, gfns: tuple[int, ...], start: int) -> tuple[tuple[int, int, bool], ...]:
    return tuple((it.gfn, it.level, it.may_yield) for it in _visit(design, gfns, True, PG_LEVEL_4K, start))


def test_a_walk_may_yield_once_it_has_made_progress() -> None:
    visited, _ = run_alone(_progress, V6_12, (0, 1), 0)
    assert visited == ((0, 4, False), (0, 3, False), (0, 2, False), (0, 1, False), (1, 1, True))


def test_passing_over_entries_that_are_never_written_is_progress() -> None:
    visited, _ = run_alone(_progress, V6_12, (8,), 0)
    assert visited == ((0, 4, False), (0, 3, False), (0, 2, False), (8, 1, True))


def test_a_walk_that_starts_at_its_only_page_never_yields() -> None:
    visited, _ = run_alone(_progress, V6_12, (8,), 8)
    assert not any(may_yield for _, _, may_yield in visited)


def _after_yield(design: Design) -> tuple[tuple[int, int], ...]:
    kvm = make_vm(design, (0, 1, 2))
    populate(kvm)
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    rcu_read_lock()
    it = tdp_iter_start(kvm, root, PG_LEVEL_4K, 0)
    while it is not None and it.gfn != 1:
        it = tdp_iter_next(kvm, it)
    assert it is not None
    it = tdp_iter_next(kvm, it._replace(yielded=True, yielded_gfn=it.next_last_level_gfn))
    visited: tuple[tuple[int, int], ...] = ()
    while it is not None:
        visited = (*visited, (it.gfn, it.level))
        it = tdp_iter_next(kvm, it)
    rcu_read_unlock()
    return visited


def test_after_a_yield_a_walk_finds_its_way_again_from_the_root() -> None:
    visited, _ = run_alone(_after_yield, V6_12)
    assert visited == ((0, 4), (0, 3), (0, 2), (1, 1), (2, 1))


def test_before_v5_16_the_entry_at_the_restart_was_passed_over() -> None:
    visited, _ = run_alone(_after_yield, V5_13)
    assert visited == ((0, 3), (0, 2), (1, 1), (2, 1)), "harmless here: only the entry of the root is passed over"
