"""The worked example is caught at the bug that it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from interleaf.designs import load
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmVcpu
from interleaf.kvm.mmu import kvm_mmu_reset_context
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.mm.unmap import munmap
from interleaf.runtime import spawn
from tests.kvm.tdp.stage import Stage, make_vm, populate

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_roots.py"
GFN = 1 << 27
"""In the second entry of a root, before which a walk over the entries of the root may yield."""


@pytest.fixture
def design() -> Design:
    return load(f"{EXAMPLE}:MY_ROOTS")


def _write_and_reset(vcpu: KvmVcpu) -> None:
    kvm_arch_vcpu_ioctl_run(vcpu, write(GFN))
    kvm_mmu_reset_context(vcpu)


def test_a_root_that_is_zapped_by_its_putter_is_seen_by_notifiers(design: Design) -> None:
    def setup() -> None:
        kvm = make_vm(design, (GFN,))
        populate(kvm)
        spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")
        spawn(munmap, kvm.mm, GFN, 1, name="munmap")

    stage = Stage(setup)
    assert stage.until("vcpu0", "write_unlock", "tdp_mmu_iter_cond_resched", contended=True)
    stage.finish("munmap")
    stage.finish_all()
    assert not stage.violations


def test_the_zapper_of_invalidated_roots_puts_a_reference_that_is_the_putters(design: Design) -> None:
    def setup() -> None:
        kvm = make_vm(design, (GFN,))
        populate(kvm)
        spawn(set_nx_huge_pages, name="admin")
        spawn(_write_and_reset, kvm.vcpus[0], name="vcpu0")

    stage = Stage(setup)
    assert stage.until("admin", "write_unlock", "kvm_mmu_zap_all_fast")
    assert stage.until("vcpu0", "write_unlock", "tdp_mmu_iter_cond_resched", contended=True)
    stage.finish("admin")
    [violation] = stage.violations
    assert violation.rule == "I5"
    assert "admin puts a reference on vcpu0:KvmMmuPage0 that it does not have" in violation.message
