"""Memslots: creation, deletion in two steps, and what must not happen in between."""

from __future__ import annotations

import pytest

from interleaf.designs import V6_1, V6_12
from interleaf.hw.platform import EPT
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import (
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS,
    KVM_MEMSLOT_INVALID,
    Kvm,
    KvmMemslots,
    KvmParams,
)
from interleaf.kvm.memslots import (
    gfn_to_memslot,
    kvm_create_memslot,
    kvm_delete_memslot,
    kvm_memslots,
    kvm_move_memslot,
)
from interleaf.kvm.vm import kvm_create_vm, kvm_vm_ioctl_create_vcpu
from interleaf.linux.srcu import srcu_dereference, srcu_read_lock, srcu_read_unlock
from interleaf.mm.mm import mm_alloc, mmap
from interleaf.mm.unmap import munmap
from interleaf.runtime import ModelError, Value, spawn
from tests.kvm.mapped import mapped
from tests.kvm.tdp.stage import Stage, make_vm, populate, run_alone


def _lookups() -> Value:
    kvm = make_vm(V6_12, (4, 5))
    kvm_create_memslot(kvm, 1, 8, 2, 0x80)
    kvm_create_memslot(kvm, 2, 8, 1, 0x90, 1)
    slots = kvm_memslots(kvm)
    found = [gfn_to_memslot(slots, gfn, 0) for gfn in (3, 4, 5, 6, 8, 9)]
    other = gfn_to_memslot(slots, 8, 1)
    assert other is not None
    return tuple(slot.id if slot else None for slot in found), other.id


def test_a_gfn_belongs_to_the_slot_of_its_address_space() -> None:
    assert run_alone(_lookups)[0] == ((None, 0, 0, None, 1, 1), 2)


def test_the_generation_advances_by_two_with_each_swap() -> None:
    def program() -> tuple[int, ...]:
        kvm = make_vm(V6_12, (0,))
        before = kvm_memslots(kvm).generation
        kvm_create_memslot(kvm, 1, 8, 1, 0x80)
        created = kvm_memslots(kvm).generation
        kvm_delete_memslot(kvm, 1)
        return created - before, kvm_memslots(kvm).generation - created

    assert run_alone(program)[0] == (2, 4)


@pytest.mark.parametrize(("id", "base_gfn"), [(0, 100), (1, 4), (1, 3)])
def test_slots_must_not_conflict(id: int, base_gfn: int) -> None:
    def program() -> None:
        kvm = make_vm(V6_12, (4, 5))
        with pytest.raises(ModelError, match="conflicts with 0"):
            kvm_create_memslot(kvm, id, base_gfn, 2, 0x80)

    def setup() -> None:
        spawn(program, name="test")

    Stage(setup).finish_all()


def test_deleting_what_is_not_there_is_refused() -> None:
    def setup() -> None:
        spawn(kvm_delete_memslot, make_vm(V6_12, (0,)), 7, name="test")

    with pytest.raises(ModelError, match="no memslot 7"):
        Stage(setup).finish_all()


def _read_slots(kvm: Kvm) -> None:
    srcu = srcu_read_lock(kvm.srcu)
    slots = srcu_dereference(kvm, Kvm.memslots, kvm.srcu)
    assert slots is not None
    _ = slots.slots[0].flags
    srcu_read_unlock(kvm.srcu, srcu)


def _race() -> None:
    kvm = make_vm(V6_12, (0,))
    spawn(kvm_delete_memslot, kvm, 0, name="memslot")
    spawn(_read_slots, kvm, name="reader")
    spawn(munmap, kvm.mm, 0, 1, name="munmap")


def _current(stage: Stage) -> tuple[int, int]:
    """Generation, and flags of the only slot."""
    kvm = next(obj for obj in stage.execution.world.objects.values() if isinstance(obj, Kvm))
    slots = stage.peek(kvm, Kvm.memslots)
    [slot] = stage.peek(slots, KvmMemslots.slots)
    return stage.peek(slots, KvmMemslots.generation), stage.peek(slot, type(slot).flags)


def test_a_slot_is_first_marked_invalid() -> None:
    stage = Stage(_race)
    assert stage.until("memslot", "rcu_assign_pointer", "kvm_swap_active_memslots")
    generation, flags = _current(stage)
    assert flags & KVM_MEMSLOT_INVALID
    assert generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
    assert stage.until("memslot", "write_lock", "kvm_mmu_zap_all_fast")
    assert not _current(stage)[0] & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS


def test_the_old_slots_stay_until_their_readers_have_left() -> None:
    stage = Stage(_race)
    stage.until("reader", "srcu_dereference", "_read_slots")
    with pytest.raises(AssertionError, match="memslot waits in srcu_grace_period"):
        stage.finish("memslot")
    stage.finish("reader")
    stage.finish("memslot")
    assert not stage.violations


def test_slots_are_not_swapped_between_the_start_and_the_end_of_a_notifier() -> None:
    stage = Stage(_race)
    stage.until("munmap", "ptep_clear", "zap_page_range")
    with pytest.raises(AssertionError, match="memslot waits in schedule"):
        stage.finish("memslot")
    stage.finish("munmap")
    stage.finish("memslot")
    assert not stage.violations


