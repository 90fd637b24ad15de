"""A vCPU's roots: those of its modes, and those that it keeps for later."""

from __future__ import annotations

import pytest

from interleaf.designs import V5_18, V6_12, V6_18
from interleaf.hw.platform import EPT_5_LEVEL, EPT_NO_AD
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmRequest, KvmVcpu
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot
from interleaf.kvm.mmu import kvm_mmu_free_obsolete_roots, kvm_mmu_reload, kvm_mmu_unload
from interleaf.kvm.request import kvm_check_request
from interleaf.kvm.vcpu import (
    GuestAction,
    enter_l2,
    exit_l2,
    kvm_arch_vcpu_ioctl_run,
    read,
    rsm,
    smi,
    toggle_cr0_wp,
    toggle_paging,
    write,
)
from interleaf.kvm.vm import kvm_put_kvm
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.runtime import spawn
from interleaf.scenarios.stage import GUEST_HVA, make_vm
from tests.kvm.tdp.stage import Stage, run_alone


def _run(*actions: GuestAction, design: Design = V6_12) -> tuple[str, ...]:
    """The names of the roots that the vCPU has afterwards, the current one first, "-" for none."""
    kvm = make_vm(design)
    kvm_create_memslot(kvm, 1, 0, 1, GUEST_HVA, as_id=1)
    [vcpu] = kvm.vcpus
    assert kvm_arch_vcpu_ioctl_run(vcpu, *actions) == 0
    found = tuple(root.name[-1] if root is not None else "-" for root in (vcpu.mmu_root, *vcpu.prev_roots))
    kvm_put_kvm(kvm)
    return found


@pytest.mark.parametrize(
    ("actions", "roots"),
    [
        ((write(0),), "0---"),
        # what is kept of the old mode is one root, with a reference
        ((write(0), enter_l2(), read(0)), "40--"),
        ((write(0), enter_l2(), read(0), exit_l2(), read(0)), "04--"),
        ((write(0), enter_l2(), read(0), exit_l2(), enter_l2(), read(0)), "40--"),
        # system management mode and a new paging mode start over
        ((write(0), enter_l2(), read(0), smi(), read(0)), "8---"),
        ((write(0), smi(), read(0), rsm(), read(0)), "0---"),
        ((write(0), enter_l2(), read(0), toggle_paging(), read(0)), "4---"),
        ((write(0), enter_l2(), read(0), toggle_cr0_wp(), read(0)), "40--"),
    ],
)
def test_each_mode_has_its_root(actions: tuple[GuestAction, ...], roots: str) -> None:
    assert "".join(run_alone(_run, *actions)[0]) == roots


def test_system_management_mode_sees_the_second_address_space() -> None:
    def program() -> tuple[int, ...]:
        kvm = make_vm(V6_12)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], smi(), read(0))
        root = kvm.vcpus[0].mmu_root
        assert root is not None
        return root.role.as_id, len(kvm.vcpus[0].cpu.tlb)

    # no memslot is there: the access was MMIO
    assert run_alone(program)[0] == (1, 0)


def test_the_role_follows_from_platform_and_mode() -> None:
    def program() -> tuple[object, ...]:
        five, tracking = make_vm(V6_12, platform=EPT_5_LEVEL).vcpus[0], make_vm(V6_12, platform=EPT_NO_AD).vcpus[0]
        kvm_arch_vcpu_ioctl_run(tracking, enter_l2(), read(0))
        role = tracking.root_role
        return five.root_role.level, role.level, role.ad_disabled, role.guest_mode, role.smm

    assert run_alone(program)[0] == (5, 4, True, True, 0)


@pytest.mark.parametrize(
    ("design", "kept"),
    [(V6_12, True), (V6_12.without("cr0-wp-keeps-roots"), False), (V5_18, False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_changing_cr0_wp_keeps_the_root_or_not(design: Design, kept: bool) -> None:
    def program() -> bool:
        kvm = make_vm(design)
        [vcpu] = kvm.vcpus
        kvm_arch_vcpu_ioctl_run(vcpu, write(0))
        kvm_arch_vcpu_ioctl_run(vcpu, toggle_cr0_wp())
        return bool(vcpu.cpu.tlb)

    assert run_alone(program)[0] is kept


def _two_obsolete_roots(design: Design) -> Kvm:
    """The vCPU has no current root, and a previous one that has been invalidated."""
    kvm = make_vm(design, dummies=1)
    [vcpu] = kvm.vcpus
    kvm_arch_vcpu_ioctl_run(vcpu, write(0))
    vcpu.prev_roots, vcpu.mmu_root = (vcpu.mmu_root, None, None), None
    kvm_delete_memslot(kvm, 1)
    return kvm


def _free_obsolete(vcpu: KvmVcpu) -> None:
    assert kvm_check_request(vcpu, KvmRequest.MMU_FREE_OBSOLETE_ROOTS)
    kvm_mmu_free_obsolete_roots(vcpu)


@pytest.mark.parametrize(
    ("design", "rules"),
    [(V6_12, set()), (V6_12.without("free-obsolete-checks-each"), {"obsolete-root-kept"})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_obsolete_previous_roots_are_put(design: Design, rules: set[str]) -> None:
    stage = Stage(lambda: spawn(_free_obsolete, _two_obsolete_roots(design).vcpus[0], name="vcpu0"))
    stage.finish("vcpu0")
    assert stage.rules == rules


@pytest.mark.parametrize(
    ("design", "new"),
    [(V6_12, False), (V6_18, True), (V6_18.without("reload-frees-obsolete"), False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_reload_replaces_an_obsolete_root_or_not(design: Design, new: bool) -> None:
    def program() -> bool:
        kvm = make_vm(design)
        [vcpu] = kvm.vcpus
        kvm_mmu_reload(vcpu)
        old = vcpu.mmu_root
        set_nx_huge_pages()
        kvm_mmu_reload(vcpu)
        return vcpu.mmu_root is not old

    assert run_alone(program)[0] is new


def test_unloading_puts_all_roots() -> None:
    def program() -> tuple[object, ...]:
        kvm = make_vm(V6_12)
        [vcpu] = kvm.vcpus
        kvm_arch_vcpu_ioctl_run(vcpu, write(0), enter_l2(), read(0))
        kvm_mmu_unload(vcpu)
        return (vcpu.mmu_root, *vcpu.prev_roots)

    assert run_alone(program)[0] == (None, None, None, None)


def test_an_invalid_root_is_not_switched_to() -> None:
    def program() -> bool:
        kvm = make_vm(V6_12, dummies=1)
        [vcpu] = kvm.vcpus
        kvm_arch_vcpu_ioctl_run(vcpu, write(0), enter_l2(), read(0))
        old = vcpu.prev_roots[0]
        kvm_delete_memslot(kvm, 1)
        kvm_arch_vcpu_ioctl_run(vcpu, exit_l2(), read(0))
        return vcpu.mmu_root is old

    assert not run_alone(program)[0]
