"""Reading events as their own format files say."""

from pathlib import Path

import pytest

from interleaf.ftrace import records
from interleaf.ftrace.formats import parse_format, parsers_for, read_formats
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.source import Unreadable
from tests.ftrace.carried import GROUNDTRUTH, trace_of

OTHER = """name: kvm_mmu_spte_requested
ID: 1
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;

\tfield:u64 pfn;\toffset:8;\tsize:8;\tsigned:0;
\tfield:u64 gfn;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u8 level;\toffset:24;\tsize:1;\tsigned:0;

print fmt: "level=%d, 100%% of pfn=0x%016llx for %llx, %s", REC->level, REC->pfn, REC->gfn, REC->level ? "a, b" : ""
"""


def test_a_kernel_that_prints_an_event_in_another_way_is_read() -> None:
    known = parse_format(OTHER)
    assert known.fields == ("pfn", "gfn", "level")
    parse = parsers_for([known])[b"kvm_mmu_spte_requested"]
    expected = records.KvmMmuSpteRequested(0x10, 0x20, 2)
    assert parse(b"level=2, 100% of pfn=0x0000000000000020 for 10, ") == expected
    assert parse(b"gfn 10 pfn 20 level 2") == expected


@pytest.mark.parametrize("folder", sorted(GROUNDTRUTH.glob("*/*/formats")), ids=str)
def test_the_format_files_of_real_kernels_are_read(folder: Path) -> None:
    known = {found.name: found.template for found in read_formats(folder)}
    assert known["kvm_tdp_mmu_spte_changed"] == (
        "as id {as_id:d} gfn {gfn:x} level {level:l} old_spte {old_spte:x} new_spte {new_spte:x}"
    )
    assert known["kvm_mmu_get_page"] is None


def test_with_format_files_the_same_is_read() -> None:
    trace = trace_of("6.12/runA/w09_mmio")
    parsers = parsers_for(read_formats(trace.parent / "formats"))
    assert list(Trace(trace, parsers, strict=True)) == list(Trace(trace, strict=True))


def test_what_is_no_format_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="there is no folder"):
        read_formats(tmp_path / "none")
    with pytest.raises(Unreadable, match="there are no format files"):
        read_formats(tmp_path)
    (tmp_path / "x.format").write_text("hello")
    with pytest.raises(Unreadable, match="is no format file"):
        read_formats(tmp_path)
