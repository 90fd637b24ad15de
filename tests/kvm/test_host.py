"""Every interleaving of what the host does to a page with what a vCPU does to it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from interleaf.designs import V6_1, V6_12, V6_18
from interleaf.explore.outcome import Outcome
from interleaf.explore.states import StateSearch
from interleaf.hw.platform import EPT, EPT_NO_AD, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.mm.fork import fork
from interleaf.mm.ksm import try_to_merge_two_pages
from interleaf.mm.migrate import migrate_page
from interleaf.mm.mm import Mm, Prot
from interleaf.mm.mprotect import mprotect
from interleaf.mm.mremap import mremap
from interleaf.mm.vmscan import madvise_pageout, page_idle_clear_pte_refs, shrink_list
from interleaf.runtime import spawn
from tests.kvm.tdp.test_age import vm

Action = Callable[[Mm], object]


def merge(mm: Mm) -> None:
    try_to_merge_two_pages(mm, 0, 1)


def migrate(mm: Mm) -> None:
    migrate_page(mm, 0)


def move(mm: Mm) -> None:
    mremap(mm, 0, 1, 0x40)


def protect(mm: Mm) -> None:
    mprotect(mm, 0, 1, Prot.READ)


def pageout(mm: Mm) -> None:
    madvise_pageout(mm, 0, 1)


def age_and_shrink(mm: Mm) -> None:
    page_idle_clear_pte_refs(mm, 0)
    shrink_list(mm, 0, 1)


def share(mm: Mm) -> None:
    fork(mm)


def search(design: Design, platform: Platform, action: Action) -> Outcome:
    """A vCPU writes to a page that comes from swap and is mapped clean, while the host does something to it."""
    searched = StateSearch(functools.partial(_setup, design, platform, action))
    try:
        return searched.run()
    finally:
        searched.close()


def _setup(design: Design, platform: Platform, action: Action) -> None:
    kvm = vm(design, platform, pages=2)
    madvise_pageout(kvm.mm, 0, 1)
    kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0), read(1))
    spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
    spawn(action, kvm.mm, name="host")


@pytest.mark.parametrize("platform", [EPT, EPT_NO_AD], ids=lambda platform: platform.name)
@pytest.mark.parametrize("design", [V6_1, V6_12, V6_18], ids=lambda design: design.name)
@pytest.mark.parametrize("action", [merge, migrate, move, protect, pageout, age_and_shrink, share])
def test_nothing_is_lost_and_nothing_stale_is_used(action: Action, design: Design, platform: Platform) -> None:
    outcome = search(design, platform, action)
    assert outcome.exhaustive, outcome.stopped
    assert not outcome.found


@pytest.mark.parametrize("action", [migrate, pageout])
def test_a_fault_that_does_not_ask_again_maps_what_is_gone(action: Action) -> None:
    def setup() -> None:
        kvm = vm(V6_12.without("notifier-retry"), EPT, pages=2)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")
        spawn(action, kvm.mm, name="host")

    searched = StateSearch(setup)
    outcome = searched.run()
    searched.close()
    assert {found.violation.rule for found in outcome.found} == {"I1"}


@pytest.mark.parametrize("design", [V6_1, V6_12, V6_18], ids=lambda design: design.name)
def test_aging_that_forgets_what_was_written_loses_it(design: Design) -> None:
    outcome = search(design.without("age-keeps-dirty"), EPT_NO_AD, age_and_shrink)
    assert {found.violation.rule for found in outcome.found} == {"I11"}
