"""What is said of real traces, and the commands that say it."""

from __future__ import annotations

import gzip
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from interleaf.arguments import Refused
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.ftrace.series import BINS, ROWS, Heat, Spread, Timeline
from interleaf.ftrace.summary import Summary
from interleaf.tracing import summarise
from tests.ftrace.carried import TRACES, name_of, trace_of


def summary_of(path: Path) -> Summary:
    trace = Trace(path)
    found = Summary(Reconstruction(), trace.account)
    for event in trace:
        found.feed(event)
    found.finish()
    return found


@pytest.mark.parametrize("path", [path for path in TRACES if "runA" in str(path)], ids=name_of)
def test_every_mapping_is_gone_with_the_vm_and_every_fault_answered(path: Path) -> None:
    found = summary_of(path)
    assert not any(found.mapped.values())
    assert min(found.most.values(), default=1) > 0
    faults = found.account.events["kvm_page_fault"]
    assert sum(found.faults.values()) == faults
    assert all(root.gone is not None for root in found.roots)
    zaps = sum(found.zaps.values())
    assert sum(refaults.zapped for refaults in found.refaults.values()) == zaps


def test_the_deletion_of_a_slot() -> None:
    found = summary_of(trace_of("6.12/icount/w03_slot_delete"))
    assert found.faults == {("write", "mapped 4K"): 160, ("execute", "mapped 4K"): 3}
    assert found.zaps == {("invalid root", 1): 162, ("VM teardown", 1): 1}
    assert found.zap_alls == 3
    assert found.roots_created == 3
    assert [root.invalid is not None for root in found.roots] == [True, True, False]
    assert found.refaults["invalid root"].refaulted == 82


def test_the_times_of_faults_are_those_of_their_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "a-1 [000] ..... 1.{}: "
    fault = head + "kvm_page_fault: vcpu 0 rip 0x0 address 0x1000 error_code 0x{:x}\n"
    entry = head + "kvm_entry: vcpu 0, rip 0x0\n"
    text = fault.format("000000", 2) + entry.format("000100") + fault.format("001000", 16) + entry.format("003000")
    (tmp_path / "trace").write_text(text)
    page = tmp_path / "a.html"
    summarise(tmp_path / "trace", page, None, None, False)
    lines = capsys.readouterr().out.splitlines()
    longest = [line.split()[-2:] for line in lines if line.startswith(("write", "execute"))]
    assert longest == [["100", "us"], ["2", "ms"]]
    rows = [line for line in page.read_text().splitlines() if ">100 us<" in line or ">2 ms<" in line]
    assert len(rows) == 2


def test_time_that_runs_backwards_is_no_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = gzip.decompress(trace_of("6.12/runA/w09_mmio").read_bytes()).splitlines(keepends=True)
    time = lines[100].split(b": ")[0].split()[-1]
    lines[100] = lines[100].replace(time, b"0.000001")
    (tmp_path / "trace").write_bytes(b"".join(lines))
    assert summarise(tmp_path / "trace", None, None, None, False) == 0
    shown = capsys.readouterr().out
    assert "but time runs backwards in it" in shown
    assert "could be read" not in shown


def test_huge_pages_split_and_recovered() -> None:
    found = summary_of(trace_of("6.1/icount/w07_thp_eager"))
    assert found.most == {1: 1537, 2: 3}
    assert found.changes["split", 2] == 3
    assert found.zaps["memslot change", 1] == 1536
    assert found.refaults["memslot change"].refaulted == 1536
    assert found.storms()[0].doing == "memslot change"


def test_small_pages_collapsed() -> None:
    found = summary_of(trace_of("6.12/icount/w13c_collapse"))
    collapsed = found.changes["collapse", 2]
    assert collapsed > 0
    assert sum(counts["collapses"] for counts in found.timeline.counts.values()) == collapsed
    assert found.most[2] >= collapsed


