"""The host tells KVM of a PTE that it replaces (up to v6.9)."""

from __future__ import annotations

import pytest

from interleaf.designs import V5_16, V6_1, V6_12
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm, KvmGfnRange
from interleaf.kvm.mmu_notifier import mmu_notifier_of
from interleaf.kvm.tdp.change_pte import kvm_tdp_mmu_set_spte_gfn
from interleaf.kvm.tdp.spte import is_accessed_spte, is_mmu_writable_spte, is_writable_pte, spte_to_pfn
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.mm.mm import Pte, PteKind
from interleaf.mm.page import alloc_page
from interleaf.runtime import spawn
from tests.kvm.mapped import mapped
from tests.kvm.tdp.stage import Stage, run_alone
from tests.kvm.tdp.test_age import vm


def _set(kvm: Kvm, entry: Pte) -> bool:
    assert kvm.memslots is not None
    write_lock(kvm.mmu_lock)
    flush = kvm_tdp_mmu_set_spte_gfn(kvm, KvmGfnRange(kvm.memslots.slots[0], 0, 1, False), entry)
    write_unlock(kvm.mmu_lock)
    return flush


def _changed(design: Design, writable: bool) -> tuple[Stage, Kvm]:
    """A page is mapped although its PTE is replaced: the start of the invalidation has not done its work."""

    def setup() -> None:
        kvm = vm(design)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        entry = Pte(PteKind.PRESENT, kvm.mm.pte[0].vma, alloc_page(), writable)
        spawn(_set, kvm, entry, name="host")

    stage = Stage(setup)
    stage.finish_all()
    return stage, next(obj for obj in stage.execution.world.objects.values() if isinstance(obj, Kvm))


def test_the_spte_is_zapped_and_made_to_map_the_new_page() -> None:
    assert not _changed(V6_1, False)[0].violations


def test_changing_it_directly_violates_i3() -> None:
    [violation] = _changed(V6_1.without("zap-before-change"), False)[0].violations
    assert violation.rule == "I3"


def test_the_new_page_is_mapped_read_only_and_not_accessed() -> None:
    def program() -> tuple[bool, int]:
        kvm = vm(V6_1)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        page = alloc_page()
        flush = _set(kvm, Pte(PteKind.PRESENT, kvm.mm.pte[0].vma, page, False))
        [(table, index)] = page.spteps
        spte = table.spt[index]
        assert spte_to_pfn(spte) == page.pfn
        assert not is_writable_pte(spte)
        assert not is_mmu_writable_spte(kvm.masks, spte)
        assert not is_accessed_spte(kvm.masks, spte)
        return flush, len(kvm.vcpus[0].cpu.tlb)

    assert run_alone(program)[0] == (True, 1)


def test_a_page_that_may_be_written_is_left_to_the_next_fault() -> None:
    def program() -> tuple[int, ...]:
        kvm = vm(V6_1)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        assert _set(kvm, Pte(PteKind.PRESENT, kvm.mm.pte[0].vma, alloc_page(), True))
        assert not _set(kvm, Pte(PteKind.PRESENT, kvm.mm.pte[0].vma, alloc_page(), True))
        return mapped(kvm)

    assert run_alone(program)[0] == ()


@pytest.mark.parametrize("design", [V5_16, V6_1.without("change-pte-batches-flush")], ids=lambda design: design.name)
def test_without_batches_each_change_flushes(design: Design) -> None:
    def program() -> tuple[bool, int]:
        kvm = vm(design)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        flush = _set(kvm, Pte(PteKind.PRESENT, kvm.mm.pte[0].vma, alloc_page(), True))
        return flush, len(kvm.vcpus[0].cpu.tlb)

    assert run_alone(program)[0] == (False, 0)


@pytest.mark.parametrize(("design", "told"), [(V6_1, True), (V6_12, False), (V6_1.without("change-pte"), False)])
def test_only_old_kernels_take_part(design: Design, told: bool) -> None:
    def program() -> bool:
        return mmu_notifier_of(vm(design)).ops.change_pte is not None

    assert run_alone(program)[0] is told
