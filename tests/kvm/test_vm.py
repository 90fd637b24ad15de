"""VMs come and go, and leave nothing behind."""

from __future__ import annotations

import pytest

from interleaf.designs import library
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.kvm.vm import kvm_create_vm, kvm_get_kvm, kvm_put_kvm
from interleaf.linux.slab import kmem_cache_alloc
from interleaf.mm.mm import mm_alloc
from interleaf.runtime import ModelError, spawn
from tests.kvm.tdp.stage import Stage, make_vm, populate

every_design = pytest.mark.parametrize("design", library().values(), ids=lambda design: design.name)


@every_design
def test_a_destroyed_vm_leaves_nothing(design: Design) -> None:
    def setup() -> None:
        kvm = make_vm(design, (0, 1, 1 << 27), vcpus=2)
        populate(kvm)
        spawn(kvm_put_kvm, kvm, name="destroy")

    stage = Stage(setup)
    stage.finish_all()
    assert not stage.violations
    assert not stage.execution.unfinished
    assert stage.execution.world.exercised["I12"]


def test_only_the_last_reference_destroys_the_vm() -> None:
    def put_twice(kvm: Kvm) -> None:
        kvm_put_kvm(kvm)
        _ = kvm.mmu_valid_gen
        kvm_put_kvm(kvm)
        _ = kvm.mmu_valid_gen

    def setup() -> None:
        kvm = make_vm(library()["v6.12"], (0,))
        kvm_get_kvm(kvm)
        spawn(put_twice, kvm, name="destroy")

    stage = Stage(setup)
    stage.finish_all()
    assert stage.rules == {"use-after-free"}
    assert any("Kvm0 is destroyed" in line for line in stage.story)


def test_a_page_table_that_is_left_violates_i12() -> None:
    def setup() -> None:
        kvm = make_vm(library()["v6.12"], (0,))
        kmem_cache_alloc(KvmMmuPage)
        spawn(kvm_put_kvm, kvm, name="destroy")

    stage = Stage(setup)
    stage.finish_all()
    [violation] = stage.violations
    assert violation.rule == "I12"
    assert violation.message == "Kvm0 is destroyed, but 1 of its page tables are not freed"
    assert violation.object == "KvmMmuPage0"


@pytest.mark.parametrize("gfns", [(), (1, 0), (3, 3)])
def test_the_gfns_of_a_vm_are_given_in_order(gfns: tuple[int, ...]) -> None:
    def setup() -> None:
        kvm_create_vm(library()["v6.12"], mm_alloc(1), gfns)

    with pytest.raises(ModelError, match="ascending"):
        Stage(setup)
