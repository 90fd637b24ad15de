"""References on roots, and the list of roots, in each design."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.designs import OFF_LIST, SERIES_V1, V5_13, V5_16, V5_18, V6_12
from interleaf.explore.outcome import DATA_RACE, Bounds
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_unload
from interleaf.kvm.tdp import roots, tdp_mmu
from interleaf.kvm.tdp.roots import ROOTS_UNDER_READ_LOCK
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read
from interleaf.kvm.vm import kvm_put_kvm
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.list import list_for_each_entry
from interleaf.linux.refcount import refcount_inc, refcount_read
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.runtime import Value, spawn, write_plain

from .stage import Stage, make_vm, populate, run_alone

ALL = [V5_13, V5_16, SERIES_V1, OFF_LIST, V5_18, V6_12]
every_design = pytest.mark.parametrize("design", ALL, ids=lambda design: design.name)


def on_list(kvm: Kvm) -> tuple[KvmMmuPage, ...]:
    return tuple(list_for_each_entry(kvm.tdp_mmu_roots, KvmMmuPage))


def _two_vcpus(design: Design) -> tuple[Value, ...]:
    kvm = make_vm(design, (8,), vcpus=2)
    for vcpu in kvm.vcpus:
        kvm_mmu_reload(vcpu)
    first, second = (vcpu.mmu_root for vcpu in kvm.vcpus)
    assert first is not None
    return first is second, refcount_read(first.tdp_mmu_root_count), on_list(kvm) == (first,)


@every_design
def test_vcpus_with_the_same_role_share_a_root(design: Design) -> None:
    own = 1 if design.obeys(ROOTS_UNDER_READ_LOCK) else 0  # from v6.4 on the TDP MMU has a reference of its own
    result, _ = run_alone(_two_vcpus, design)
    assert result == (True, 2 + own, True)


def _unload(design: Design) -> tuple[int, int]:
    kvm = make_vm(design, (8,))
    populate(kvm)
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    assert root.life is not None
    kvm_mmu_unload(kvm.vcpus[0])
    return len(on_list(kvm)), root.life.index


@every_design
def test_the_last_put_frees_a_root_unless_the_tdp_mmu_keeps_it(design: Design) -> None:
    (listed, life), stage = run_alone(_unload, design)
    freed = stage.execution.memory.values[life] == 2
    kept = design is V6_12
    assert freed is not kept
    assert listed == (1 if design in (V5_18, V6_12) else 0), "v5.18 leaves it on the list for its worker"


def _destroy(design: Design) -> tuple[()]:
    kvm = make_vm(design, (8, 1 << 27), vcpus=2)
    populate(kvm)
    set_nx_huge_pages()
    populate(kvm)
    kvm_put_kvm(kvm)
    return ()


@every_design
def test_nothing_is_left_of_a_vm_that_is_destroyed(design: Design) -> None:
    _, stage = run_alone(_destroy, design)
    assert not stage.execution.unfinished
    pages = [obj for obj in stage.execution.world.objects.values() if isinstance(obj, KvmMmuPage)]
    assert len(pages) > 8
    assert {stage.execution.memory.peek(page.life) for page in pages if page.life is not None} == {2}


def _walk(design: Design, only_valid: bool) -> tuple[int, int]:
    kvm = make_vm(design, (8,))
    kvm_mmu_reload(kvm.vcpus[0])
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    write_lock(kvm.mmu_lock)
    before = refcount_read(root.tdp_mmu_root_count)
    found = tdp_mmu.tdp_mmu_next_root(kvm, None, False, only_valid)
    assert found is root
    during = refcount_read(root.tdp_mmu_root_count)
    assert tdp_mmu.tdp_mmu_next_root(kvm, found, False, only_valid) is None
    assert refcount_read(root.tdp_mmu_root_count) == before
    write_unlock(kvm.mmu_lock)
    return before, during


@every_design
def test_a_walk_has_a_reference_on_the_root_where_it_is(design: Design) -> None:
    (before, during), _ = run_alone(_walk, design, True)
    assert during == before + 1


def _walk_invalid(design: Design) -> tuple[bool, bool]:
    kvm = make_vm(design, (8,))
    kvm_mmu_reload(kvm.vcpus[0])
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    write_lock(kvm.mmu_lock)
    root.role = root.role.invalidated()
    valid = tdp_mmu.tdp_mmu_next_root(kvm, None, False, True)
    assert valid is None
    found = tdp_mmu.tdp_mmu_next_root(kvm, None, False, False)
    if found is not None:
        tdp_mmu.tdp_mmu_next_root(kvm, found, False, False)
    write_unlock(kvm.mmu_lock)
    return valid is None, found is root


@pytest.mark.parametrize(("design", "sees"), [(V5_16, False), (SERIES_V1, False), (V5_18, True), (V6_12, True)])
def test_whether_a_walk_over_all_roots_sees_invalid_ones(design: Design, sees: bool) -> None:
    result, _ = run_alone(_walk_invalid, design)
    assert result == (True, sees)


def _get_invalid(design: Design) -> None:
    kvm = make_vm(design, (8,))
    kvm_mmu_reload(kvm.vcpus[0])
    root = kvm.vcpus[0].mmu_root
    assert root is not None
    write_lock(kvm.mmu_lock)
    root.role = root.role.invalidated()
    assert not tdp_mmu.kvm_tdp_mmu_get_root(kvm, root)
    write_unlock(kvm.mmu_lock)


def test_the_patch_warns_when_a_reference_is_taken_on_an_invalid_root() -> None:
    stage = Stage(lambda: spawn(_get_invalid, OFF_LIST, name="test"))
    stage.finish_all()
    [violation] = stage.violations
    assert violation.rule == "get-root-invalid"
    assert not violation.fatal


def _put_twice(kvm: Kvm, root: KvmMmuPage) -> None:
    read_lock(kvm.mmu_lock)
    tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, True)
    tdp_mmu.kvm_tdp_mmu_put_root(kvm, root, True)
    read_unlock(kvm.mmu_lock)


def test_a_reference_that_is_given_back_twice_is_a_violation() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, (8,))
        kvm_mmu_reload(kvm.vcpus[0])
        root = kvm.vcpus[0].mmu_root
        assert root is not None
        refcount_inc(root.tdp_mmu_root_count)
        spawn(_put_twice, kvm, root, name="putter")

    stage = Stage(setup)
    stage.finish("putter")
    [violation] = stage.violations
    assert violation.rule == "I5"
    assert "putter puts a reference on KvmMmuPage0 that it does not have" in violation.message


def _two_invalidations_and_a_first_root() -> None:
    """A vCPU gets its first root with a request pending since before, and looks whether the root is obsolete while
    the second invalidation makes it so."""
    kvm = make_vm(V6_12, (0,))
    spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
    spawn(_invalidate_twice, name="nx")


def _invalidate_twice() -> None:
    set_nx_huge_pages()
    set_nx_huge_pages()


@pytest.mark.parametrize(("write", "expected"), [(WRITE_ONCE, set()), (write_plain, {DATA_RACE})])
def test_vcpus_may_look_at_a_role_while_the_root_is_invalidated(
    write: Callable[..., None], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "WRITE_ONCE", write)
    search = StateSearch(_two_invalidations_and_a_first_root, bounds=Bounds(states=15_000))
    try:
        found = {found.violation.rule for found in search.run().found}
    finally:
        search.close()
    assert found == expected
