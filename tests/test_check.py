"""One scenario on one design: what becomes of findings, and of what the request names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interleaf import check as checks
from interleaf.check import Request, check, digest_of, files_of
from interleaf.explore.outcome import Stopped
from interleaf.explore.verdict import Status


def test_a_stop_while_shorter_stories_are_looked_for_loses_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise Stopped("interrupted by Ctrl-C")

    request = Request("last-put-vs-unmap", "off-list")
    whole = check(request)
    monkeypatch.setattr(checks, "_stories", stopped)
    cell = check(request)
    assert cell.verdict == whole.verdict
    assert cell.verdict.status is Status.VIOLATED
    assert {found.message for found in cell.findings} == {found.message for found in whole.findings}
    assert all(found.schedule for found in cell.findings)


def test_the_digest_of_a_finding_is_that_of_its_replay() -> None:
    (found, *_) = check(Request("last-put-vs-unmap", "off-list")).findings
    assert dict(found.parameters) == {"pages": 1}, "it has been made smaller"
    assert found.digest == digest_of(Request(found.scenario, found.design, parameters=found.parameters))


def test_the_digest_knows_every_file_that_is_named(tmp_path: Path) -> None:
    names = ["scenario.py", "design.py", "other.py"]
    scenario, design, other = (tmp_path / name for name in names)
    for file in (scenario, design, other):
        file.write_text("")
    request = Request(f"{scenario}:one", f"{design}:MINE with rule swap function={other}:OTHER")
    assert files_of(request) == [scenario, design, other]
    digests = {digest_of(request)}
    for file in (scenario, design, other):
        file.write_text("changed = True")
        digests.add(digest_of(request))
    assert len(digests) == 4
