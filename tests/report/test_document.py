"""JSON out, and findings back in."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from interleaf.check import Request
from interleaf.explore.outcome import Bounds
from interleaf.explore.verdict import Status
from interleaf.report.document import (
    Unreadable,
    cell_entry,
    check_document,
    expect_writable,
    finding_document,
    finding_entry,
    read_finding,
    to_text,
    write,
)
from tests.checkers import cell
from tests.report.findings import cell_of, finding, narration, stale_fault


def entry() -> dict[str, Any]:
    return finding_entry(*stale_fault())


def written(folder: Path, document: object) -> Path:
    path = folder / "it.json"
    path.write_text(json.dumps(document))
    return path


def test_a_finding_comes_back_as_it_was(tmp_path: Path) -> None:
    found, _ = stale_fault()
    path = written(tmp_path, finding_document(entry()))
    assert read_finding(path, None) == found
    assert read_finding(path, 1) == found


def test_a_finding_is_taken_out_of_a_check(tmp_path: Path) -> None:
    other = finding("use_after_free", "use-after-free")
    entries = [entry(), finding_entry(other, narration("use_after_free", "use-after-free"))]
    path = written(tmp_path, check_document([], entries))
    assert read_finding(path, 2) == other
    with pytest.raises(Unreadable, match=r"has 2 findings: choose one with --finding 1 … 2"):
        read_finding(path, None)
    with pytest.raises(Unreadable, match="has no finding 3"):
        read_finding(path, 3)
    with pytest.raises(Unreadable, match="without findings"):
        read_finding(written(tmp_path, check_document([], [])), None)


def test_steps_say_what_happened_and_where() -> None:
    steps = entry()["steps"]
    assert {"step", "task", "operation", "source", "text"} == set(steps[0])
    assert any("takes Kvm0.mmu_lock for writing" in step["text"] for step in steps)
    assert all(step["source"].partition(":")[0].endswith(".py") for step in steps if step["operation"] != "end")
    assert all(not step["source"].startswith("/") for step in steps if step["source"].startswith("interleaf"))


def test_a_proof_has_a_certificate() -> None:
    answer = cell_of("fault-vs-unmap")
    written = cell_entry(answer.request, answer, "", "")
    assert written["verdict"] == "holds"
    assert written["error"] is None
    assert written["exhaustive"] is True
    assert written["properties"]["I1"] == "holds"
    assert "vacuous" in written["properties"].values()
    assert written["certificate"]["engines"] == ["states"]
    assert written["certificate"]["states"] == written["states"] > 0


def test_a_cell_says_what_each_task_does_in_one_go_but_not_the_set_up() -> None:
    answer = cell_of("fault-vs-unmap")
    one = {"changed": 1, "torn_down": 1}
    fault = {"changed": 4, "torn_down": 0}
    assert cell_entry(answer.request, answer, "", "")["work"] == {"destroy": one, "munmap": one, "vcpu0": fault}


def test_a_cell_without_an_answer_says_why() -> None:
    request = Request("zap", "v6.12", ("rule",), "both", Bounds(seconds=3), 7, (("pages", 2),))
    lost = cell_entry(request, None, "", "its worker process was killed")
    assert (lost["verdict"], lost["reason"], lost["error"]) == ("incomplete", "its worker process was killed", None)
    assert (lost["dropped"], lost["parameters"], lost["seed"]) == (["rule"], {"pages": 2}, 7)
    assert lost["bounds"] == {"seconds": 3}
    wrong = cell_entry(request, None, "it raises", "")
    assert (wrong["verdict"], wrong["reason"], wrong["error"]) == ("incomplete", "it raises", "it raises")


def test_a_cell_in_error_keeps_its_findings() -> None:
    request = Request("zap", "v6.12")
    both = cell_entry(request, cell(request, Status.VIOLATED, "a message"), "it does not end", "")
    assert (both["verdict"], both["reason"], both["error"]) == ("violated", "it does not end", "it does not end")


def test_every_cell_has_the_same_fields() -> None:
    answer = cell_of("fault-vs-unmap")
    assert set(cell_entry(answer.request, answer, "", "")) == set(cell_entry(answer.request, None, "", "lost"))


def test_the_documentation_names_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    answer = cell_of("fault-vs-unmap")
    written = cell_entry(answer.request, answer, "", "")
    names = {*check_document([], []), *written, *written["certificate"], *entry(), *entry()["steps"][0]}
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "its outermost value is no object"),
        ({}, "it has no schema interleaf/finding/1"),
        ({"schema": "interleaf/finding/9", "interleaf": "7.0"}, "has the schema interleaf/finding/9, written by"),
        ({"schema": "interleaf/finding/1", "finding": 3}, "finding must be an object, not 3"),
        ({"schema": "interleaf/finding/1", "finding": {}}, "finding has no field"),
        ({"schema": "interleaf/check/1", "findings": {}}, "findings must be a list"),
    ],
)
def test_what_is_no_finding_is_told_so(tmp_path: Path, document: object, complaint: str) -> None:
    with pytest.raises(Unreadable, match=complaint):
        read_finding(written(tmp_path, document), None)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("schedule", [["vcpu0", []]], r"finding\.schedule\[0\] must be \[task, choices, operations\]"),
        ("schedule", [["vcpu0", ["x"], 0]], r"finding\.schedule\[0\]\[1\]\[0\] must be an integer, not 'x'"),
        ("schedule", [[3, [], 0]], r"finding\.schedule\[0\]\[0\] must be a string"),
        ("parameters", {"pages": "two"}, r"finding\.parameters must be an integer"),
        ("dropped", [1], r"finding\.dropped\[0\] must be a string"),
        ("preemptions", "many", r"finding\.preemptions must be an integer"),
        ("executions", True, r"finding\.executions must be an integer"),
    ],
)
def test_a_damaged_field_is_named(tmp_path: Path, field: str, value: object, complaint: str) -> None:
    with pytest.raises(Unreadable, match=complaint):
        read_finding(written(tmp_path, finding_document(entry() | {field: value})), None)


def test_a_file_that_is_cut_off_is_told_from_one_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "it.json"
    text = to_text(finding_document(entry()))
    path.write_text(text[: len(text) // 2])
    with pytest.raises(Unreadable, match="is cut off"):
        read_finding(path, None)
    path.write_text("no json")
    with pytest.raises(Unreadable, match="is not JSON"):
        read_finding(path, None)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Unreadable, match="not even text"):
        read_finding(path, None)
    with pytest.raises(Unreadable, match="is a directory"):
        read_finding(tmp_path, None)
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        read_finding(tmp_path / "missing", None)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    write(path, "old\n")
    path.chmod(0o640)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, "new and longer\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write(path, "new\n")
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old\n")
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    write(link, "new\n")
    assert link.is_symlink()
    assert (tmp_path / "real.json").read_text() == "new\n"


def test_what_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    expect_writable(tmp_path / "new.json")
    expect_writable(Path("/dev/null"))
    with pytest.raises(IsADirectoryError):
        expect_writable(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        expect_writable(tmp_path / "missing" / "new.json")
