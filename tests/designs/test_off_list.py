"""What the patch says about itself, rule by rule: dropping one breaks what the patch says it would break."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from interleaf.designs import OFF_LIST
from interleaf.explore.outcome import Outcome
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmMemorySlot
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot
from interleaf.kvm.mmu import kvm_mmu_reload, kvm_mmu_reset_context
from interleaf.kvm.tdp.wrprot import kvm_tdp_mmu_wrprot_slot
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.linux.rwlock import read_lock, read_unlock
from interleaf.mm.mm import mmap
from interleaf.runtime import spawn
from interleaf.scenarios import of_claims
from tests.kvm.tdp.stage import make_vm, populate

BEHIND_TOP_ENTRY = 1 << 27


def search(scenario: Callable[[Design], None], design: Design) -> Outcome:
    """All interleavings of a scenario."""
    engine = StateSearch(functools.partial(scenario, design))
    outcome = engine.run()
    engine.close()
    assert outcome.exhaustive, outcome.stopped
    return outcome


def rules_violated(scenario: Callable[[Design], None], design: Design) -> set[str]:
    """What any interleaving of a scenario violates."""
    return {found.violation.rule for found in search(scenario, design).found}


def _protect(kvm: Kvm, slot: KvmMemorySlot) -> None:
    read_lock(kvm.mmu_lock)
    kvm_tdp_mmu_wrprot_slot(kvm, slot)
    read_unlock(kvm.mmu_lock)


def _vm(design: Design, *gfns: int) -> tuple[Kvm, KvmMemorySlot]:
    kvm = make_vm(design, gfns)
    populate(kvm)
    assert kvm.memslots is not None
    return kvm, kvm.memslots.slots[0]


def two_walkers_and_a_put(design: Design) -> None:
    """Two walks under mmu_lock held for read, one of which puts the last reference on a root."""
    kvm, slot = _vm(design, 8, 9)
    spawn(_protect, kvm, slot, name="walker")
    spawn(_protect, kvm, slot, name="walker2")
    spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")


def invalidate_and_put(design: Design) -> None:
    kvm, _ = _vm(design, 8)
    spawn(set_nx_huge_pages, name="admin")
    spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")


def invalidate_and_walk(design: Design) -> None:
    kvm, slot = _vm(design, 8, 9)
    spawn(set_nx_huge_pages, name="admin")
    spawn(_protect, kvm, slot, name="walker")


def create_and_walk(design: Design) -> None:
    """Two vCPUs get their first root, which they share, while a walk is under way."""
    kvm = make_vm(design, (8,), vcpus=2)
    assert kvm.memslots is not None
    for index, vcpu in enumerate(kvm.vcpus):
        spawn(kvm_mmu_reload, vcpu, name=f"vcpu{index}")
    spawn(_protect, kvm, kvm.memslots.slots[0], name="walker")


def invalidate_twice(design: Design) -> None:
    kvm, _ = _vm(design, 8)
    mmap(kvm.mm, 16, 1)
    kvm_create_memslot(kvm, 1, 16, 1, 16)
    spawn(set_nx_huge_pages, name="admin")
    spawn(kvm_delete_memslot, kvm, 1, name="memslot")


def invalidate_and_put_a_large_root(design: Design) -> None:
    kvm, _ = _vm(design, BEHIND_TOP_ENTRY)
    spawn(set_nx_huge_pages, name="admin")
    spawn(kvm_mmu_reset_context, kvm.vcpus[0], name="vcpu0")


@pytest.mark.parametrize(
    ("dropped", "scenario", "breaks"),
    [
        ("rcu-list-del", two_walkers_and_a_put, {"list-corruption", "data-race"}),
        ("next-root-rcu", two_walkers_and_a_put, {"use-after-free"}),
        ("safe-invalidated-walk", invalidate_and_put, {"use-after-free"}),
        (
            "invalidate-takes-reference",
            invalidate_and_put,
            {"vcpu-tears-down-root", "put-invalid-root-flush", "use-after-free"},
        ),
        ("zap-all-takes-slots-lock", invalidate_twice, {"I7"}),
        (
            "invalidate-under-write-lock",
            invalidate_and_walk,
            {"I5", "data-race", "get-root-invalid", "list-corruption", "walk-misses-no-valid-root"},
        ),
    ],
)
def test_what_the_patch_says_is_needed_is_needed(
    dropped: str, scenario: Callable[[Design], None], breaks: set[str]
) -> None:
    assert rules_violated(scenario, OFF_LIST) == set()
    assert rules_violated(scenario, OFF_LIST.without(dropped)) == breaks


def test_a_plain_list_add_is_enough_while_roots_are_made_under_the_write_lock() -> None:
    assert rules_violated(create_and_walk, OFF_LIST) == set()
    assert rules_violated(create_and_walk, OFF_LIST.without("plain-list-add")) == set()
    shared = OFF_LIST.adding("roots-under-read-lock")
    assert {"list-corruption", "data-race", "I6"} & rules_violated(create_and_walk, shared)


def test_a_walk_that_starts_again_is_looked_at() -> None:
    outcome = search(of_claims()["invalidate-vs-walk-and-create"].setup, OFF_LIST)
    assert not outcome.found
    for known in ("walk-restart-sees-only-new-roots", "walk-misses-no-valid-root", "get-root-invalid", "I5"):
        assert outcome.exercised[known]


def test_the_walk_that_advances_after_a_restart_leaves_something_under_an_invalid_root() -> None:
    found = rules_violated(invalidate_and_put_a_large_root, OFF_LIST)
    assert found == {"I7", "put-invalid-root-flush", "vcpu-tears-down-root"}


def test_a_root_that_is_being_put_is_not_waited_for_by_the_invalidation() -> None:
    fixed = OFF_LIST.adding("iter-yielded")
    assert rules_violated(invalidate_and_put_a_large_root, fixed) == {"I7"}
    assert rules_violated(invalidate_and_put_a_large_root, fixed.without("skip-zero-refcount-roots")) == {"I7"}
