"""Each event as the kernels, and trace-cmd's plugin, print it."""

import pytest

from interleaf.ftrace import records
from interleaf.ftrace.texts import TEMPLATES, Unfit, compile_template, known_parsers

PARSERS = known_parsers()

NO_RIP = records.KvmPageFault(None, None, 0x1000, 6)

TEXTS = [
    (
        "kvm_tdp_mmu_spte_changed",
        "as id 1 gfn 10000 level 2 old_spte 8000000000000000 new_spte 65af827",
        records.KvmTdpMmuSpteChanged(1, 0x10000, 2, 1 << 63, 0x65AF827),
    ),
    (
        "kvm_mmu_spte_requested",
        "gfn 40000 pfn 8000000000000000 level 1",
        records.KvmMmuSpteRequested(0x40000, 1 << 63, 1),
    ),
    (
        "kvm_mmu_set_spte",
        "gfn 1 spte 136d0e67 (rwxu) level 1 at 6759008",
        records.KvmMmuSetSpte(1, 0x136D0E67, 1, 0x6759008, "rwxu"),
    ),
    ("kvm_mmu_set_spte", "gfn 1 spte 7 (r--) level 3 at 8", records.KvmMmuSetSpte(1, 7, 3, 8, "r--")),
    (
        "kvm_mmu_get_page",
        "sp gen 0 gfn 200 l1 8-byte q0 direct wux nxe ad root 0 sync\0 new",
        records.KvmMmuPage(0, 0x200, 1, 0, True, "wux", False, False, 0, False, True),
    ),
    (
        "kvm_mmu_get_page",
        "sp gen 1 gfn 0 l4 8-byte q0 --- invalid !nxe !ad root 3 unsync existing",
        records.KvmMmuPage(1, 0, 4, 0, False, "---", True, True, 3, True, False),
    ),
    (
        "kvm_mmu_get_page",
        "new sp gfn 200 1 q0 direct wux !pae nxe !wp root 0 sync\0",
        records.KvmMmuPage(None, 0x200, 1, 0, True, "wux", False, None, 0, False, True),
    ),
    (
        "kvm_mmu_prepare_zap_page",
        "sp gen 0 gfn 0 l2 8-byte q0 direct wux nxe ad root 0 sync",
        records.KvmMmuPage(0, 0, 2, 0, True, "wux", False, False, 0, False, None),
    ),
    ("kvm_mmu_zap_all_fast", "kvm-mmu-valid-gen 1 used_pages 1f", records.KvmMmuZapAllFast(1, 31)),
    (
        "fast_page_fault",
        "vcpu 0 gva 10001000 error_code P|W|U sptep 00000000053b1023 old 0x3310825 new 3310827 spurious 0 fixed 1",
        records.FastPageFault(0, 0x10001000, "P|W|U", 0x53B1023, 0x3310825, 0x3310827, False, True),
    ),
    (
        "fast_page_fault",
        "vcpu 0 gva 0 error_code  sptep 0 old 0 new 0 spurious 1 fixed 0",
        records.FastPageFault(0, 0, "", 0, 0, 0, True, False),
    ),
    (
        "kvm_mmu_split_huge_page",
        "gfn 10000 spte 6600ee7 level 2 errno -12",
        records.KvmMmuSplitHugePage(0x10000, 0x6600EE7, 2, -12),
    ),
    ("mark_mmio_spte", "sptep:000000009c146b66 gfn 1 access 7 gen 6", records.MarkMmioSpte(0x9C146B66, 1, 7, 6)),
    (
        "check_mmio_spte",
        "spte 8000010002037 kvm_gen 8 spte-gen 6 valid 0",
        records.CheckMmioSpte(0x8000010002037, 8, 6, False),
    ),
    ("handle_mmio_page_fault", "addr:0 gfn 10000 access 6", records.HandleMmioPageFault(0, 0x10000, 6)),
    ("kvm_mmu_pagetable_walk", "addr 1000 pferr 3 P|W", records.KvmMmuPagetableWalk(0x1000, 3)),
    ("kvm_mmu_paging_element", "pte 1027 level 4", records.KvmMmuPagingElement(0x1027, 4)),
    ("kvm_mmu_walker_error", "pferr 0 ", records.KvmMmuWalkerError(0)),
    ("kvm_mmu_set_dirty_bit", "gpa 1000", records.KvmMmuSetBit(0x1000)),
    ("kvm_mmu_set_accessed_bit", "gpa 1000", records.KvmMmuSetBit(0x1000)),
    (
        "kvm_mmu_sync_page",
        "sp gen 0 gfn 5 l1 8-byte q1 wux !nxe ad root 1 unsync",
        records.KvmMmuPage(0, 5, 1, 1, False, "wux", False, False, 1, True, None),
    ),
    (
        "kvm_mmu_unsync_page",
        "sp gen 0 gfn 5 l1 4-byte q1 -u- nxe ad root 1 sync",
        records.KvmMmuPage(0, 5, 1, 1, False, "-u-", False, False, 1, False, None),
    ),
    (
        "kvm_age_hva",
        "mmu notifier age hva: 0x007ffff7200000 -- 0x007ffff7201000",
        records.HvaRange(0x7FFFF7200000, 0x7FFFF7201000),
    ),
    ("kvm_set_spte_hva", "mmu notifier set pte hva: 0x0000000052b000", records.Hva(0x52B000)),
    ("kvm_async_pf_repeated_fault", "gva = 0x7f00, gfn = 0x1", records.KvmAsyncGetPage(0x7F00, 1)),
    ("kvm_async_pf_not_present", "token 0x1 gva 0x7f00", records.KvmAsyncPf(1, 0x7F00)),
    (
        "kvm_page_fault",
        "vcpu 0 rip 0x1000 address 0x0000000000001000 error_code 0x100000014",
        records.KvmPageFault(0, 0x1000, 0x1000, 0x100000014),
    ),
    ("kvm_page_fault", "address 1000 error_code 6", NO_RIP),
    ("kvm_entry", "vcpu 1, rip 0x1000[immediate exit]", records.KvmEntry(1, 0x1000)),
    ("kvm_entry", "vcpu 1", records.KvmEntry(1, None)),
    (
        "kvm_exit",
        "vcpu 0 reason npf rip 0x1000 info1 0x6 info2 0x1000 intr_info 0x00000000 error_code 0x00000000",
        records.KvmExit(0, "npf", 0x1000, 6, 0x1000),
    ),
    (
        "kvm_exit",
        "vcpu 0 reason INVALID_STATE FAILED_VMENTRY rip 0xfff0 info1 0x0 info2 0x0 intr_info 0x0 error_code 0x0",
        records.KvmExit(0, "INVALID_STATE", 0xFFF0, 0, 0),
    ),
    ("kvm_exit", "reason EXIT_NPF rip 0x1000 info 6 1000", records.KvmExit(None, "EXIT_NPF", 0x1000, 6, 0x1000)),
    ("kvm_userspace_exit", "reason KVM_EXIT_MMIO (6)", records.KvmUserspaceExit("KVM_EXIT_MMIO", 6)),
    ("kvm_mmio", "mmio write len 1 gpa 0x10000000 val 0x1", records.KvmMmio("write", 1, 0x10000000, 1)),
    (
        "kvm_unmap_hva_range",
        "mmu notifier unmap range: 0x007ffff76f3000 -- 0x007ffff76f7000",
        records.HvaRange(0x7FFFF76F3000, 0x7FFFF76F7000),
    ),
    ("kvm_test_age_hva", "mmu notifier test age hva: 0x00000000537000", records.Hva(0x537000)),
    ("kvm_age_page", "hva 7f00 gfn 1 level 1 YOUNG", records.KvmAgePage(0x7F00, 1, 1, True)),
    (
        "kvm_dirty_ring_push",
        "ring 0: dirty 0x1 reset 0x0 slot 1 offset 0x10 (used 1)",
        records.KvmDirtyRingPush(0, 1, 0, 1, 16, 1),
    ),
    ("kvm_dirty_ring_reset", "ring 0: dirty 0x1 reset 0x1 (used 0)", records.KvmDirtyRingReset(0, 1, 1, 0)),
    ("kvm_dirty_ring_exit", "vcpu 3", records.KvmDirtyRingExit(3)),
    ("kvm_try_async_get_page", "gva = 0x7f00, gfn = 0x1", records.KvmAsyncGetPage(0x7F00, 1)),
    ("kvm_async_pf_ready", "token 0x1 gva 0x7f00", records.KvmAsyncPf(1, 0x7F00)),
    ("kvm_async_pf_completed", "gva 0x7f00 address 0x1000", records.KvmAsyncPfCompleted(0x7F00, 0x1000)),
]


