"""Zapping leafs and roots: what is left, what is flushed, and when a walk yields."""

from __future__ import annotations

from interleaf.designs import V5_18, V6_12
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.tdp.wrprot import kvm_tdp_mmu_wrprot_slot
from interleaf.kvm.tdp.zap import tdp_mmu_zap_leafs, tdp_mmu_zap_root
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.runtime import spawn

from .stage import Stage, make_vm, populate, run_alone


def _root(kvm: Kvm) -> KvmMmuPage:
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    return root


def _zap_leafs(design: Design, start: int, end: int, invalid: bool) -> tuple[bool, tuple[bool, ...]]:
    kvm = make_vm(design, (8, 9, 10))
    populate(kvm)
    root = _root(kvm)
    pages = tuple(kvm.mm.pte[gfn].page for gfn in kvm.gfns)
    write_lock(kvm.mmu_lock)
    if invalid:
        root.role = root.role.invalidated()
    flush = tdp_mmu_zap_leafs(kvm, root, start, end, False, False)
    write_unlock(kvm.mmu_lock)
    return flush, tuple(bool(page.spteps) for page in pages)  # type: ignore[union-attr]


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
