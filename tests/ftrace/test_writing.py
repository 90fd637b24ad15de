"""What a run of the model writes is what a kernel writes: text for text, and tables that follow from it."""

from __future__ import annotations

import contextlib
import functools
import gzip
import re
from pathlib import Path
from typing import cast

import pytest

from interleaf.arguments import Refused
from interleaf.check import Request, program
from interleaf.checking import Outputs, check
from interleaf.ftrace.printing import printed
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.ftrace.source import Unreadable
from interleaf.ftrace.spte import pfn_of
from interleaf.ftrace.texts import known_parsers
from interleaf.ftrace.writing import run_of, trace_of
from interleaf.kvm import trace as model
from interleaf.kvm.mmu_internal import RetPf
from interleaf.report.roots import roots
from interleaf.runtime import Memory
from interleaf.scenarios import library
from interleaf.showing import show
from tests.ftrace.carried import TRACES, name_of

NOWHERE = cast("Memory", None)
"""For records that say everything themselves."""

REAL = [
    (
        model.SpteChanged(0, 0x10000, 1, 1 << 63, 0x2BA1E67),
        "kvm_tdp_mmu_spte_changed: as id 0 gfn 10000 level 1 old_spte 8000000000000000 new_spte 2ba1e67",
    ),
    (model.SpteRequested(1, 0x2999, 1), "kvm_mmu_spte_requested: gfn 1 pfn 2999 level 1"),
    (model.ZapAllFast(0), "kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 0"),
    (
        model.FastPageFault(0, 0x10000000, 7, 0x3310825, 0x3310825, RetPf.INVALID, 0),
        (
            "fast_page_fault: vcpu 0 gva 10000000 error_code P|W|U sptep 0000000000000000 old 0x3310825 new 3310825 "
            "spurious 0 fixed 0"
        ),
    ),
    (
        model.FastPageFault(1, 0x10001000, 0x100000007, 0, 0, RetPf.FIXED, 0),
        (
            "fast_page_fault: vcpu 1 gva 10001000 error_code P|W|U|0x100000000 sptep 0000000000000000 old 0x0 new 0 "
            "spurious 0 fixed 1"
        ),
    ),
    (
        model.SplitHugePage(0x10000, 0x14A00EE7, 2, 0),
        "kvm_mmu_split_huge_page: gfn 10000 spte 14a00ee7 level 2 errno 0",
    ),
    (model.MarkMmioSpte(0x10000, 7, 6, 0), "mark_mmio_spte: sptep:0000000000000000 gfn 10000 access 7 gen 6"),
    (
        model.CheckMmioSpte(8, 6, 0x8000010000037, False),
        "check_mmio_spte: spte 8000010000037 kvm_gen 8 spte-gen 6 valid 0",
    ),
    (model.HandleMmioPageFault(0, 0x10000, 6), "handle_mmio_page_fault: addr:0 gfn 10000 access 6"),
    (
        model.UnmapHvaRange(0x7FFFF77F4000, 0x7FFFF77F8000),
        "kvm_unmap_hva_range: mmu notifier unmap range: 0x007ffff77f4000 -- 0x007ffff77f8000",
    ),
    (
        model.AgeHva(0x7FFFF7200000, 0x7FFFF7201000),
        "kvm_age_hva: mmu notifier age hva: 0x007ffff7200000 -- 0x007ffff7201000",
    ),
    (model.TestAgeHva(0x537000), "kvm_test_age_hva: mmu notifier test age hva: 0x00000000537000"),
    (model.SetSpteHva(0x52B000), "kvm_set_spte_hva: mmu notifier set pte hva: 0x0000000052b000"),
    (model.DirtyRingExit(3), "kvm_dirty_ring_exit: vcpu 3"),
]

SPLIT = ("dirty-log-enable-vs-huge-page", "fault-below-dirty-log-disable")
"""A huge page is split: the model has those of the 512 children only that the scenario uses."""

LONG = ("prefault-with-obsolete-root", "fault-after-many-invalidations")
"""They do not come to an end by themselves, on some designs."""

LEGACY = tuple(name for name in library() if name.startswith(("nested-fault", "nested-pae", "faults-at-shadow")))
"""They use shadow pages, of which the carried traces have none, and the TDP MMU's events do not tell."""

ENDING = [name for name in library() if name not in (*LONG, *LEGACY)]

DESIGNS = ("v6.12", "v5.18")


@pytest.mark.parametrize(("record", "line"), REAL)
def test_an_event_is_printed_as_a_kernel_prints_it(record: object, line: str) -> None:
    [(name, text)] = printed(record, NOWHERE)
    assert f"{name}: {text}" == line


def written(scenario: str, design: str) -> str:
    return trace_of(program(Request(scenario, design))[2], None)


def shape(text: str) -> str:
    """A line without its numbers, except for how wide those are that have a fixed width. Pointers may be anything."""
    text = re.sub(r"\(r[w-][x-]u\)", "(rights)", text)
    text = re.sub(r"error_code [A-Z|]*(?:\|?0x[0-9a-f]+)?", "error_code", text)
    text = text.replace("!ad", "ad")
    return re.sub(r"\b(0x)?[0-9a-f]+\b", _width, text)


