"""MMIO: SPTEs that remember that there is no memslot, for as long as that is so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.designs import V6_12
from interleaf.hw.page_table import PG_LEVEL_4K
from interleaf.hw.platform import EPT, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KvmMemslots, KvmParams
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot
from interleaf.kvm.mmio import handle_mmio_page_fault
from interleaf.kvm.mmu_internal import RetPf
from interleaf.kvm.tdp.spte import get_mmio_spte_generation, is_mmio_spte
from interleaf.kvm.trace import CheckMmioSpte, HandleMmioPageFault, MarkMmioSpte, PageFault
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.linux.srcu import srcu_read_lock, srcu_read_unlock
from interleaf.runtime import Execution, World, spawn, write_plain
from interleaf.scenarios.stage import DUMMY_GFN, DUMMY_HVA, make_vm
from tests.kvm.huge import entry
from tests.kvm.mapped import only_spte
from tests.kvm.tdp.stage import Stage, run_alone


def _traces(platform: Platform, program: Callable[[Platform], None]) -> list[object]:
    world, records = World(), list[object]()
    world.listener = lambda task, record: records.append(record)
    run = Execution(world, lambda: spawn(program, platform, name="vcpu0"))
    while run.unfinished:
        step = run.step(run.unfinished[0])
        assert step is not None
        assert not step.violations
    wanted = MarkMmioSpte | CheckMmioSpte | HandleMmioPageFault | PageFault
    return [type(record) for record in records if isinstance(record, wanted)]


def _accesses(platform: Platform) -> None:
    kvm = make_vm(V6_12, platform=platform, pages=2)
    kvm_delete_memslot(kvm, 0)
    [vcpu] = kvm.vcpus
    kvm_arch_vcpu_ioctl_run(vcpu, write(1))
    vcpu.mmio_cache = None
    kvm_arch_vcpu_ioctl_run(vcpu, read(1))
    kvm_create_memslot(kvm, 7, DUMMY_GFN, 1, DUMMY_HVA)
    kvm_arch_vcpu_ioctl_run(vcpu, read(1))


def test_an_mmio_spte_is_made_and_used_until_its_generation_is_over() -> None:
    assert _traces(NPT, _accesses) == [
        PageFault,
        MarkMmioSpte,
        PageFault,
        CheckMmioSpte,
        HandleMmioPageFault,
        PageFault,
        CheckMmioSpte,
        MarkMmioSpte,
    ]


def test_an_ept_misconfiguration_is_no_page_fault() -> None:
    assert _traces(EPT, _accesses).count(PageFault) == 1


@pytest.mark.parametrize(("caching", "made"), [(True, True), (False, False)])
def test_without_caching_no_spte_is_made(caching: bool, made: bool) -> None:
    def program() -> tuple[bool, int]:
        kvm = make_vm(V6_12, params=KvmParams(mmio_caching=caching))
        kvm_delete_memslot(kvm, 0)
        result = kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        return is_mmio_spte(kvm.masks, entry(kvm, 0, PG_LEVEL_4K)), result

    assert run_alone(program)[0] == (made, 0)


def test_the_spte_holds_the_generation_of_the_memslots() -> None:
    def program() -> tuple[int, int]:
        kvm = make_vm(V6_12)
        kvm_delete_memslot(kvm, 0)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        slots = kvm.memslots
        assert slots is not None
        return get_mmio_spte_generation(kvm.masks, entry(kvm, 0, PG_LEVEL_4K)), slots.generation

    generation, current = run_alone(program)[0]
    assert generation == current > 0


def test_a_new_memslot_takes_the_place_of_mmio() -> None:
    def program() -> tuple[int, ...]:
        kvm = make_vm(V6_12)
        kvm_delete_memslot(kvm, 0)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        kvm_create_memslot(kvm, 0, 0, 1, 0x100)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        return tuple(entry.gfn for entry in kvm.vcpus[0].cpu.tlb)

    assert run_alone(program)[0] == (0,)


def _during_update(design: Design) -> int:
    kvm = make_vm(design)
    [vcpu] = kvm.vcpus
    kvm_delete_memslot(kvm, 0)
    kvm_arch_vcpu_ioctl_run(vcpu, read(0))
    slots = kvm.memslots
    assert slots is not None
    write_plain(slots, KvmMemslots.generation, slots.generation | 1 << 63)
    srcu = srcu_read_lock(kvm.srcu)
    result = int(handle_mmio_page_fault(vcpu, 0))
    srcu_read_unlock(kvm.srcu, srcu)
    return result


@pytest.mark.parametrize(
    ("design", "result"),
    [(V6_12, RetPf.INVALID), (V6_12.without("mmio-refuses-update"), RetPf.EMULATE)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_mmio_spte_counts_while_the_memslots_are_replaced(design: Design, result: RetPf) -> None:
    assert run_alone(_during_update, design)[0] == result


def test_reserved_bits_that_are_not_mmio_are_reported() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, platform=NPT)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        table, index = only_spte(kvm, 0x100)
        table.spt[index] |= 1 << 50
        kvm.vcpus[0].cpu.tlb = frozenset()
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")

    stage = Stage(setup)
    stage.finish("vcpu0")
    assert stage.rules == {"WARN"}
    assert "KVM_RUN of vCPU0 fails: EINVAL" in stage.story
