"""The command `interleaf check --claims`: the table, the stories below it, the JSON, the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interleaf import deciding
from interleaf.arguments import Refused
from interleaf.checking import HOLDS, INCOMPLETE, VIOLATED, Outputs
from interleaf.claims import Decision, Word
from interleaf.properties.claims import CLAIMS, Claim
from interleaf.report.document import read_finding
from tests.test_cli import refused

BY_LABEL = {claim.label: claim for claim in CLAIMS}


def some(monkeypatch: pytest.MonkeyPatch, *labels: str) -> None:
    """Only these claims are decided, because all of them take long."""
    monkeypatch.setattr(deciding, "CLAIMS", tuple(BY_LABEL[label] for label in labels))


def test_a_claim_that_fails_is_told_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some(monkeypatch, "4a", "4b", "12")
    file, files = tmp_path / "out.json", tmp_path / "found"
    assert deciding.check_claims(1, None, Outputs(file, files)) == VIOLATED
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines()]
    assert [row[0] for row in rows if row and row[0] in BY_LABEL] == ["4a", "4b", "12"]
    assert "holds: 1, fails: 1, vacuous: 1 (every interleaving was looked at)" in output
    assert output.count("replay it: interleaf show ") == 1
    assert "kvm_tdp_mmu_invalidate_all_roots():" in output
    document = json.loads(file.read_text())
    assert document["schema"] == "interleaf/check/1"
    assert [(claim["number"], claim["part"], claim["verdict"]) for claim in document["claims"]] == [
        (4, "a", "vacuous"),
        (4, "b", "fails"),
        (12, "", "holds"),
    ]
    assert [claim["finding"] for claim in document["claims"]] == [None, 1, None]
    assert all(cell["exhaustive"] for cell in document["cells"])
    [finding] = files.iterdir()
    assert read_finding(file, 1) == read_finding(finding, None)
    assert read_finding(file, 1).property == "put-invalid-root-flush"


def test_nothing_fails_when_all_claims_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some(monkeypatch, "4a", "12")
    assert deciding.check_claims(1, 7, Outputs(None, None)) == HOLDS
    assert "replay it" not in capsys.readouterr().out


def test_a_search_that_was_cut_off_leaves_a_claim_undecided() -> None:
    claim: Claim = CLAIMS[0]
    undecided, holds = Decision(claim, None, "stopped"), Decision(claim, Word.HOLDS, "")
    assert deciding.exit_code([holds, undecided]) == INCOMPLETE
    assert deciding.exit_code([undecided, Decision(claim, Word.FAILS, "")]) == VIOLATED
    assert deciding.exit_code([holds, Decision(claim, Word.VACUOUS, "")]) == HOLDS


def test_what_the_claims_decide_for_themselves_is_refused() -> None:
    with pytest.raises(Refused, match="leave --drop, --set out"):
        deciding.expect_no_others(["--drop", "--set"])
    complaint = refused("check", "--claims", "fault-vs-unmap", "--states", "5")
    assert "leave the scenarios, --states out" in complaint
