"""Random scenarios find what the designs are known to have, and the same seed finds the same."""

import functools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interleaf import bugs, designs, fuzzing
from interleaf.check import Request, check
from interleaf.cli import app
from interleaf.explore.verdict import Status
from interleaf.fuzz import fuzz
from interleaf.fuzz.fuzz import Fuzzer, Shrunk
from interleaf.fuzz.source import text_of
from interleaf.fuzz.trial import settle_in
from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.runtime import ModelError


def first(design: str, seed: int) -> Shrunk:
    fuzzer = Fuzzer(designs.load(design), seed, scenarios=100)
    return next(fuzzer.run())


def test_what_is_found_is_small_and_a_scenario_that_check_finds_it_in(tmp_path: Path) -> None:
    shrunk = first("v5.13", 2)
    assert sum(len(task.calls) for task in shrunk.plan.tasks) <= 4
    file = tmp_path / "found.py"
    file.write_text(text_of(shrunk.plan))
    cell = check(Request(str(file), "v5.13"))
    assert cell.verdict.status is Status.VIOLATED
    assert shrunk.rule in {finding.property for finding in cell.findings}


def test_the_same_seed_finds_the_same() -> None:
    assert first("v5.13", 3) == first("v5.13", 3)


def test_the_number_of_workers_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "CANDIDATES", 5)
    alone = Fuzzer(designs.load("v5.13"), 3, scenarios=8)
    with ProcessPoolExecutor(
        2, get_context("spawn"), initializer=settle_in, initargs=(functools.partial(designs.load, "v5.13"),)
    ) as pool:
        shared = Fuzzer(designs.load("v5.13"), 3, scenarios=8, pool=pool)
        assert list(shared.run()) == list(alone.run())
    assert alone.tally.found
    alone.tally.seconds = shared.tally.seconds = 0.0
    assert shared.tally == alone.tally


@pytest.mark.parametrize(
    ("bug", "spec", "seed", "scenarios", "rules"),
    [
        ("B01", "v5.16", 30, 9, {"I1", "use-after-free"}),
        ("B06", "series-v1", 1, 7, {"I12"}),
        ("B21", "v6.12 bug B21", 2, 6, {"I1"}),
        ("B26", "v6.12 bug B26", 3, 6, {"I1", "I2"}),
        ("B38", "v6.12 bug B38", 4, 31, {"map-at-wrong-level"}),
    ],
)
def test_bugs_are_found_again_without_the_library(
    bug: str, spec: str, seed: int, scenarios: int, rules: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "CANDIDATES", 5)
    found, otherwise = (
        {shrunk.rule for shrunk in Fuzzer(bugs.load(design), seed, scenarios=scenarios).run()}
        for design in (spec, "v6.12")
    )
    assert found & rules, bug
    assert not otherwise & rules, bug


def test_the_command_writes_what_it_finds_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "CANDIDATES", 5)
    monkeypatch.setattr(fuzzing, "Fuzzer", functools.partial(Fuzzer, scenarios=8))
    arguments = ["--design", "v5.13", "--seed", "3", "--seconds", "3600", "--workers", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, ["fuzz", *arguments])
    assert result.exit_code == 1, result.output
    files = list(tmp_path.glob("random-3-*.py"))
    assert files
    assert all(file.name in result.output for file in files)
    assert "proves nothing about scenarios that were not drawn" in result.output


def test_sigterm_ends_it_as_ctrl_c_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Fuzzer) -> Iterator[Shrunk]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from ()

    monkeypatch.setattr(Fuzzer, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(app, ["fuzz", "--workers", "1", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "stopped by SIGTERM" in result.output
    assert signal.getsignal(signal.SIGTERM) is before


def raises(kvm: Kvm, root: KvmMmuPage, shared: bool) -> None:
    raise ZeroDivisionError("not by zero")


def test_a_design_that_raises_is_told_with_the_scenario() -> None:
    design = designs.load("v6.12").derive("mine", "It raises.", (), kvm_tdp_mmu_put_root=raises)
    with pytest.raises(ModelError, match=r"(?s)mine raises ZeroDivisionError: not by zero .*in raises.*@scenario"):
        list(Fuzzer(design, 1, scenarios=50).run())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--design", "v9.99"], "v9.99"),
        (["--drop", "no-such-rule"], "no-such-rule"),
        (["--output", "/proc/none"], "cannot be made"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, ["fuzz", "--seconds", "1", *arguments])
    assert result.exit_code != 0
    assert expected in str(result.exception)
