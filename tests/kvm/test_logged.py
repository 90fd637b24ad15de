"""I10 under every interleaving: a guest that writes while its dirty log is collected."""

from __future__ import annotations

import functools

import pytest

from interleaf.designs import V5_18, V6_1, V6_12
from interleaf.explore.outcome import Outcome
from interleaf.explore.states import StateSearch
from interleaf.hw.platform import EPT, EPT_NO_AD, EPT_PML, Platform
from interleaf.kvm import dirty_log
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_clear_dirty_log, kvm_get_dirty_log, kvm_vm_set_slot_flags
from interleaf.kvm.dirty_ring import dirty_ring_collect, kvm_vm_ioctl_reset_dirty_pages
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, Kvm, KvmMemorySlot, KvmParams, KvmVcpu
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.runtime import Task, join, routine, spawn
from interleaf.scenarios.stage import make_vm, populate

BITMAP = KvmParams()
MANUAL = KvmParams(manual_protect=True)
RING = KvmParams(dirty_ring_size=8)


def _collect(kvm: Kvm) -> None:
    if kvm.params.dirty_ring_size:
        dirty_ring_collect(kvm.vcpus[0])
        kvm_vm_ioctl_reset_dirty_pages(kvm)
        return
    told = kvm_get_dirty_log(kvm, 0)
    if kvm.params.manual_protect:
        kvm_clear_dirty_log(kvm, 0, told)


def _collect_last(kvm: Kvm, *tasks: Task) -> None:
    join(*tasks)
    _collect(kvm)
    _collect(kvm)


def _write_twice(vcpu: KvmVcpu) -> None:
    """With an exit in between, at which the vCPU empties the processor's log."""
    kvm_arch_vcpu_ioctl_run(vcpu, write(0))
    kvm_arch_vcpu_ioctl_run(vcpu, write(0))


def write_vs_collect(design: Design, platform: Platform, params: KvmParams) -> None:
    """The guest writes a page twice while the log is collected, and the log is collected again in the end."""
    kvm = make_vm(design, platform=platform, params=params)
    populate(kvm)
    kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = spawn(_write_twice, kvm.vcpus[0], name="vcpu0")
    log = spawn(_collect, kvm, name="log")
    spawn(_collect_last, kvm, vcpu, log, name="last")


def _search(design: Design, platform: Platform, params: KvmParams) -> Outcome:
    search = StateSearch(functools.partial(write_vs_collect, design, platform, params))
    try:
        return search.run()
    finally:
        search.close()


@pytest.mark.parametrize("params", [BITMAP, MANUAL, RING], ids=["bitmap", "manual", "ring"])
@pytest.mark.parametrize("platform", [EPT, EPT_PML, EPT_NO_AD], ids=lambda platform: platform.name)
@pytest.mark.parametrize("design", [V5_18, V6_1, V6_12], ids=lambda design: design.name)
def test_no_write_is_lost(design: Design, platform: Platform, params: KvmParams) -> None:
    outcome = _search(design, platform, params)
    assert outcome.exhaustive
    assert not outcome.found
    assert outcome.exercised["I10"] > 0, outcome.exercised


@routine
def _forgets(kvm: Kvm, slot: KvmMemorySlot) -> None:
    """Flushes nothing."""


@pytest.mark.parametrize("platform", [EPT, EPT_PML, EPT_NO_AD], ids=lambda platform: platform.name)
def test_a_write_is_lost_if_getting_the_log_does_not_flush(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty_log, "kvm_flush_remote_tlbs_memslot", _forgets)
    outcome = _search(V6_12, platform, BITMAP)
    assert {found.violation.rule for found in outcome.found} == {"I10"}
