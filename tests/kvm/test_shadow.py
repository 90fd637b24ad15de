"""Legacy shadow pages: how they are found again, recycled, zapped and freed."""

from __future__ import annotations

import functools

import pytest

from interleaf.designs import V5_16, V5_18, V6_4, V6_12
from interleaf.explore.states import StateSearch
from interleaf.hw.platform import EPT, EPT_5_LEVEL, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage, KvmParams, KvmRequest
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_unload
from interleaf.kvm.request import kvm_check_requests
from interleaf.kvm.shadow import kvm_memslots_have_rmaps, kvm_mmu_zap_oldest_mmu_pages
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.vm import kvm_put_kvm
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.linux.list import list_for_each_entry
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.mm.unmap import madvise_dontneed
from interleaf.scenarios import load
from interleaf.scenarios.stage import GUEST_HVA, enter_nested, make_vm
from tests.kvm.tdp.stage import run_alone


def _levels(kvm: Kvm) -> tuple[int, ...]:
    """Those of the active pages, newest first."""
    return tuple(sp.role.level for sp in list_for_each_entry(kvm.active_mmu_pages, KvmMmuPage))


def _vm(platform: Platform, *levels: int, quota: int = 1024, design: Design = V6_12) -> Kvm:
    kvm = make_vm(design, vcpus=len(levels), pages=2, platform=platform, params=KvmParams(n_max_mmu_pages=quota))
    for vcpu, nested in zip(kvm.vcpus, levels, strict=True):
        enter_nested(vcpu, nested)
    return kvm


@pytest.mark.parametrize(("platform", "levels", "pages"), [(EPT, 4, (1, 2, 3, 4)), (NPT, 3, (1, 2))])
def test_a_nested_guest_has_a_shadow_page_for_each_table(
    platform: Platform, levels: int, pages: tuple[int, ...]
) -> None:
    def program() -> tuple[object, ...]:
        kvm = _vm(platform, levels)
        assert kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0), read(1)) == 0
        found = _levels(kvm), kvm.n_used_mmu_pages
        kvm_put_kvm(kvm)
        return found

    assert run_alone(program)[0] == (pages, len(pages))


def test_pages_are_found_again_by_another_vcpu() -> None:
    def program() -> tuple[object, ...]:
        kvm = _vm(EPT_5_LEVEL, 4, 5)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        kvm_mmu_unload(kvm.vcpus[0])
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[1], read(1))
        found = _levels(kvm)
        kvm_put_kvm(kvm)
        return found

    assert run_alone(program)[0] == (5, 1, 2, 3, 4)


def test_what_was_invalidated_is_zapped_and_a_root_goes_with_its_last_vcpu() -> None:
    def program() -> tuple[object, ...]:
        kvm = _vm(EPT, 4)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        set_nx_huge_pages()
        before = _levels(kvm), kvm.n_used_mmu_pages
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        after = _levels(kvm), kvm.n_used_mmu_pages
        kvm_put_kvm(kvm)
        return before, after

    assert run_alone(program)[0] == (((), 1), ((1, 2, 3, 4), 4))


def test_the_oldest_pages_are_recycled_when_the_quota_is_used_up() -> None:
    def program() -> tuple[object, ...]:
        kvm = _vm(EPT_5_LEVEL, 4, 5, quota=9)
        kvm_mmu_reload(kvm.vcpus[0])
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[1], read(0))
        assert _levels(kvm) == (1, 2, 3, 5, 4)
        # roots in use are not recycled, and what they lead to is no older than they are
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(1))
        found = _levels(kvm), kvm.n_used_mmu_pages
        kvm_put_kvm(kvm)
        return found

    assert run_alone(program)[0] == ((1, 2, 3, 5, 4), 5)


@pytest.mark.parametrize("design", [V5_18, V6_12], ids=lambda design: design.name)
def test_notifiers_see_what_shadow_pages_map(design: Design) -> None:
    def program() -> int:
        kvm = _vm(EPT, 4, design=design)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        madvise_dontneed(kvm.mm, GUEST_HVA, 1)
        left = len(kvm.vcpus[0].cpu.tlb)
        assert kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0)) == 0
        kvm_put_kvm(kvm)
        return left

    assert run_alone(program)[0] == 0


@pytest.mark.parametrize(
    ("design", "request_made"),
    [
        (V5_16, KvmRequest.MMU_RELOAD),
        (V5_18, KvmRequest.MMU_FREE_OBSOLETE_ROOTS),
        (V6_12, KvmRequest.MMU_FREE_OBSOLETE_ROOTS),
    ],
    ids=lambda value: value.name,
)
def test_who_has_a_root_that_is_recycled_with_what_leads_to_it_is_requested_to_put_it(
    design: Design, request_made: KvmRequest
) -> None:
    def program() -> object:
        kvm = _vm(EPT_5_LEVEL, 4, 5, design=design)
        kvm_mmu_reload(kvm.vcpus[0])
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[1], read(0))
        kvm_mmu_unload(kvm.vcpus[1])
        write_lock(kvm.mmu_lock)
        kvm_mmu_zap_oldest_mmu_pages(kvm, 1)
        write_unlock(kvm.mmu_lock)
        requests = kvm_check_requests(kvm.vcpus[0])
        kvm_put_kvm(kvm)
        return requests

    assert run_alone(program)[0] == 1 << request_made


def test_there_are_rmaps_as_soon_as_a_vcpu_has_a_legacy_root() -> None:
    def program() -> tuple[object, ...]:
        kvm = make_vm(V6_12, vcpus=2)
        enter_nested(kvm.vcpus[1], 4)
        found = []
        for vcpu in kvm.vcpus:
            kvm_mmu_reload(vcpu)
            found.append(kvm_memslots_have_rmaps(kvm))
        kvm_put_kvm(kvm)
        return tuple(found)

    assert run_alone(program)[0] == (False, True)


def _recycling_a_root(design: Design) -> set[str]:
    search = StateSearch(functools.partial(load("nested-fault-recycles-root").setup, design))
    try:
        outcome = search.run()
    finally:
        search.close()
    assert outcome.exhaustive
    return {found.violation.rule for found in outcome.found}


@pytest.mark.parametrize(
    ("design", "found"),
    [
        (V5_18, set()),
        (V5_18.adding("child-role-from-parent"), {"use-after-free"}),
        (V6_4, {"use-after-free"}),
        (V6_4.without("child-role-from-parent"), set()),
        (V6_4.adding("stale-check-after-reclaim"), set()),
    ],
    ids=lambda value: value.name if isinstance(value, Design) else "",
)
def test_filling_a_root_that_has_just_been_zapped_does_harm_only_if_pages_inherit_that_it_is_invalid(
    design: Design, found: set[str]
) -> None:
    assert _recycling_a_root(design) == found