def _width(number: re.Match[str]) -> str:
    padded = len(number[0]) >= 16 and number[0].startswith(("0x0", "000"))
    return f"{number[1] or ''}{len(number[0]) if padded else 'n'}"


@functools.cache
def real_shapes(kernel: str) -> dict[str, set[str]]:
    shapes: dict[str, set[str]] = {}
    for path in TRACES:
        if not name_of(path).startswith(f"{kernel}/icount") or path.stat().st_size > 200_000:
            continue
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            name, _, text = line.partition(": ")[2].partition(": ")
            if name.encode() in known_parsers_of() and not text.startswith("("):
                shapes.setdefault(name, set()).add(shape(text))
    return shapes


@functools.cache
def known_parsers_of() -> frozenset[bytes]:
    return frozenset(known_parsers())


@pytest.mark.parametrize("design", ["v6.12", "v6.1"])
def test_the_texts_have_the_form_that_real_traces_have(design: str) -> None:
    real = real_shapes(design.removeprefix("v"))
    seen = set()
    for scenario in ENDING:
        for line in written(scenario, design).splitlines():
            name, _, text = line.partition(": ")[2].partition(": ")
            if name in real:
                text = text.replace("rip 0x0", "rip 0x1000")
                assert shape(text) in real[name], (scenario, line)
                seen.add(name)
    assert seen >= {
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_spte_requested",
        "kvm_mmu_set_spte",
        "kvm_mmu_get_page",
        "kvm_mmu_prepare_zap_page",
        "kvm_mmu_zap_all_fast",
        "kvm_page_fault",
        "kvm_entry",
        "kvm_unmap_hva_range",
        "fast_page_fault",
        "mark_mmio_spte",
    }


@pytest.mark.parametrize("design", DESIGNS)
def test_the_tables_that_follow_from_a_trace_are_the_models(tmp_path: Path, design: str) -> None:
    path, leafs = tmp_path / "trace", 0
    for scenario in ENDING:
        if scenario in SPLIT:
            continue
        setup = program(Request(scenario, design))[2]
        run = run_of(setup, None)
        run.close()
        whole = run.schedule
        for share in (0, 1, 2):
            run = run_of(setup, whole[: len(whole) * share // 4])
            path.write_text(run.text())
            mine = [leaf for root in roots(run.memory) for leaf in root.mapped]
            run.close()
            known = rebuilt(path)
            assert known.contradicted == 0, (scenario, known.contradictions[0])
            tops = known.tables.roots
            said = [(gfn, pfn_of(spte)) for root in tops for _level, gfn, spte in known.tables.leafs(root)]
            assert sorted(said) == sorted(mine), (scenario, share)
            leafs += len(said)
    assert leafs > 20


def rebuilt(path: Path) -> Reconstruction:
    known = Reconstruction()
    with contextlib.suppress(Unreadable):  # as long as nothing has happened, there is no event
        for event in Trace(path, strict=True):
            known.feed(event)
    known.finish()
    return known


def test_old_kernels_print_a_fault_in_their_own_way() -> None:
    assert "kvm_page_fault: address 0 error_code 182\n" in written("dirty-log-get-vs-write", "v5.18")
    assert "kvm_page_fault: vcpu 0 rip 0x0 address 0x0000000000000000 error_code 0x182\n" in written(
        "dirty-log-get-vs-write", "v6.12"
    )


def test_each_task_is_a_thread_of_its_own_and_a_step_a_microsecond(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(written("two-vcpus-fault-different-pages", "v6.12"))
    events = list(Trace(path, strict=True))
    assert {(event.task.comm, event.task.pid - 1000 == event.task.cpu) for event in events} >= {
        ("vcpu0", True),
        ("vcpu1", True),
    }
    times = [event.time for event in events]
    assert times == sorted(times)
    assert all(time % 1000 == 0 for time in times)


def test_a_finding_is_written_and_its_replay_writes_the_same(tmp_path: Path) -> None:
    request = Request("memslot-delete-vs-unmap", "off-list")
    first, second = tmp_path / "first", tmp_path / "second"
    assert check([request], 1, Outputs(None, tmp_path / "findings", first)) == 1
    files = sorted((tmp_path / "findings").iterdir())
    shown = []
    for file in files:
        assert show(file, None, second) == 1
        shown.append(second.read_text())
    assert first.read_text() in shown


def test_a_run_that_violates_nothing_is_written_too(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    assert check([Request("dirty-log-get-vs-write", "v6.12")], 1, Outputs(None, None, path)) == 0
    assert path.read_text() == written("dirty-log-get-vs-write", "v6.12")


def test_only_one_run_can_be_written(tmp_path: Path) -> None:
    requests = [Request("dirty-log-get-vs-write", design) for design in ("v6.12", "v6.1")]
    with pytest.raises(Refused, match="one scenario and one --design, not 2 cells"):
        check(requests, 1, Outputs(None, None, tmp_path / "trace"))
    with pytest.raises(Refused, match="no directory"):
        check(requests[:1], 1, Outputs(None, None, tmp_path / "none" / "trace"))
