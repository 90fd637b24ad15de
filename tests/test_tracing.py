"""The commands `interleaf trace ...` as a user meets them: signals, files of other kinds, outputs without room."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from interleaf.arguments import Refused
from interleaf.ftrace import compare
from interleaf.tracing import compare_with, summarise
from tests.ftrace.carried import trace_of
from tests.test_cli import COMMAND

TRACE = trace_of("6.12/runA/w09_mmio")


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal that is not ignored, however these tests were started."""
    chosen: signal.Signals = request.param
    former = signal.signal(chosen, signal.default_int_handler if chosen is signal.SIGINT else signal.SIG_DFL)
    yield chosen
    signal.signal(chosen, former)


def test_a_summary_that_is_ended_shows_what_was_read(number: int, tmp_path: Path) -> None:
    pipe, page = tmp_path / "pipe", tmp_path / "a.html"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [COMMAND, "trace", "summary", str(pipe), "--html", str(page)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pipe.open("wb", buffering=0) as file:
        file.write(gzip.decompress(trace_of("6.12/runA/w08_stress_dummy").read_bytes())[: 1 << 20])
        # more than the pipe holds, so most of it has been read by now
        process.send_signal(number)
        if number != signal.SIGINT:
            process.send_signal(number)  # as timeout(1) does
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "stopped after line" in errors
    assert "changes fits what came before" in output
    assert page.exists()


def test_a_comparison_that_is_ended_says_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(*_arguments: object) -> NoReturn:
        while True:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(compare, "compare_trace", endless)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    assert compare_with(TRACE, "v6.12", None, None, tmp_path / "a.json") == 3
    assert "stopped before the comparison came to its end" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def test_a_pipe_cannot_be_compared(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(Refused, match="more than once"):
        compare_with(pipe, "v6.12", None, None, None)


def test_a_full_disk_is_named() -> None:
    with pytest.raises(Refused, match="/dev/full cannot be written: No space left"):
        compare_with(TRACE, "v6.12", None, None, Path("/dev/full"))


def test_a_kernel_that_prints_events_in_another_way_is_compared_by_its_formats(tmp_path: Path) -> None:
    old, new = rb"gfn (\w+) pfn (\w+) level (\d)", rb"level=\3, gfn=0x\1 -> pfn=0x\2"
    text, changed = re.subn(old, new, gzip.decompress(TRACE.read_bytes()))
    assert changed > 0
    (tmp_path / "a.trace").write_bytes(text)
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats/kvmmmu__kvm_mmu_spte_requested.format").write_text(
        "name: kvm_mmu_spte_requested\nformat:\n\tfield:u64 gfn;\toffset:8;\n\tfield:u64 pfn;\toffset:16;\n"
        "\tfield:u8 level;\toffset:24;\n\n"
        'print fmt: "level=%d, gfn=0x%llx -> pfn=0x%llx", REC->level, REC->gfn, REC->pfn\n'
    )
    assert compare_with(tmp_path / "a.trace", "v6.12", None, None, None, tmp_path / "formats") == 0
    assert compare_with(tmp_path / "a.trace", "v6.12", None, None, None) != 0
    with pytest.raises(Refused, match="there is no folder"):
        compare_with(TRACE, "v6.12", None, None, None, tmp_path / "none")


def test_a_file_may_have_a_name_in_another_encoding(tmp_path: Path) -> None:
    trace = tmp_path / os.fsdecode(b"n\xe4me.trace.gz")
    trace.write_bytes(TRACE.read_bytes())
    for output, run in (("a.json", compare_json), ("b.json", summary_json), ("b.html", summary_page)):
        assert run(trace, tmp_path / output) == 0
        assert "n?me.trace.gz" in (tmp_path / output).read_text(encoding="utf-8")


def compare_json(trace: Path, output: Path) -> int:
    return compare_with(trace, "v6.12", None, None, output)


def summary_json(trace: Path, output: Path) -> int:
    return summarise(trace, None, output, None, False)


def summary_page(trace: Path, output: Path) -> int:
    return summarise(trace, output, None, None, False)


def test_the_result_of_a_comparison_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_with(TRACE, "v6.12", None, None, tmp_path / "a.json") == 0
    entry = json.loads((tmp_path / "a.json").read_text())
    assert (entry["schema"], entry["divergent"], entry["first_divergence"]) == ("interleaf/compare/1", 0, None)
    assert entry["matched"] + entry["explained"] == entry["events"] > 0
    assert f"{entry['snapshots_equal']} equal, 0 different" in capsys.readouterr().out
