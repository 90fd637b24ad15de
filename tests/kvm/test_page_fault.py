"""Page faults: finding the page, and noticing that it is out of date."""

from __future__ import annotations

import errno
import functools

import pytest

from interleaf.designs import V5_13, V5_16, V5_18, V6_12
from interleaf.explore.states import StateSearch
from interleaf.hw.access import PFERR_GUEST_FINAL_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KVM_MEM_READONLY, KvmParams, KvmVcpu
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot, kvm_memslots
from interleaf.kvm.mmu import kvm_mmu_reload
from interleaf.kvm.mmu_internal import RetPf
from interleaf.kvm.page_fault import kvm_mmu_do_page_fault
from interleaf.kvm.page_track import kvm_write_track_add_gfn
from interleaf.kvm.tdp.spte import REMADE_SPTE_CLEAN
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.zap import kvm_zap_gfn_range
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.mm.unmap import madvise_dontneed, munmap
from interleaf.runtime import Object, Plain, spawn, the
from interleaf.runtime.objects import singleton
from interleaf.scenarios.stage import make_vm as stage_vm
from tests.kvm.mapped import mapped, only_spte, page_behind
from tests.kvm.tdp.stage import Stage, make_vm, populate, run_alone


class Result(Object):
    """What the fault of `_fault` came to."""

    value = Plain(-1)


def _fault(vcpu: KvmVcpu, gfn: int, write: bool) -> int:
    kvm_mmu_reload(vcpu)
    srcu = srcu_read_lock(vcpu.kvm.srcu)
    error_code = PFERR_GUEST_FINAL_MASK | (PFERR_WRITE_MASK if write else PFERR_USER_MASK)
    found, _level = kvm_mmu_do_page_fault(vcpu, gfn, error_code)
    result = int(found)
    srcu_read_unlock(vcpu.kvm.srcu, srcu)
    the(Result).value = result
    return result


def test_a_fault_maps_the_page_and_puts_its_reference() -> None:
    def program() -> tuple[int, tuple[int, ...], int]:
        kvm = make_vm(V6_12, (0, 1))
        result = _fault(kvm.vcpus[0], 1, True)
        return result, mapped(kvm), page_behind(kvm, 1).refcount

    assert run_alone(program)[0] == (RetPf.FIXED, (1,), 1)


def test_the_same_fault_again_is_spurious() -> None:
    def program() -> int:
        kvm = make_vm(V6_12.without(REMADE_SPTE_CLEAN.name), (0,))
        _fault(kvm.vcpus[0], 0, True)
        return _fault(kvm.vcpus[0], 0, True)

    assert run_alone(program)[0] == RetPf.SPURIOUS


def test_a_gfn_without_a_memslot_is_mmio() -> None:
    def program() -> int:
        kvm = make_vm(V6_12, (0,))
        kvm_delete_memslot(kvm, 0)
        return _fault(kvm.vcpus[0], 0, False)

    assert run_alone(program)[0] == RetPf.EMULATE


def test_a_write_to_a_read_only_memslot_is_mmio() -> None:
    def program() -> tuple[int, int]:
        kvm = make_vm(V6_12, (0,))
        kvm_memslots(kvm).slots[0].flags = KVM_MEM_READONLY
        return _fault(kvm.vcpus[0], 0, True), page_behind(kvm, 0).refcount

    assert run_alone(program)[0] == (RetPf.EMULATE, 1)


def test_a_memslot_without_memory_is_an_error() -> None:
    def program() -> int:
        kvm = make_vm(V6_12, (0,))
        munmap(kvm.mm, 0, 1)
        return _fault(kvm.vcpus[0], 0, False)

    assert run_alone(program)[0] == -errno.EFAULT


@pytest.mark.parametrize(("flags", "writable"), [(0, True), (KVM_MEM_READONLY, False)])
def test_a_read_only_memslot_is_mapped_read_only(flags: int, writable: bool) -> None:
    def program() -> bool:
        kvm = make_vm(V6_12, (0,))
        kvm_memslots(kvm).slots[0].flags = flags
        _fault(kvm.vcpus[0], 0, False)
        table, index = only_spte(kvm, 0)
        return bool(table.spt[index] & 0b10)

    assert run_alone(program)[0] is writable


