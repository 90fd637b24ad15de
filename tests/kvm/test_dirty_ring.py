"""Dirty rings: logging, collecting, resetting, and a ring that is full."""

from __future__ import annotations

import pytest

from interleaf.designs import V6_12
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.hw.platform import EPT_PML
from interleaf.kvm.dirty_log import kvm_get_dirty_log, kvm_vm_set_slot_flags, mark_page_dirty_in_slot
from interleaf.kvm.dirty_ring import (
    dirty_ring_collect,
    kvm_dirty_ring_check_request,
    kvm_vm_ioctl_reset_dirty_pages,
)
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, DirtyGfn, Kvm, KvmParams, KvmRequest
from interleaf.kvm.memslots import kvm_delete_memslot, kvm_memslots
from interleaf.kvm.tdp.spte import is_dirty_spte
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.runtime import ModelError, spawn
from interleaf.scenarios.stage import make_vm, populate
from tests.kvm.huge import entry
from tests.kvm.tdp.stage import Stage, run_alone


def vm(size: int = 4, pages: int = 3) -> Kvm:
    """A VM whose processor logs, so that the ring fills without faults."""
    kvm = make_vm(V6_12, pages=pages, platform=EPT_PML, params=KvmParams(dirty_ring_size=size))
    populate(kvm)
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    return kvm


def test_what_is_written_is_collected_once_and_protected_again() -> None:
    def program() -> tuple[object, ...]:
        kvm = vm()
        vcpu = kvm.vcpus[0]
        kvm_arch_vcpu_ioctl_run(vcpu, write(2), write(0), write(2))
        found = dirty_ring_collect(vcpu)
        dirty = is_dirty_spte(kvm.masks, entry(kvm, 2, PG_LEVEL_4K))
        reset = kvm_vm_ioctl_reset_dirty_pages(kvm)
        clean = is_dirty_spte(kvm.masks, entry(kvm, 2, PG_LEVEL_4K))
        return found, dirty, reset, clean, dirty_ring_collect(vcpu), kvm_vm_ioctl_reset_dirty_pages(kvm)

    found, stage = run_alone(program)
    assert found == ((DirtyGfn(0, 0, 2), DirtyGfn(0, 0, 0)), True, 2, False, (), 0)
    # both pages are near each other, so they are protected together
    events = [event for step in stage.steps for event in step.events]
    assert [event.site[2] for event in events if event.operation == "write_lock"].count("kvm_reset_dirty_gfn") == 1


def test_what_is_not_collected_is_not_reset() -> None:
    def program() -> tuple[int, int]:
        kvm = vm()
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        untouched = kvm_vm_ioctl_reset_dirty_pages(kvm)
        dirty_ring_collect(kvm.vcpus[0])
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(1))
        return untouched, kvm_vm_ioctl_reset_dirty_pages(kvm)

    assert run_alone(program)[0] == (0, 1)


def test_a_ring_that_is_nearly_full_asks_the_vcpu_to_leave() -> None:
    def program() -> tuple[object, ...]:
        kvm = vm(2)
        vcpu, slot = kvm.vcpus[0], kvm_memslots(kvm).slots[0]
        mark_page_dirty_in_slot(kvm, slot, 0, vcpu)
        requested = vcpu.requests >> KvmRequest.DIRTY_RING_SOFT_FULL & 1
        full = kvm_dirty_ring_check_request(vcpu)
        dirty_ring_collect(vcpu)
        kvm_vm_ioctl_reset_dirty_pages(kvm)
        return requested, full, kvm_dirty_ring_check_request(vcpu)

    assert run_alone(program)[0] == (1, True, False)


def test_a_full_ring_is_a_bug() -> None:
    def program() -> None:
        kvm = vm(2)
        slot = kvm_memslots(kvm).slots[0]
        for gfn in kvm.named_gfns:
            mark_page_dirty_in_slot(kvm, slot, gfn, kvm.vcpus[0])

    stage = Stage(lambda: spawn(program, name="test"))
    stage.finish_all()
    assert stage.rules == {"BUG"}


def test_pages_of_a_slot_that_is_gone_need_no_protection() -> None:
    def program() -> int:
        kvm = vm()
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        dirty_ring_collect(kvm.vcpus[0])
        kvm_delete_memslot(kvm, 0)
        return kvm_vm_ioctl_reset_dirty_pages(kvm)

    assert run_alone(program)[0] == 1


@pytest.mark.parametrize("offsets", [(0, 2), (2, 0), (0, 70), (70, 0), (1, 65, 2)])
def test_pages_near_each_other_are_protected_together(offsets: tuple[int, ...]) -> None:
    def program() -> tuple[bool, ...]:
        kvm = vm(8, 71)
        vcpu, slot = kvm.vcpus[0], kvm_memslots(kvm).slots[0]
        kvm_arch_vcpu_ioctl_run(vcpu, *(write(offset) for offset in offsets))
        assert slot.npages == 71
        dirty_ring_collect(vcpu)
        assert kvm_vm_ioctl_reset_dirty_pages(kvm) == len(offsets)
        return tuple(is_dirty_spte(kvm.masks, entry(kvm, offset, PG_LEVEL_4K)) for offset in offsets)

    assert run_alone(program)[0] == (False,) * len(offsets)


def test_there_is_no_bitmap_then() -> None:
    def program() -> None:
        with pytest.raises(ModelError, match="dirty rings"):
            kvm_get_dirty_log(vm(), 0)

    stage = Stage(lambda: spawn(program, name="test"))
    stage.finish_all()