class Page(HTMLParser):
    """Checks that tags are closed, and that nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.cells += tag == "rect"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_summary_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, page, document = trace_of("6.12/runA/w08b_stress_data"), tmp_path / "a.html", tmp_path / "a.json"
    assert summarise(trace, page, document, trace.parent / "formats", True) == 0
    shown = capsys.readouterr().out
    assert "changes fits what came before" in shown
    assert "invalid root" in shown
    entry = json.loads(document.read_text())
    assert entry["schema"] == "interleaf/trace-summary/1"
    assert entry["paging"] == "npt"
    assert entry["continuity"]["contradictions"] == 0
    parser = Page()
    parser.feed(page.read_text())
    assert parser.open == []
    assert parser.cells >= len(entry["heat"]["cells"])
    assert page.stat().st_size < 1_000_000


def test_json_alone_is_all_there_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert summarise(trace_of("6.12/runA/w09_mmio"), None, Path("-"), None, False) == 0
    assert json.loads(capsys.readouterr().out)["duration"] > 0


def test_what_a_trace_says_cannot_upset_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "<b>&.txt", tmp_path / "a.html"
    file.write_text("a-1 [000] ..... 1.000001: sched_switch: x\n<script>alert(1)</script>\n")
    assert summarise(file, page, None, None, False) == 3
    assert "<script>" not in page.read_text()
    assert "not a line of a trace: 1" in capsys.readouterr().out


def test_the_exit_code_tells_what_the_answer_is_worth(tmp_path: Path) -> None:
    text = gzip.decompress(trace_of("6.12/runA/w09_mmio").read_bytes()).decode()
    for extra, code in (("", 0), ("CPU:0 [LOST 3 EVENTS]\n", 3), ("a-1 [000] ..... 99999.0: sched_switch: x\n", 0)):
        (tmp_path / "trace").write_text(text + extra)
        assert summarise(tmp_path / "trace", None, None, None, False) == code
    (tmp_path / "trace").write_text((trace_of("6.12/runA/w09_mmio").parent / "uname.txt").read_text())
    with pytest.raises(Refused, match="no event"):
        summarise(tmp_path / "trace", None, None, None, False)


def test_what_was_not_checked_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace").write_text("a-1 [000] ..... 1.0: kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages 0\n")
    assert summarise(tmp_path / "trace", None, None, None, False) == 3
    assert "there is no kvm_tdp_mmu_spte_changed in it" in capsys.readouterr().out


def test_entries_of_5_12_are_not_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = "a-1 [000] ..... 1.0: kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new\n"
    change = "a-1 [000] ..... 1.1: kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level {} old_spte 0 new_spte {}\n"
    old = [change.format(4, "100001107"), change.format(3, "100002107"), change.format(1, "123456f77")]
    (tmp_path / "trace").write_text("".join((root, *old)))
    assert summarise(tmp_path / "trace", tmp_path / "a.html", None, None, False) == 3
    assert "3 changes are of entries as 5.12 and older kernels write them" in capsys.readouterr().out
    (tmp_path / "trace").write_text("".join((root, old[0], change.format(3, "100002907"))))  # one bit is wrong
    assert summarise(tmp_path / "trace", None, None, None, False) == 1


def test_contradictions_are_shown_and_end_in_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = "a-1 [000] ..... 1.0: kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new\n"
    change = "a-1 [000] ..... 1.1: kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 1 old_spte 5 new_spte 0\n"
    (tmp_path / "trace").write_text(root + change)
    assert summarise(tmp_path / "trace", tmp_path / "a.html", None, None, False) == 1
    assert "line 2: gfn 0, level 1 changes from 5 to 0" in capsys.readouterr().out


def test_what_cannot_be_done_is_refused_beforehand(tmp_path: Path) -> None:
    trace = trace_of("6.12/runA/w09_mmio")
    with pytest.raises(Refused, match="no directory"):
        summarise(trace, tmp_path / "none/a.html", None, None, False)
    with pytest.raises(Refused, match="there is no folder"):
        summarise(trace, None, None, tmp_path / "none", False)
    (tmp_path / "bad").write_text("hello\n")
    with pytest.raises(Refused, match="line 1: not a line of a trace: hello"):
        summarise(tmp_path / "bad", None, None, None, True)


def test_time_is_binned_and_nothing_is_lost_by_it() -> None:
    timeline, heat = Timeline(), Heat()
    for time in range(0, 10**9, 777_777):
        timeline.count(time, "x")
        timeline.set(time, "y", time)
        heat.add(time, time // 1000)
    number = len(range(0, 10**9, 777_777))
    assert sum(counter["x"] for counter in timeline.counts.values()) == number
    assert max(timeline.counts) < BINS
    assert timeline.levels[max(timeline.levels)]["y"] == range(0, 10**9, 777_777)[-1]
    assert sum(heat.cells.values()) == sum(heat.rows.values()) == number
    assert len(heat.rows) <= ROWS


def test_quantiles_are_right_to_an_eighth() -> None:
    spread = Spread()
    for value in range(1, 10_001):
        spread.add(value)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert share * 10_000 <= spread.quantile(share) <= share * 10_000 * 1.126
    assert spread.quantile(1.0) == spread.longest == 10_000
    assert Spread().quantile(0.5) == 0