def test_a_slot_moves_and_is_mapped_where_it_is_now() -> None:
    def program() -> tuple[Value, ...]:
        kvm = make_vm(V6_12, (4, 5, 6))
        kvm_create_memslot(kvm, 1, 100, 1, 0x80, 0, KVM_MEM_LOG_DIRTY_PAGES)
        slot, logged = kvm_memslots(kvm).slots
        arch, bitmap = slot.arch, logged.dirty_bitmap
        populate(kvm)
        before = mapped(kvm)
        kvm_move_memslot(kvm, 0, 5)
        kvm_move_memslot(kvm, 1, 50)
        moved, kept = kvm_memslots(kvm).slots
        after = mapped(kvm)
        found = tuple(gfn_to_memslot(kvm_memslots(kvm), gfn, 0) is moved for gfn in (4, 5, 7))
        return before, after, found, moved.arch is arch, kept.dirty_bitmap is bitmap, kept.base_gfn

    found, _ = run_alone(program)
    assert found == ((4, 5, 6), (), (False, True, True), False, True, 50)


def test_a_slot_must_not_move_onto_another() -> None:
    def program() -> None:
        kvm = make_vm(V6_12, (4, 5))
        kvm_create_memslot(kvm, 1, 8, 1, 0x80)
        with pytest.raises(ModelError, match="conflicts with 1"):
            kvm_move_memslot(kvm, 0, 7)

    Stage(lambda: spawn(program, name="test")).finish_all()


def test_a_slot_is_invalid_while_it_moves() -> None:
    def setup() -> None:
        spawn(kvm_move_memslot, make_vm(V6_12, (0,)), 0, 9, name="memslot")

    stage = Stage(setup)
    assert stage.until("memslot", "write_lock", "kvm_mmu_zap_all_fast")
    assert _current(stage)[1] & KVM_MEMSLOT_INVALID
    stage.finish("memslot")
    assert not _current(stage)[1] & KVM_MEMSLOT_INVALID
    assert not stage.violations


@pytest.mark.parametrize(
    ("design", "rules"),
    [(V6_12, set()), (V6_12.without("swap-waits-for-notifiers"), {"BUG"})],
    ids=lambda value: getattr(value, "name", ""),
)
def test_start_and_end_of_a_notifier_see_the_same_slots(design: Design, rules: set[str]) -> None:
    """B51: there is no slot when the notifier starts, and one when it ends."""

    def setup() -> None:
        kvm = make_vm(design, (0,))
        mmap(kvm.mm, 0x80, 1)
        spawn(kvm_create_memslot, kvm, 1, 8, 1, 0x80, name="memslot")
        spawn(munmap, kvm.mm, 0x80, 1, name="munmap")

    stage = Stage(setup)
    assert stage.until("munmap", "srcu_read_unlock", "kvm_handle_hva_range")
    if rules:
        stage.finish("memslot")
    else:
        with pytest.raises(AssertionError, match="memslot waits in schedule"):
            stage.finish("memslot")
    stage.finish_all()
    assert stage.rules == rules


@pytest.mark.parametrize(
    ("design", "zapped"), [(V6_12, True), (V6_12.without("mmio-generation-wrap"), False)], ids=["kept", "dropped"]
)
def test_everything_is_zapped_when_the_generation_of_mmio_sptes_wraps(design: Design, zapped: bool) -> None:
    def program() -> tuple[bool, bool]:
        kvm = make_vm(design, (0,))
        populate(kvm)
        kvm_memslots(kvm).generation = (1 << 19) - 4
        kvm_create_memslot(kvm, 1, 8, 1, 0x80)
        before = mapped(kvm) == ()
        kvm_create_memslot(kvm, 2, 9, 1, 0x81)
        return before, mapped(kvm) == ()

    assert run_alone(program)[0] == (False, zapped)


def _delete(design: Design) -> tuple[tuple[int, ...], int, int, int]:
    """What is mapped, how many translations are cached, the generation of the MMU, and the sequence number of
    invalidations after the deletion of one of two slots."""
    mm = mm_alloc(1)
    mmap(mm, 0, 2)
    kvm = kvm_create_vm(design, mm, (0, 1), EPT, KvmParams(slot_zap_all=False))
    kvm_vm_ioctl_create_vcpu(kvm)
    kvm_create_memslot(kvm, 0, 0, 1, 0)
    kvm_create_memslot(kvm, 1, 1, 1, 1)
    populate(kvm)
    kvm_delete_memslot(kvm, 1)
    return mapped(kvm), len(kvm.vcpus[0].cpu.tlb), kvm.mmu_valid_gen, kvm.mmu_invalidate_seq


def test_without_the_quirk_a_slot_is_zapped_alone() -> None:
    assert run_alone(_delete, V6_12)[0] == ((0,), 0, 0, 0)
    for design in (V6_12.without("slot-zap-quirk"), V6_1):
        left, _, generation, _ = run_alone(_delete, design)[0]
        assert (left, generation) == ((), 1)
