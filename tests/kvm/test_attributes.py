"""Memory attributes: private and shared memory, and huge pages that must not cover both."""

from __future__ import annotations

import errno

import pytest

from interleaf.designs import V6_12, V6_18
from interleaf.hw.page_table import PG_LEVEL_2M
from interleaf.kvm.attributes import KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_vm_set_mem_attributes
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmParams
from interleaf.kvm.page_fault import kvm_mmu_do_page_fault
from interleaf.kvm.tdp.spte import is_present_leaf
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.runtime import spawn
from interleaf.scenarios.stage import load_roots, make_vm
from tests.kvm.huge import entry
from tests.kvm.mapped import mapped
from tests.kvm.tdp.stage import Stage, run_alone

PRIVATE = KVM_MEMORY_ATTRIBUTE_PRIVATE


def _vm(design: Design = V6_12) -> Kvm:
    return make_vm(design, pages=2, huge=True, params=KvmParams(private_mem=True))


def _is_huge(kvm: Kvm) -> bool:
    return is_present_leaf(entry(kvm, 0, PG_LEVEL_2M), PG_LEVEL_2M)


def test_private_memory_is_another_page_and_comes_back() -> None:
    def program() -> tuple[object, ...]:
        kvm = _vm()
        [vcpu] = kvm.vcpus
        kvm_arch_vcpu_ioctl_run(vcpu, write(1))
        before = _is_huge(kvm)
        kvm_vm_set_mem_attributes(kvm, 1, 2, PRIVATE)
        unmapped = mapped(kvm)
        result = kvm_arch_vcpu_ioctl_run(vcpu, write(0), write(1))
        page = kvm.gmem[1]
        both = mapped(kvm), _is_huge(kvm), page is not None and len(page.spteps) == 1
        kvm_vm_set_mem_attributes(kvm, 1, 2, 0)
        kvm_arch_vcpu_ioctl_run(vcpu, write(1))
        return before, unmapped, result, both, page is not None and len(page.spteps)

    assert run_alone(program)[0] == (True, (), 0, ((0, 1), False, True), 0)


def test_a_huge_page_of_one_kind_is_mapped_again() -> None:
    def program() -> tuple[bool, ...]:
        kvm = _vm()
        [vcpu] = kvm.vcpus
        kvm_vm_set_mem_attributes(kvm, 1, 2, PRIVATE)
        kvm_vm_set_mem_attributes(kvm, 1, 2, 0)
        kvm_arch_vcpu_ioctl_run(vcpu, write(0))
        return (_is_huge(kvm),)

    assert run_alone(program)[0] == (True,)


def test_an_access_of_the_wrong_kind_goes_to_userspace() -> None:
    def program() -> int:
        kvm = _vm()
        load_roots(kvm)
        kvm_vm_set_mem_attributes(kvm, 1, 2, PRIVATE)
        srcu = srcu_read_lock(kvm.srcu)
        result, _level = kvm_mmu_do_page_fault(kvm.vcpus[0], 1, 0)
        srcu_read_unlock(kvm.srcu, srcu)
        return int(result)

    assert run_alone(program)[0] == -errno.EFAULT


def _fault_between(design: Design) -> Stage:
    """B56: a vCPU faults on gfn 0 while gfn 1, in the same huge page, becomes private; then it reads gfn 1."""

    def setup() -> None:
        kvm = _vm(design)
        load_roots(kvm)
        spawn(kvm_vm_set_mem_attributes, kvm, 1, 2, PRIVATE, name="attributes")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), read(1), name="vcpu0")

    stage = Stage(setup)
    assert stage.until("attributes", "write_unlock", "_pre_set")
    # it faults on gfn 0, and tries again
    for _try in range(2):
        stage.until("vcpu0", "_guest_access", "_run_guest")
    stage.finish("attributes")
    stage.finish("vcpu0")
    return stage


@pytest.mark.parametrize(
    ("design", "rules"),
    [
        (V6_12, {"memory-attributes"}),
        (V6_12.adding("attributes-cover-huge-pages"), set()),
        (V6_18, set()),
        (V6_18.without("attributes-cover-huge-pages"), {"memory-attributes"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_huge_page_is_not_mapped_while_attributes_in_it_change(design: Design, rules: set[str]) -> None:
    assert _fault_between(design).rules == rules