def _fault_beside(design: Design, other: str) -> Stage:
    def setup() -> None:
        kvm = make_vm(design, (0,))
        kvm_create_memslot(kvm, 1, 8, 1, 0x80)
        kvm_mmu_reload(kvm.vcpus[0])
        spawn(_fault, kvm.vcpus[0], 0, True, name="vcpu0")
        if other == "munmap":
            spawn(munmap, kvm.mm, 0, 1, name=other)
        elif other == "dontneed":
            spawn(madvise_dontneed, kvm.mm, 0, 1, name=other)
        else:
            spawn(kvm_delete_memslot, kvm, 1, name=other)

    return Stage(setup)


def _result(stage: Stage) -> int:
    return int(stage.peek(singleton(stage.execution.world, Result), Result.value))


@pytest.mark.parametrize("other", ["munmap", "dontneed"])
def test_a_notifier_that_ran_since_the_lookup_makes_the_fault_retry(other: str) -> None:
    stage = _fault_beside(V6_12, other)
    stage.until("vcpu0", "_follow_pte", "get_user_page")
    stage.finish(other)
    stage.finish("vcpu0")
    assert _result(stage) == RetPf.RETRY
    assert not stage.violations


def test_without_that_check_a_freed_page_is_mapped() -> None:
    stage = _fault_beside(V6_12.without("notifier-retry"), "munmap")
    stage.until("vcpu0", "_follow_pte", "get_user_page")
    stage.finish("munmap")
    stage.finish("vcpu0")
    assert stage.rules == {"I1"}


def test_a_notifier_between_its_start_and_its_end_makes_the_fault_retry() -> None:
    stage = _fault_beside(V6_12, "munmap")
    stage.until("munmap", "write_unlock", "kvm_handle_hva_range")
    stage.finish("vcpu0")
    assert _result(stage) == RetPf.RETRY
    stage.finish("munmap")
    assert not stage.violations


def test_a_root_that_became_invalid_makes_the_fault_retry() -> None:
    stage = _fault_beside(V6_12, "memslot")
    # the fault begins after the first swap, which would wait for it otherwise
    stage.until("memslot", "synchronize_srcu", "kvm_swap_active_memslots")
    stage.until("vcpu0", "_follow_pte", "get_user_page")
    stage.until("memslot", "write_unlock", "kvm_mmu_zap_all_fast")
    stage.finish("vcpu0")
    assert _result(stage) == RetPf.RETRY
    stage.finish("memslot")
    assert not stage.violations


def test_without_that_check_something_is_installed_under_a_zapped_root() -> None:
    stage = _fault_beside(V6_12.without("stale-root-check"), "memslot")
    stage.until("memslot", "synchronize_srcu", "kvm_swap_active_memslots")
    stage.until("vcpu0", "_follow_pte", "get_user_page")
    # all is zapped now; the second swap waits for the fault, which is in an SRCU reader
    with pytest.raises(AssertionError, match="memslot waits"):
        stage.finish("memslot")
    stage.finish("vcpu0")
    assert stage.rules == {"I8"}


def test_a_memslot_that_is_being_deleted_makes_the_fault_retry() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, (0,))
        kvm_mmu_reload(kvm.vcpus[0])
        spawn(kvm_delete_memslot, kvm, 0, name="memslot")
        spawn(_fault, kvm.vcpus[0], 0, True, name="vcpu0")

    stage = Stage(setup)
    stage.until("memslot", "rcu_assign_pointer", "kvm_swap_active_memslots")
    stage.finish("vcpu0")
    assert _result(stage) == RetPf.RETRY
    assert any("being deleted" in line for line in stage.story)


