"""KVM_PRE_FAULT_MEMORY: what it maps, and how it can fail to come to its end."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable

import pytest

from interleaf.designs import V6_12, V6_18
from interleaf.explore.states import StateSearch
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.hw.platform import NPT
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmVcpu
from interleaf.kvm.memslots import kvm_delete_memslot
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_unload
from interleaf.kvm.mmu_internal import RetPf
from interleaf.kvm.page_fault import kvm_mmu_do_page_fault
from interleaf.kvm.prefault import kvm_vcpu_pre_fault_memory
from interleaf.kvm.tdp.spte import is_accessed_spte
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.mm.unmap import munmap
from interleaf.runtime import spawn, the
from interleaf.runtime.objects import singleton
from interleaf.scenarios.stage import GUEST_HVA, make_vm, populate
from tests.kvm.huge import entry
from tests.kvm.mapped import mapped
from tests.kvm.tdp.stage import Result, Stage, run_alone


def test_a_range_is_mapped_and_not_accessed() -> None:
    def program() -> tuple[int, tuple[int, ...], bool]:
        kvm = make_vm(V6_12, pages=2, platform=NPT)
        result = kvm_vcpu_pre_fault_memory(kvm.vcpus[0], 0, 2)
        return result, mapped(kvm), is_accessed_spte(kvm.masks, entry(kvm, 0, PG_LEVEL_4K))

    assert run_alone(program)[0] == (0, (0, 1), False)


def test_a_huge_page_is_mapped_at_once() -> None:
    def program() -> tuple[int, int]:
        kvm = make_vm(V6_12, pages=2, huge=True)
        result = kvm_vcpu_pre_fault_memory(kvm.vcpus[0], 0, 512)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(1))
        return result, len(kvm.vcpus[0].cpu.tlb)

    result, stage = run_alone(program)
    assert result == (0, 1)
    assert not any("faults on" in line for line in stage.story)


def test_memory_that_is_not_there_is_an_error() -> None:
    def program() -> tuple[int, int]:
        kvm = make_vm(V6_12, pages=2)
        munmap(kvm.mm, GUEST_HVA, 1)
        first = kvm_vcpu_pre_fault_memory(kvm.vcpus[0], 0, 2)
        kvm_mmu_unload(kvm.vcpus[0])
        kvm_delete_memslot(kvm, 0)
        return first, kvm_vcpu_pre_fault_memory(kvm.vcpus[0], 0, 2)

    assert run_alone(program)[0] == (-errno.EFAULT, -errno.ENOENT)


@pytest.mark.parametrize(
    ("design", "accessed"),
    [(V6_12, False), (V6_18, True), (V6_18.without("prefetch-keeps-present").without("spurious-if-allowed"), False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_mapped_is_made_again_or_kept(design: Design, accessed: bool) -> None:
    def program() -> bool:
        kvm = make_vm(design.without("remade-spte-clean") if design is V6_12 else design)
        populate(kvm)
        kvm_vcpu_pre_fault_memory(kvm.vcpus[0], 0, 1)
        return is_accessed_spte(kvm.masks, entry(kvm, 0, PG_LEVEL_4K))

    assert run_alone(program)[0] is accessed


def _prefault(vcpu: KvmVcpu) -> None:
    kvm_vcpu_pre_fault_memory(vcpu, 0, 1)


def _after_invalidation(design: Design) -> None:
    """The vCPU's root is invalid, and it has not taken the request yet."""
    kvm = make_vm(design)
    kvm_mmu_reload(kvm.vcpus[0])
    set_nx_huge_pages()
    spawn(_prefault, kvm.vcpus[0], name="vcpu0")


def _beside_deletion(design: Design) -> None:
    kvm = make_vm(design)
    kvm_mmu_reload(kvm.vcpus[0])
    spawn(_prefault, kvm.vcpus[0], name="vcpu0")
    spawn(kvm_delete_memslot, kvm, 0, name="memslot")


def _found(setup: Callable[[Design], None], design: Design) -> set[str]:
    search = StateSearch(functools.partial(setup, design))
    try:
        outcome = search.run()
    finally:
        search.close()
    assert outcome.exhaustive
    return {found.violation.rule for found in outcome.found}


def test_a_prefault_with_an_obsolete_root_never_ends_without_its_rule() -> None:
    assert _found(_after_invalidation, V6_12) == {"livelock"}
    assert _found(_after_invalidation, V6_12.adding("reload-frees-obsolete")) == set()


@pytest.mark.parametrize(
    ("design", "result"),
    [(V6_18, -errno.EAGAIN), (V6_18.without("prefault-invalid-slot"), RetPf.RETRY), (V6_12, RetPf.RETRY)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_prefault_of_a_memslot_that_is_being_deleted_fails_or_tries_again(design: Design, result: int) -> None:
    def setup() -> None:
        kvm = make_vm(design)
        kvm_mmu_reload(kvm.vcpus[0])
        spawn(_try, kvm.vcpus[0], name="vcpu0")
        spawn(kvm_delete_memslot, kvm, 0, name="memslot")

    stage = Stage(setup)
    stage.until("memslot", "rcu_assign_pointer", "kvm_swap_active_memslots")
    stage.finish("vcpu0")
    assert stage.peek(singleton(stage.execution.world, Result), Result.value) == result


def _try(vcpu: KvmVcpu) -> None:
    srcu = srcu_read_lock(vcpu.kvm.srcu)
    result, _level = kvm_mmu_do_page_fault(vcpu, 0, 0, True)
    srcu_read_unlock(vcpu.kvm.srcu, srcu)
    the(Result).value = int(result)


def test_a_root_that_becomes_obsolete_during_the_prefault_is_never_replaced() -> None:
    # the prefault tries again without looking at requests, and the deletion waits for its SRCU reader: until a signal
    assert _found(_beside_deletion, V6_12) == {"livelock"}
    assert _found(_beside_deletion, V6_18) == {"livelock"}
