"""KVM_RUN: the guest's accesses, and what makes it leave."""

from __future__ import annotations

import errno

from interleaf.designs import V6_12
from interleaf.kvm.kvm_host import Kvm, KvmRequest, KvmVcpu
from interleaf.kvm.memslots import kvm_create_memslot, kvm_delete_memslot
from interleaf.kvm.mmu import kvm_mmu_reset_context
from interleaf.kvm.request import kvm_make_all_cpus_request
from interleaf.kvm.tdp import tdp_mmu
from interleaf.kvm.vcpu import execute, kvm_arch_vcpu_ioctl_run, read, write
from interleaf.linux.rwlock import write_lock, write_unlock
from interleaf.mm.unmap import madvise_dontneed, munmap
from interleaf.runtime import spawn
from tests.kvm.mapped import mapped, only_spte
from tests.kvm.tdp.stage import Stage, make_vm, populate, run_alone


def test_the_guest_makes_its_accesses_in_order() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, (0, 1))
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), read(1), execute(0), name="vcpu0")

    stage = Stage(setup)
    stage.finish("vcpu0")
    accesses = [line for line in stage.story if " gfn " in line and line.startswith("vcpu0 vCPU0")]
    assert accesses == [
        "vcpu0 vCPU0 writes gfn 0x0: EPT violation",
        "vcpu0 vCPU0 writes gfn 0x0",
        "vcpu0 vCPU0 reads gfn 0x1: it is not in the TLB",
        "vcpu0 vCPU0 reads gfn 0x1: EPT violation",
        "vcpu0 vCPU0 reads gfn 0x1",
        "vcpu0 vCPU0 executes gfn 0x0",
    ]
    assert not stage.violations


def test_a_write_makes_the_spte_dirty() -> None:
    def program() -> bool:
        kvm = make_vm(V6_12, (0,))
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        table, index = only_spte(kvm, 0)
        return bool(table.spt[index] >> 9 & 1)

    assert run_alone(program)[0]


def test_mmio_goes_to_userspace_and_the_guest_goes_on() -> None:
    def program() -> tuple[int, tuple[int, ...]]:
        kvm = make_vm(V6_12, (0, 1))
        kvm_delete_memslot(kvm, 0)
        kvm_create_memslot(kvm, 0, 1, 1, 1)
        return kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0), write(1)), mapped(kvm)

    assert run_alone(program)[0] == (0, (1,))


def test_memory_that_is_not_there_ends_kvm_run() -> None:
    def program() -> int:
        kvm = make_vm(V6_12, (0, 1))
        munmap(kvm.mm, 0, 1)
        return kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0), write(1))

    assert run_alone(program)[0] == -errno.EFAULT


def test_a_reset_vcpu_puts_its_root_and_gets_one_again() -> None:
    def program() -> tuple[bool, tuple[int, ...]]:
        kvm = make_vm(V6_12, (0,))
        [vcpu] = kvm.vcpus
        populate(kvm)
        kvm_mmu_reset_context(vcpu)
        empty = vcpu.mmu_root is None
        kvm_arch_vcpu_ioctl_run(vcpu, read(0))
        return empty, mapped(kvm)

    assert run_alone(program)[0] == (True, (0,))


def test_an_invalidated_root_is_replaced_before_the_next_access() -> None:
    def program() -> tuple[bool, tuple[int, ...], int]:
        kvm = make_vm(V6_12, (0,))
        kvm_create_memslot(kvm, 1, 8, 1, 0x80)
        [vcpu] = kvm.vcpus
        populate(kvm)
        old = vcpu.mmu_root
        kvm_delete_memslot(kvm, 1)
        assert vcpu.mmu_root is old
        kvm_arch_vcpu_ioctl_run(vcpu, read(0))
        return vcpu.mmu_root is old, mapped(kvm), vcpu.requests

    assert run_alone(program)[0] == (False, (0,), 0)


def test_running_on_an_invalid_root_violates_i9() -> None:
    def invalidate_without_request(kvm: Kvm) -> None:
        write_lock(kvm.mmu_lock)
        tdp_mmu.kvm_tdp_mmu_invalidate_all_roots(kvm)
        write_unlock(kvm.mmu_lock)
        tdp_mmu.kvm_tdp_mmu_zap_invalidated_roots(kvm)

    def setup() -> None:
        kvm = make_vm(V6_12, (0,))
        populate(kvm)
        invalidate_without_request(kvm)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")

    stage = Stage(setup)
    stage.finish("vcpu0")
    [violation] = stage.violations
    assert violation.rule == "I9"
    assert "runs guest code on KvmMmuPage0, which is invalid" in violation.message


def test_a_page_that_is_replaced_is_found_again() -> None:
    def program() -> tuple[bool, bool]:
        kvm = make_vm(V6_12, (0,))
        populate(kvm)
        old = kvm.mm.pte[0].page
        madvise_dontneed(kvm.mm, 0, 1)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], read(0))
        return kvm.mm.pte[0].page is old, mapped(kvm) == (0,)

    assert run_alone(program)[0] == (False, True)


def test_a_vcpu_that_retries_comes_back_to_the_same_state() -> None:
    def setup() -> None:
        kvm = make_vm(V6_12, (0,))
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0])
        spawn(kvm_delete_memslot, kvm, 0, name="memslot")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")

    stage = Stage(setup)
    stage.until("memslot", "rcu_assign_pointer", "kvm_swap_active_memslots")
    [vcpu] = [task for task in stage.execution.unfinished if task.name == "vcpu0"]
    states = []
    for _round in range(3):
        stage.until("vcpu0", "_guest_access", "_run_guest")
        states.append((stage.execution.carriers[vcpu.index].state, stage.execution.memory.zobrist))
    assert states[1] == states[2]
    stage.finish("memslot")
    stage.finish("vcpu0")
    assert not stage.violations


def test_a_request_makes_a_running_guest_leave() -> None:
    def request(vcpu: KvmVcpu) -> None:
        kvm_make_all_cpus_request(vcpu.kvm, KvmRequest.MMU_RELOAD)

    def setup() -> None:
        kvm = make_vm(V6_12, (0,))
        populate(kvm)
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")
        spawn(request, kvm.vcpus[0], name="requester")

    stage = Stage(setup)
    stage.until("vcpu0", "srcu_read_unlock", "kvm_arch_vcpu_ioctl_run")
    stage.finish("requester")
    stage.finish("vcpu0")
    assert "vcpu0 vCPU0 leaves the guest: a request is pending" in stage.story
    assert any("loads" in line for line in stage.story)
    assert not stage.violations
