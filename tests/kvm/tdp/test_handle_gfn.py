"""The notifiers that zap nothing come to every root of the memslot's address space, and to no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interleaf.designs import V5_13, V6_1, V6_12, V6_18
from interleaf.hw.ept import VMX_EPT_ACCESS_BIT
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange
from interleaf.kvm.memslots import kvm_create_memslot, kvm_memslots
from interleaf.kvm.tdp.age import AGE_LOCKLESS, kvm_tdp_mmu_age_gfn_range
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.scenarios.stage import GUEST_HVA, make_vm
from tests.kvm.mapped import page_behind
from tests.kvm.tdp.stage import run_alone

DESIGNS = pytest.mark.parametrize("design", [V5_13, V6_1, V6_12, V6_18], ids=lambda design: design.name)


def _two_roots(design: Design, role: str) -> Kvm:
    """Both vCPUs have read gfn 0, the second one in another role, and so through another root."""
    kvm = make_vm(design, vcpus=2)
    if role == "smm":
        kvm_create_memslot(kvm, 0, 0, 1, GUEST_HVA, as_id=1)
    other = kvm.vcpus[1]
    other.root_role = replace(other.root_role, smm=1) if role == "smm" else replace(other.root_role, guest_mode=True)
    for vcpu in kvm.vcpus:
        kvm_arch_vcpu_ioctl_run(vcpu, read(0))
    return kvm


def _accessed(kvm: Kvm) -> list[bool]:
    """Of the SPTEs that map the page, the oldest first."""
    mapping = sorted(page_behind(kvm, GUEST_HVA).spteps, key=lambda where: where[0].serial)
    return [bool(table.spt[index] & VMX_EPT_ACCESS_BIT) for table, index in mapping]


def _age(kvm: Kvm) -> bool:
    slot = next(slot for slot in kvm_memslots(kvm).slots if slot.as_id == 0)
    lockless = kvm.design.obeys(AGE_LOCKLESS)
    if not lockless:
        write_lock(kvm.mmu_lock)
    young = kvm_tdp_mmu_age_gfn_range(kvm, KvmGfnRange(slot, 0, 1, False))
    if not lockless:
        write_unlock(kvm.mmu_lock)
    return young


def _outcome(design: Design, role: str) -> tuple[bool, ...]:
    kvm = _two_roots(design, role)
    young = _age(kvm)
    return (young, *_accessed(kvm))


@DESIGNS
def test_all_roots_of_the_address_space_are_visited(design: Design) -> None:
    assert run_alone(_outcome, design, "L2")[0] == (True, False, False)


@DESIGNS
def test_roots_of_the_other_address_space_are_left_alone(design: Design) -> None:
    assert run_alone(_outcome, design, "smm")[0] == (True, False, True)


def _again(design: Design, newest: bool) -> bool:
    """Asked again after one of the vCPUs has used the page once more."""
    kvm = _two_roots(design, "L2")
    _age(kvm)
    vcpu = kvm.vcpus[newest]
    vcpu.cpu.tlb = frozenset()
    kvm_arch_vcpu_ioctl_run(vcpu, read(0))
    return _age(kvm)


@DESIGNS
@pytest.mark.parametrize("newest", [False, True])
def test_a_use_through_any_root_counts(design: Design, newest: bool) -> None:
    assert run_alone(_again, design, newest)[0]
