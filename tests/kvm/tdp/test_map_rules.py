"""What a fault must not map, each with a schedule in which leaving its rule out shows."""

from __future__ import annotations

from interleaf.designs import V6_12
from interleaf.kvm.design import Design
from interleaf.kvm.dirty_log import kvm_vm_set_slot_flags
from interleaf.kvm.kvm_host import KVM_MEM_LOG_DIRTY_PAGES, KvmModule
from interleaf.kvm.tdp.entries import write_spte
from interleaf.kvm.vcpu import execute, kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.zap import kvm_zap_gfn_range
from interleaf.runtime import spawn, the
from interleaf.scenarios.stage import make_vm
from tests.kvm.mapped import only_spte

from .stage import Stage

LOG = KVM_MEM_LOG_DIRTY_PAGES


def _walk_cut_short(design: Design) -> Stage:
    """B38: the table into which a fault is about to go is zapped, because logging has ended, under its feet."""

    def setup() -> None:
        kvm = make_vm(design, pages=2, huge=True)
        the(KvmModule).nx_huge_pages = True
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        kvm_vm_set_slot_flags(kvm, 0, LOG)
        kvm_zap_gfn_range(kvm, 1, 2)
        spawn(kvm_vm_set_slot_flags, kvm, 0, 0, name="log")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], execute(1), name="vcpu0")

    stage = Stage(setup)
    assert stage.until("log", "synchronize_srcu", "kvm_swap_active_memslots")
    assert stage.until("vcpu0", "read_lock", "direct_page_fault")
    # the entries of levels 4, 3 and 2; each is read again before the walk goes down
    for _level in range(3):
        assert stage.until("vcpu0", "kvm_tdp_mmu_read_spte", "_seek")
    stage.finish("log")
    stage.finish("vcpu0")
    return stage


def test_a_walk_that_was_cut_short_maps_nothing() -> None:
    assert not _walk_cut_short(V6_12).rules
    assert "map-at-wrong-level" in _walk_cut_short(V6_12.without("map-at-goal-only")).rules


def test_the_guard_keeps_the_leaf_out_of_the_wrong_table() -> None:
    guarded = V6_12.without("map-at-goal-only")
    assert _walk_cut_short(guarded).rules == {"map-at-wrong-level"}
    lines = _walk_cut_short(guarded.without("map-level-guard")).story
    assert any("level 2" in line and "-> pfn" in line for line in lines if line.startswith("vcpu0"))
    assert not any("level 2" in line and "-> pfn" in line for line in _walk_cut_short(guarded).story)


def _frozen_leaf(design: Design) -> Stage:
    def setup() -> None:
        kvm = make_vm(design)
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], write(0))
        root = kvm.vcpus[0].mmu_root
        assert root is not None
        table, _index = only_spte(kvm, 0x100)
        write_spte(kvm, root, table, 0, 1, kvm.masks.frozen)
        kvm.vcpus[0].cpu.tlb = frozenset()
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(0), name="vcpu0")

    stage = Stage(setup)
    assert stage.until("vcpu0", "read_unlock", "direct_page_fault")
    return stage


def test_no_spte_is_made_for_a_frozen_entry() -> None:
    assert not _frozen_leaf(V6_12).rules
    assert _frozen_leaf(V6_12.without("frozen-leaf-check")).rules == {"frozen-spte-atomic"}


def _huge_page_replaces_table(design: Design) -> Stage:
    """A fault for data puts a huge page in the place of a table; another vCPU has that in its caches."""

    def setup() -> None:
        kvm = make_vm(design, pages=2, huge=True, vcpus=2)
        the(KvmModule).nx_huge_pages = True
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[0], execute(0))
        kvm_arch_vcpu_ioctl_run(kvm.vcpus[1], read(0))
        the(KvmModule).nx_huge_pages = False
        kvm.vcpus[0].cpu.tlb = frozenset()
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], read(1), name="vcpu0")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[1], read(1), name="vcpu1")

    stage = Stage(setup)
    stage.finish("vcpu0")
    for task in stage.execution.unfinished:
        if task.name.startswith("rcu:"):
            stage.finish(task.name)
    stage.finish("vcpu1")
    return stage


def test_a_table_that_a_huge_page_replaces_is_flushed() -> None:
    assert not _huge_page_replaces_table(V6_12).rules
    assert _huge_page_replaces_table(V6_12.without("replaced-table-flush")).rules == {"I2"}