@pytest.mark.parametrize(
    ("design", "locks"),
    [(V6_12, 0), (V6_12.without("retry-before-lock"), 1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_fault_that_must_retry_does_not_take_mmu_lock(design: Design, locks: int) -> None:
    stage = _fault_beside(design, "munmap")
    stage.until("munmap", "write_unlock", "kvm_handle_hva_range")
    stage.finish("vcpu0")
    assert _result(stage) == RetPf.RETRY
    assert sum(line.startswith("vcpu0 takes") and "mmu_lock" in line for line in stage.story) == locks


def test_the_same_after_the_lookup_of_the_page() -> None:
    stage = _fault_beside(V6_12, "munmap")
    stage.until("vcpu0", "_snapshot", "kvm_faultin_pfn")
    stage.until("munmap", "write_unlock", "kvm_handle_hva_range")
    stage.finish("vcpu0")
    assert _result(stage) == RetPf.RETRY
    assert not any(line.startswith("vcpu0 takes") and "mmu_lock" in line for line in stage.story)
    stage.finish("munmap")
    assert not stage.violations


def test_an_invalid_memslot_taken_for_mmio_puts_an_mmio_spte_over_a_present_one() -> None:
    def stage_of(design: Design) -> Stage:
        def setup() -> None:
            kvm = make_vm(design, (0,), vcpus=2)
            populate(kvm)
            kvm.vcpus[1].cpu.tlb = frozenset()
            spawn(kvm_delete_memslot, kvm, 0, name="memslot")
            spawn(_fault, kvm.vcpus[1], 0, True, name="vcpu1")

        stage = Stage(setup)
        stage.until("memslot", "rcu_assign_pointer", "kvm_swap_active_memslots")
        stage.finish("vcpu1")
        return stage

    assert _result(stage_of(V6_12)) == RetPf.RETRY
    broken = stage_of(V6_12.without("invalid-slot-retry"))
    assert _result(broken) == RetPf.EMULATE
    assert any("(RWXAD) -> " in line for line in broken.story)


def _after_invalidations(design: Design, count: int) -> int:
    mm_bits = KvmParams(mmu_seq_bits=4)
    kvm = stage_vm(design, params=mm_bits)
    for _ in range(count):
        kvm_zap_gfn_range(kvm, 0, 1)
    return _fault(kvm.vcpus[0], 0, True)


@pytest.mark.parametrize("design", [V5_16, V5_18], ids=lambda design: design.name)
def test_a_sequence_number_that_does_not_fit_makes_every_fault_retry(design: Design) -> None:
    assert [run_alone(_after_invalidations, design, count)[0] for count in (1, 2, 3)] == [
        RetPf.FIXED,
        RetPf.RETRY,
        RetPf.RETRY,
    ]


@pytest.mark.parametrize("design", [V5_13, V6_12], ids=lambda design: design.name)
def test_all_bits_of_the_sequence_number_are_kept(design: Design) -> None:
    assert [run_alone(_after_invalidations, design, count)[0] for count in (2, 15, 16)] == [RetPf.FIXED] * 3


def test_without_all_bits_of_the_sequence_number_a_vcpu_never_gets_on() -> None:
    def setup(design: Design) -> None:
        kvm = stage_vm(design, params=KvmParams(mmu_seq_bits=4))
        for _ in range(2):
            kvm_zap_gfn_range(kvm, 0, 1)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")

    def found(design: Design) -> set[str]:
        search = StateSearch(functools.partial(setup, design))
        try:
            outcome = search.run()
        finally:
            search.close()
        return {found.violation.rule for found in outcome.found}

    assert found(V6_12.without("full-mmu-seq")) == {"livelock"}
    assert found(V6_12) == set()


def test_a_write_to_a_tracked_page_is_emulated() -> None:
    def program() -> tuple[int, int]:
        kvm = make_vm(V6_12, (0,))
        populate(kvm)
        kvm_write_track_add_gfn(kvm, 0)
        return kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0)), _fault(kvm.vcpus[0], 0, True)

    result, stage = run_alone(program)
    # with nothing mapped, or the mapping known not to be present, the fault finds out when it makes the SPTE
    assert result == (0, RetPf.WRITE_PROTECTED)
    assert "KVM emulates the write to gfn 0x0" in stage.story
