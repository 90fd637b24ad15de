"""Write-protection: of a slot for a while, of one gfn for good, and the flush that goes with it."""

from __future__ import annotations

import pytest

from interleaf.designs import V5_16, V6_12
from interleaf.hw.page_table import PG_LEVEL_2M, PG_LEVEL_4K
from interleaf.hw.platform import EPT, EPT_NO_AD, NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import Kvm
from interleaf.kvm.memslots import kvm_memslots
from interleaf.kvm.page_track import kvm_write_track_add_gfn, kvm_write_track_remove_gfn
from interleaf.kvm.tdp.spte import is_mmu_writable_spte, is_writable_pte
from interleaf.kvm.tdp.wrprot import kvm_tdp_mmu_write_protect_gfn, kvm_tdp_mmu_wrprot_slot
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, write
from interleaf.kvm.zap import set_nx_huge_pages
from interleaf.linux.rwlock import read_lock, read_unlock, write_lock, write_unlock
from interleaf.runtime import routine, spawn
from interleaf.scenarios.stage import make_vm, populate
from tests.kvm.huge import entry

from .stage import Stage, run_alone
from .test_split import huge_vm, split


@routine
def wrprot_slot(kvm: Kvm, min_level: int) -> bool:
    slot = kvm_memslots(kvm).slots[0]
    read_lock(kvm.mmu_lock)
    changed = kvm_tdp_mmu_wrprot_slot(kvm, slot, min_level)
    read_unlock(kvm.mmu_lock)
    return changed


@routine
def protect_gfn(kvm: Kvm, gfn: int) -> bool:
    slot = kvm_memslots(kvm).slots[0]
    write_lock(kvm.mmu_lock)
    changed = kvm_tdp_mmu_write_protect_gfn(kvm, slot, gfn, PG_LEVEL_4K)
    write_unlock(kvm.mmu_lock)
    return changed


def _vm(design: Design, platform: Platform = EPT) -> Kvm:
    kvm = make_vm(design, pages=2, platform=platform)
    populate(kvm)
    return kvm


@pytest.mark.parametrize("platform", [EPT, EPT_NO_AD, NPT], ids=lambda platform: platform.name)
def test_dirty_logging_leaves_entries_mmu_writable(platform: Platform) -> None:
    def program() -> tuple[bool, bool, bool, bool]:
        kvm = _vm(V6_12, platform)
        changed = wrprot_slot(kvm, PG_LEVEL_4K)
        spte = entry(kvm, 0, PG_LEVEL_4K)
        return changed, is_writable_pte(spte), is_mmu_writable_spte(kvm.masks, spte), wrprot_slot(kvm, PG_LEVEL_4K)

    assert run_alone(program)[0] == (True, False, True, False)


def test_huge_pages_alone_may_be_protected() -> None:
    def program() -> tuple[bool, bool, bool]:
        kvm = huge_vm(V6_12)
        huge = wrprot_slot(kvm, PG_LEVEL_2M)
        writable = is_writable_pte(entry(kvm, 0, PG_LEVEL_2M))
        split(kvm)
        return huge, writable, wrprot_slot(kvm, PG_LEVEL_2M)

    assert run_alone(program)[0] == (True, False, False)


@pytest.mark.parametrize("platform", [EPT, EPT_NO_AD, NPT], ids=lambda platform: platform.name)
def test_one_gfn_is_protected_for_good(platform: Platform) -> None:
    def program() -> tuple[bool, ...]:
        kvm = _vm(V6_12, platform)
        changed = protect_gfn(kvm, 0)
        spte, other = entry(kvm, 0, PG_LEVEL_4K), entry(kvm, 1, PG_LEVEL_4K)
        masks = kvm.masks
        return changed, is_writable_pte(spte), is_mmu_writable_spte(masks, spte), is_writable_pte(other)

    assert run_alone(program)[0] == (True, False, False, True)


@pytest.mark.parametrize(
    ("design", "expected"), [(V6_12, True), (V6_12.without("write-protect-mmu-writable"), False), (V5_16, False)]
)
def test_an_entry_without_w_is_protected_and_flushed_because_it_is_mmu_writable(design: Design, expected: bool) -> None:
    def program() -> tuple[bool, bool]:
        kvm = _vm(design)
        wrprot_slot(kvm, PG_LEVEL_4K)
        changed = protect_gfn(kvm, 0)
        return changed, is_mmu_writable_spte(kvm.masks, entry(kvm, 0, PG_LEVEL_4K))

    assert run_alone(program)[0] == (expected, not expected)


@pytest.mark.parametrize(
    ("design", "rules"),
    [(V6_12, set()), (V6_12.without("write-protect-mmu-writable"), {"write-tracking"}), (V5_16, {"write-tracking"})],
)
def test_a_write_through_an_old_translation_is_not_seen(design: Design, rules: set[str]) -> None:
    """B32: dirty logging has taken W, and has yet to flush, when writes to the page begin to be tracked."""

    def setup() -> None:
        kvm = _vm(design)
        spawn(wrprot_slot, kvm, PG_LEVEL_4K, name="log")
        spawn(kvm_write_track_add_gfn, kvm, 0, name="track")
        spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), name="vcpu0")

    stage = Stage(setup)
    stage.finish("log")
    stage.finish("track")
    stage.until("vcpu0", "_guest_access", "_run_guest")
    assert stage.rules == rules


def test_tracking_ends_when_the_last_one_goes() -> None:
    def program() -> tuple[int, int, int]:
        kvm = _vm(V6_12)
        slot = kvm_memslots(kvm).slots[0]
        kvm_write_track_add_gfn(kvm, 0)
        kvm_write_track_add_gfn(kvm, 0)
        kvm_write_track_remove_gfn(kvm, 0)
        one = slot.gfn_write_track[0]
        kvm_write_track_remove_gfn(kvm, 0)
        return one, slot.gfn_write_track[0], slot.arch.disallow_lpage[PG_LEVEL_2M, 0]

    assert run_alone(program)[0] == (1, 0, 0)


@pytest.mark.parametrize(("design", "touched"), [(V6_12, False), (V6_12.without("write-protect-valid-roots"), True)])
def test_invalid_roots_are_left_alone(design: Design, touched: bool) -> None:
    def setup() -> None:
        kvm = _vm(design)
        spawn(set_nx_huge_pages, name="admin")
        spawn(protect_gfn, kvm, 0, name="track")

    stage = Stage(setup)
    assert stage.until("admin", "write_unlock", "kvm_mmu_zap_all_fast")
    stage.finish("track")
    assert any(line.startswith("track KvmMmuPage3: SPTE of gfn 0x0, level 1") for line in stage.story) is touched
    stage.finish_all()
    assert not stage.violations
