"""The summary of a trace on terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from interleaf.report.trace_document import summary_document
from interleaf.report.trace_text import print_summary
from tests.ftrace.carried import trace_of
from tests.ftrace.test_summary import summary_of


@pytest.mark.parametrize("width", [40, 80, 200])
def test_each_thing_has_one_line_over_time(width: int) -> None:
    path = trace_of("6.12/runA/w03_slot_delete")
    file = io.StringIO()
    print_summary(Console(file=file, width=width), summary_document(path, summary_of(path)))
    lines = file.getvalue().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("over time")) + 2
    shown = lines[begin : lines.index("", begin)]
    assert [line.split("  ")[0] for line in shown] == ["faults", "maps", "zap all", "zaps", "4K mapped"]
    assert [line.split()[-1] for line in shown] == ["12", "11", "1", "80", "81"]