def test_no_event_is_left_out() -> None:
    assert {name for name, _, _ in TEXTS} == {name.decode() for name in PARSERS}


@pytest.mark.parametrize(("name", "text", "record"), TEXTS)
def test_an_event_is_read(name: str, text: str, record: records.Record) -> None:
    assert PARSERS[name.encode()](text.encode()) == record


@pytest.mark.parametrize(("name", "text", "_record"), TEXTS)
def test_a_text_with_something_else_in_it_is_not_read(name: str, text: str, _record: records.Record) -> None:
    parse = PARSERS[name.encode()]
    assert parse(b"x" + text.encode()) is None
    assert parse(text.replace(" ", " x ", 1).encode()) is None
    assert parse(b"") is None


@pytest.mark.parametrize(
    "text",
    [
        "as id 0 gfn 0 level 6 old_spte 0 new_spte 1",
        "as id 0 gfn 0 level 0 old_spte 0 new_spte 1",
        "as id 2 gfn 0 level 1 old_spte 0 new_spte 1",
        "as id 0 gfn g level 1 old_spte 0 new_spte 1",
        "as id 0 gfn 0 level 1 old_spte 0 new_spte",
        "as id 0 gfn 0 level 1 new_spte 0 old_spte 1",
        f"as id 0 gfn {'1' * 200} level 1 old_spte 0 new_spte 1",
    ],
)
def test_a_change_that_cannot_be_is_not_read(text: str) -> None:
    assert PARSERS[b"kvm_tdp_mmu_spte_changed"](text.encode()) is None


def test_the_fast_reading_of_changes_is_that_of_their_template() -> None:
    record, [template] = TEMPLATES["kvm_tdp_mmu_spte_changed"]
    slow = compile_template(template, record)
    text = b"as id 0 gfn 10000 level 2 old_spte 8000000000000000 new_spte 65af827"
    assert slow(text) == PARSERS[b"kvm_tdp_mmu_spte_changed"](text)


def test_a_template_must_print_what_the_record_needs() -> None:
    with pytest.raises(Unfit, match="level"):
        compile_template("gfn {gfn:x} pfn {pfn:x}", records.KvmMmuSpteRequested)
    with pytest.raises(Unfit, match="twice"):
        compile_template("{gfn:x} {gfn:x}", records.KvmMmuSpteRequested)
