"""The host takes pages back from a VM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interleaf.designs import V6_12
from interleaf.hw.cpu import TlbEntry
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange
from interleaf.kvm.memslots import kvm_create_memslot
from interleaf.kvm.mmu import kvm_mmu_reload
from interleaf.kvm.mmu_notifier import kvm_mmu_notifier_invalidate_range_start
from interleaf.kvm.tdp.unmap import kvm_tdp_mmu_unmap_gfn_range
from interleaf.kvm.tlb import kvm_flush_remote_tlbs
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.vm import kvm_create_vm, kvm_put_kvm, kvm_vm_ioctl_create_vcpu
from interleaf.kvm.zap import kvm_flush_shadow_all
from interleaf.mm.mm import mm_alloc, mmap
from interleaf.mm.unmap import mmput, munmap
from interleaf.runtime import spawn
from tests.kvm.mapped import mapped
from tests.kvm.tdp.stage import Stage, make_vm, populate, run_alone


def _two_slots() -> Kvm:
    """Slot 0: gfns 4 and 5 at hvas 0x10 and 0x11; slot 1: gfn 8 at hva 0x12. All are mapped."""
    mm = mm_alloc(1)
    mmap(mm, 0x10, 3)
    kvm = kvm_create_vm(V6_12, mm, (4, 5, 8))
    kvm_vm_ioctl_create_vcpu(kvm)
    kvm_create_memslot(kvm, 0, 4, 2, 0x10)
    kvm_create_memslot(kvm, 1, 8, 1, 0x12)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(4), write(5), write(8))
    return kvm


@pytest.mark.parametrize(
    ("start", "npages", "left"),
    [(0x10, 1, (5, 8)), (0x11, 1, (4, 8)), (0x11, 2, (4,)), (0x10, 3, ()), (0x13, 4, (4, 5, 8))],
)
def test_the_gfns_behind_the_range_are_unmapped(start: int, npages: int, left: tuple[int, ...]) -> None:
    def program() -> tuple[int, ...]:
        kvm = _two_slots()
        munmap(kvm.mm, start, npages)
        return mapped(kvm)

    assert run_alone(program)[0] == left


@pytest.mark.parametrize(("start", "locks"), [(0x10, 2), (0x13, 0)])
def test_without_a_memslot_in_the_range_no_lock_is_taken(start: int, locks: int) -> None:
    def setup() -> None:
        spawn(munmap, _two_slots().mm, start, 1, name="munmap")

    stage = Stage(setup)
    stage.finish_all()
    assert sum("mmu_lock for writing" in line for line in stage.story) == locks


def test_seq_moves_on_at_the_end_only() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, (0,))
        spawn(munmap, kvm.mm, 0, 1, name="munmap")

    stage = Stage(setup)
    kvm = next(obj for obj in stage.execution.world.objects.values() if isinstance(obj, Kvm))

    def state() -> tuple[int, int, int]:
        return (
            stage.peek(kvm, Kvm.mmu_invalidate_seq),
            stage.peek(kvm, Kvm.mmu_invalidate_in_progress),
            stage.peek(kvm, Kvm.mn_active_invalidate_count),
        )

    assert state() == (0, 0, 0)
    stage.until("munmap", "ptep_clear", "zap_page_range")
    assert state() == (0, 1, 1)
    stage.finish("munmap")
    assert state() == (1, 0, 0)


def _forgets_to_flush(kvm: Kvm, gfn_range: KvmGfnRange, flush: bool) -> bool:
    kvm_tdp_mmu_unmap_gfn_range(kvm, gfn_range, flush)
    return False


def _does_nothing(kvm: Kvm, gfn_range: KvmGfnRange, flush: bool) -> bool:
    return flush


def _unmap_with(unmap: object) -> Stage:
    design = V6_12.derive("broken", "The notifier is broken.", (), kvm_tdp_mmu_unmap_gfn_range=unmap)

    def setup() -> None:
        kvm = make_vm(design, (0,))
        populate(kvm)
        spawn(munmap, kvm.mm, 0, 1, name="munmap")

    stage = Stage(setup)
    stage.finish_all()
    return stage


def test_a_tlb_entry_that_is_left_violates_i1() -> None:
    [violation] = _unmap_with(_forgets_to_flush).violations
    assert violation.rule == "I1"
    assert "vCPU0 can still use its TLB entry" in violation.message


def _unmap_after_a_switch(unmap: object, invalid: bool) -> list[str]:
    """A vCPU has used the page through one root and runs on another now; which rules does an unmapping violate?"""
    design = V6_12.derive("broken", "The notifier is broken.", (), kvm_tdp_mmu_unmap_gfn_range=unmap)

    def setup() -> None:
        kvm = make_vm(design, (0,))
        populate(kvm)
        [vcpu] = kvm.vcpus
        old = vcpu.mmu_root
        assert old is not None
        if invalid:
            old.role = old.role.invalidated()
        vcpu.mmu_root, vcpu.prev_roots = None, (old, None, None)
        vcpu.root_role = replace(vcpu.root_role, guest_mode=True)
        kvm_mmu_reload(vcpu)
        assert vcpu.mmu_root is not old
        vcpu.cpu.tlb = frozenset({TlbEntry(old, 0, kvm.mm.pte[0].pfn, True, True, True)})
        spawn(munmap, kvm.mm, 0, 1, name="munmap")

    stage = Stage(setup)
    stage.finish_all()
    return [violation.rule for violation in stage.violations]


def test_a_tlb_entry_of_a_previous_root_that_is_left_violates_i1_unless_the_root_is_invalid() -> None:
    assert _unmap_after_a_switch(_forgets_to_flush, False) == ["I1"]
    assert not _unmap_after_a_switch(_forgets_to_flush, True)
    assert not _unmap_after_a_switch(kvm_tdp_mmu_unmap_gfn_range, False)


def _zap_and_unmap(kvm: Kvm, exits: bool) -> None:
    if exits:
        mmput(kvm.mm)
    else:
        kvm_flush_shadow_all(kvm)
    kvm_mmu_notifier_invalidate_range_start(kvm, 0, 1, True)


@pytest.mark.parametrize(("exits", "violated"), [(True, set()), (False, {"I1"})])
def test_a_tlb_entry_is_harmless_once_the_process_has_ended(exits: bool, violated: set[str]) -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, (0,))
        populate(kvm)
        spawn(_zap_and_unmap, kvm, exits, name="host")

    stage = Stage(setup)
    stage.finish_all()
    assert stage.rules == violated


def test_an_spte_that_is_left_violates_i1() -> None:
    design = V6_12.derive("broken", "The notifier is broken.", (), kvm_tdp_mmu_unmap_gfn_range=_does_nothing)

    def setup() -> None:
        kvm = make_vm(design, (0,))
        populate(kvm)
        spawn(_flush_and_unmap, kvm, name="munmap")

    stage = Stage(setup)
    stage.finish_all()
    [violation] = stage.violations
    assert violation.rule == "I1"
    assert "an SPTE still maps it" in violation.message


def _flush_and_unmap(kvm: Kvm) -> None:
    kvm_flush_remote_tlbs(kvm)
    munmap(kvm.mm, 0, 1)


def test_release_leaves_nothing_mapped() -> None:
    def program() -> tuple[int, ...]:
        kvm = make_vm(V6_12, (0, 1))
        populate(kvm)
        mmput(kvm.mm)
        return mapped(kvm)

    assert run_alone(program)[0] == ()


def test_a_destroyed_vm_is_not_told_any_more() -> None:
    def program() -> int:
        kvm = make_vm(V6_12, (0, 1))
        populate(kvm)
        kvm_put_kvm(kvm)
        munmap(kvm.mm, 0, 2)
        return len(kvm.mm.notifiers)

    assert run_alone(program)[0] == 0
