"""The bugs of the kernel's history that are about roots, walks and yields, each with a schedule made by hand.

Each schedule shows the bug on the design that had it, and runs through without a finding on v6.12.
"""

from __future__ import annotations

import pytest

from interleaf.designs import OFF_LIST, SERIES_V1, V5_13, V5_16, V5_18, V6_12
from interleaf.kvm.design import Design
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_reset_context
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.mm.unmap import mmput, munmap
from interleaf.runtime import spawn

from .stage import Stage, make_vm, populate

BEHIND_TOP_ENTRY = 1 << 27
"""A gfn in the second entry of a root: a walk over the entries of a root may yield before it comes there."""

YIELD = ("write_unlock", "tdp_mmu_iter_cond_resched")


def b01(design: Design) -> Stage:
    """A zap of all roots is between invalidating and zapping when the host takes a page back."""

    def setup() -> None:
        kvm = make_vm(design, (8,))
        populate(kvm)
        spawn(set_nx_huge_pages, name="admin")
        spawn(munmap, kvm.mm, 8, 1, name="munmap")

    stage = Stage(setup)
    assert stage.until("admin", "write_unlock", "kvm_mmu_zap_all_fast")
    stage.finish("munmap")
    stage.finish_all()
    return stage


def b01_while_zapping(design: Design) -> Stage:
    """The same, with the zapper in the middle of a root."""

    def setup() -> None:
        kvm = make_vm(design, (BEHIND_TOP_ENTRY,))
        populate(kvm)
        spawn(set_nx_huge_pages, name="admin")
        spawn(munmap, kvm.mm, BEHIND_TOP_ENTRY, 1, name="munmap")

    stage = Stage(setup)
    assert stage.until("admin", "read_unlock", "tdp_mmu_iter_cond_resched", contended=True)
    stage.finish("munmap")
    stage.finish_all()
    return stage


def b03(design: Design) -> Stage:
    """A vCPU has put the last reference on its root and yields while it zaps it; the host takes a page back."""

    def setup() -> None:
        kvm = make_vm(design, (BEHIND_TOP_ENTRY,))
        populate(kvm)
        spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")
        spawn(munmap, kvm.mm, BEHIND_TOP_ENTRY, 1, name="munmap")

    stage = Stage(setup)
    stage.until("vcpu0", *YIELD, contended=True)
    stage.finish("munmap")
    stage.finish_all()
    return stage


def b05(design: Design) -> Stage:
    """The unmap notifier yields in a root, whose last reference a vCPU puts meanwhile."""

    def setup() -> None:
        kvm = make_vm(design, (8, 9))
        populate(kvm)
        spawn(munmap, kvm.mm, 8, 2, name="munmap")
        spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")

    stage = Stage(setup)
    assert stage.until("munmap", *YIELD, contended=True)
    stage.finish("vcpu0")
    for task in stage.execution.unfinished:
        if task.name.startswith("rcu:"):
            stage.finish(task.name)
    stage.finish("munmap")
    stage.finish_all()
    return stage


def b06(design: Design) -> Stage:
    """The address space goes away, and the walk that zaps everything yields before the only entry of the root."""

    def setup() -> None:
        kvm = make_vm(design, (BEHIND_TOP_ENTRY,))
        populate(kvm)
        spawn(mmput, kvm.mm, name="exit")

    stage = Stage(setup)
    assert stage.until("exit", *YIELD, contended=True)
    stage.finish_all()
    return stage


def b07(design: Design) -> Stage:
    """A vCPU has looked up the page for its fault when all roots are invalidated and zapped."""

    def setup() -> None:
        kvm = make_vm(design, (8,))
        kvm_mmu_reload(kvm.vcpus[0])
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(8), name="vcpu0")
        spawn(set_nx_huge_pages, name="admin")

    stage = Stage(setup)
    assert stage.until("vcpu0", "_follow_pte", "get_user_page")
    assert stage.until("admin", "write_unlock", "kvm_mmu_zap_all_fast")
    for task in stage.execution.unfinished:
        if task.name.startswith("work:"):
            stage.finish(task.name)
    stage.finish("admin")
    stage.finish("vcpu0")
    stage.finish_all()
    return stage


@pytest.mark.parametrize("design", [V5_16, SERIES_V1, OFF_LIST], ids=lambda design: design.name)
def test_notifiers_that_do_not_see_invalid_roots_leave_pages_mapped(design: Design) -> None:
    assert b01(design).rules == {"I1"}
    assert b01_while_zapping(design).rules == {"I1"}


@pytest.mark.parametrize("design", [V5_13, V5_18, V6_12], ids=lambda design: design.name)
def test_notifiers_that_see_invalid_roots_unmap_what_is_in_them(design: Design) -> None:
    assert not b01(design).violations


@pytest.mark.parametrize("design", [SERIES_V1, OFF_LIST], ids=lambda design: design.name)
def test_a_root_that_is_zapped_off_the_list_is_hidden_from_notifiers(design: Design) -> None:
    stage = b03(design)
    assert stage.rules == {"I1"}
    assert any("is off the list of roots; vcpu0 zaps it" in line for line in stage.story)
    assert f"vcpu0 gives mmu_lock up before gfn {BEHIND_TOP_ENTRY:#x}" in stage.story


@pytest.mark.parametrize("design", [V5_13, V5_16, V5_18, V6_12], ids=lambda design: design.name)
def test_a_root_is_zapped_without_a_yield_or_on_the_list(design: Design) -> None:
    assert not b03(design).violations


def test_a_walk_without_references_is_left_with_a_freed_root() -> None:
    stage = b05(V5_13)
    assert stage.rules == {"use-after-free"}
    assert "KvmMmuPage" in stage.violations[0].message


@pytest.mark.parametrize("design", [V5_16, SERIES_V1, OFF_LIST, V5_18, V6_12], ids=lambda design: design.name)
def test_a_walk_with_a_reference_keeps_its_root(design: Design) -> None:
    assert not b05(design).violations


@pytest.mark.parametrize("design", [V5_13, SERIES_V1, OFF_LIST], ids=lambda design: design.name)
def test_a_walk_that_advances_after_a_restart_skips_an_entry(design: Design) -> None:
    assert b06(design).rules == {"I1"}


@pytest.mark.parametrize("design", [V5_16, V5_18, V6_12], ids=lambda design: design.name)
def test_a_walk_goes_on_where_it_yielded(design: Design) -> None:
    assert not b06(design).violations


@pytest.mark.parametrize(
    "design",
    [V5_13, *(d.without("stale-root-check") for d in (OFF_LIST, V5_18, V6_12))],
    ids=lambda design: design.name,
)
def test_a_fault_that_does_not_look_maps_in_a_root_that_was_zapped(design: Design) -> None:
    assert "I8" in b07(design).rules


@pytest.mark.parametrize("design", [V5_16, SERIES_V1, OFF_LIST, V5_18, V6_12], ids=lambda design: design.name)
def test_a_fault_that_finds_its_root_invalid_tries_again(design: Design) -> None:
    stage = b07(design)
    assert not stage.violations
    assert "the fault on gfn 0x8 is stale: tries again" in stage.story
