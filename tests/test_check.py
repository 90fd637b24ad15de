"""One scenario on one design: what becomes of findings, and of what the request names."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf import check as checks
from interleaf.check import Request, check
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
