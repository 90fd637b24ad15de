"""What a first look at a trace tells of the machine, and of how VMs were made."""

from pathlib import Path

from interleaf.ftrace.options import Options, options_of
from interleaf.ftrace.parameters import Parameters
from interleaf.ftrace.reader import Trace
from interleaf.hw.platform import Paging

SLOT = "set_memory_region: (__kvm_set_memory_region+0x0/0x1 [kvm]) slot=0 flags={} gpa=0x0 size={} hva=0x400000"
CREATE, LOG, DELETE = SLOT.format(0, "0x400000"), SLOT.format(1, "0x400000"), SLOT.format(0, "0x0")
ENTRY = "kvm_entry: vcpu 0, rip 0x0"
TABLE = "kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 4 old_spte 0 new_spte {:x}"
NPT_TABLE, EPT_TABLE = TABLE.format(0x100001827), TABLE.format(0x100001907)
HUGE = "kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 2 old_spte 0 new_spte {:x}"
LEAF = "kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level {} old_spte {:x} new_spte {:x}"
ZAP_ALL = "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 0"


def look(path: Path, *lines: str) -> Options:
    trace = path / "trace"
    trace.write_text("".join(f"  main-1 [000] ..... 1.{n:06d}: {line}\n" for n, line in enumerate(lines)))
    return options_of(Trace(trace, strict=True), Parameters())


def test_the_machine(tmp_path: Path) -> None:
    assert look(tmp_path, CREATE, NPT_TABLE).platform.paging is Paging.NPT
    page = "kvm_mmu_get_page: sp gen 0 gfn 0 l5 8-byte q0 direct wux nxe !ad root 0 sync new"
    found = look(tmp_path, CREATE, page, EPT_TABLE).platform
    assert (found.paging, found.levels, found.ad_bits, found.pml) == (Paging.EPT, 5, False, False)


def test_whether_the_processor_logs_dirty_pages(tmp_path: Path) -> None:
    protected = LEAF.format(1, 0x600000001000B77, 0x600000001000B75)
    cleared = LEAF.format(1, 0x600000001000B77, 0x600000001000977)
    assert not look(tmp_path, CREATE, EPT_TABLE, LOG, protected).platform.pml
    assert look(tmp_path, CREATE, EPT_TABLE, LOG, cleared).platform.pml
    assert not look(tmp_path, CREATE, EPT_TABLE, cleared).platform.pml


def test_how_huge_pages_are_split(tmp_path: Path) -> None:
    split = "kvm_mmu_split_huge_page: gfn 0 spte 1000ee7 level 2 errno 0"
    protected = LEAF.format(2, 0x1000EE7, 0x1000EE5)
    assert look(tmp_path, CREATE, NPT_TABLE, LOG, split).vms[0].eager_page_split
    assert not look(tmp_path, CREATE, NPT_TABLE, LOG, protected).vms[0].eager_page_split
    assert look(tmp_path, CREATE, NPT_TABLE, protected).vms[0].eager_page_split


def test_what_is_zapped_for_a_slot(tmp_path: Path) -> None:
    assert look(tmp_path, CREATE, NPT_TABLE, DELETE, ZAP_ALL, ENTRY).vms[0].slot_zap_all
    assert not look(tmp_path, CREATE, NPT_TABLE, DELETE, ENTRY).vms[0].slot_zap_all


def test_whether_huge_pages_are_executable(tmp_path: Path) -> None:
    yes, no = HUGE.format(0x1000EE7), HUGE.format(1 << 63 | 0x1000EE7)
    assert look(tmp_path, CREATE, NPT_TABLE, yes, ZAP_ALL, no, ZAP_ALL).nx_huge_pages == (False, True, True)
    requested = "kvm_mmu_spte_requested: gfn 1 pfn 1001 level 2"
    small = "kvm_mmu_set_spte: gfn 1 spte 1001e67 (rwxu) level 1 at 100003008"
    found = look(tmp_path, CREATE, NPT_TABLE, requested, small)
    assert found.nx_huge_pages == (True,)
    assert found.disallowed == {(2, 0)}


def test_vms_follow_each_other(tmp_path: Path) -> None:
    end = "zap_all: (kvm_mmu_zap_all+0x0/0x1 [kvm]) kvm=0x1"
    push = "kvm_dirty_ring_push: ring 0: dirty 0x1 reset 0x0 slot 0 offset 0x0 (used 1)"
    assert [vm.dirty_ring_size > 0 for vm in look(tmp_path, CREATE, end, DELETE, CREATE, push).vms] == [False, True]


def test_only_what_vms_do_that_have_memory_counts(tmp_path: Path) -> None:
    made, ring = "tracing_mark_write: GT w VM_CREATE ncpu=1", "tracing_mark_write: GT w ENABLE_DIRTY_RING"
    found = look(tmp_path, ZAP_ALL, ring, made, made, ZAP_ALL, CREATE, ZAP_ALL)
    assert [vm.dirty_ring_size for vm in found.vms] == [0]
    assert len(found.nx_huge_pages) == 2
