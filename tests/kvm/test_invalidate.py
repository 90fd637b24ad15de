"""What a page fault that has taken its snapshot finds afterwards."""

from __future__ import annotations

from interleaf.designs import V6_12
from interleaf.kvm.invalidate import (
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
    kvm_mmu_invalidate_range_add,
    mmu_invalidate_retry_gfn,
)
from interleaf.kvm.kvm_host import Kvm
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.runtime import spawn
from tests.kvm.tdp.stage import Stage, make_vm


def _run(program: object) -> Stage:
    def setup() -> None:
        spawn(_locked, make_vm(V6_12, (0, 1, 2)), program, name="test")

    stage = Stage(setup)
    stage.finish_all()
    return stage


def _locked(kvm: Kvm, program: object) -> None:
    assert callable(program)
    write_lock(kvm.mmu_lock)
    program(kvm)
    write_unlock(kvm.mmu_lock)


def _in_progress(kvm: Kvm) -> None:
    seq = kvm.mmu_invalidate_seq
    kvm_mmu_invalidate_begin(kvm)
    kvm_mmu_invalidate_range_add(kvm, 1, 2)
    assert mmu_invalidate_retry_gfn(kvm, seq, 1)
    assert not mmu_invalidate_retry_gfn(kvm, seq, 0)
    assert not mmu_invalidate_retry_gfn(kvm, seq, 2)


def _over(kvm: Kvm) -> None:
    seq = kvm.mmu_invalidate_seq
    kvm_mmu_invalidate_begin(kvm)
    kvm_mmu_invalidate_range_add(kvm, 1, 2)
    kvm_mmu_invalidate_end(kvm)
    assert mmu_invalidate_retry_gfn(kvm, seq, 1)
    assert mmu_invalidate_retry_gfn(kvm, seq, 0)  # one sequence for the whole VM
    assert not mmu_invalidate_retry_gfn(kvm, kvm.mmu_invalidate_seq, 1)


def _two_at_once(kvm: Kvm) -> None:
    seq = kvm.mmu_invalidate_seq
    kvm_mmu_invalidate_begin(kvm)
    kvm_mmu_invalidate_range_add(kvm, 0, 1)
    kvm_mmu_invalidate_begin(kvm)
    kvm_mmu_invalidate_range_add(kvm, 2, 3)
    assert all(mmu_invalidate_retry_gfn(kvm, seq, gfn) for gfn in (0, 1, 2))


def _range_starts_over(kvm: Kvm) -> None:
    kvm_mmu_invalidate_begin(kvm)
    kvm_mmu_invalidate_range_add(kvm, 0, 3)
    kvm_mmu_invalidate_end(kvm)
    kvm_mmu_invalidate_begin(kvm)
    kvm_mmu_invalidate_range_add(kvm, 1, 2)
    assert not mmu_invalidate_retry_gfn(kvm, kvm.mmu_invalidate_seq, 0)


def test_a_fault_in_the_range_retries_while_the_invalidation_is_in_progress() -> None:
    assert not _run(_in_progress).violations


def test_every_older_fault_retries_afterwards() -> None:
    assert not _run(_over).violations


def test_two_invalidations_cover_what_is_between_them() -> None:
    assert not _run(_two_at_once).violations


def test_the_next_invalidation_has_a_range_of_its_own() -> None:
    assert not _run(_range_starts_over).violations


def test_an_end_without_a_beginning_is_a_bug() -> None:
    assert _run(kvm_mmu_invalidate_end).rules == {"BUG"}


def test_the_lock_must_be_held() -> None:
    def setup() -> None:
        spawn(kvm_mmu_invalidate_begin, make_vm(V6_12, (0,)), name="test")

    stage = Stage(setup)
    stage.finish_all()
    assert stage.rules == {"lockdep"}
