"""What is told of a comparison."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from interleaf.ftrace.outcome import Divergence, Result
from interleaf.report.compare_report import compare_document, print_comparison


def told(release: str | None, design: str, divergent: int) -> str:
    """The last line of it."""
    result = Result(design, events=9, matched=9 - divergent, divergent=divergent)
    result.divergences = [Divergence(1, "event", "reason", (), "nothing", (), ())] * divergent
    out = io.StringIO()
    print_comparison(Console(file=out), compare_document(Path("trace"), result, release))
    return out.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("release", "design", "advice"),
    [
        ("6.12.1", "v6.1", 'the kernel is 6.12.1, for which the design is "v6.12", not v6.1'),
        ("6.12.1", "v6.12", 'the kernel is 6.12.1, for which the design is "v6.12"'),
        ("6.8.1", "v6.12", 'no design is that of the kernel 6.8.1. By kernel: 5.13 to 5.15: "v5.13"; '),
        (None, "v6.12", "uname.txt beside the trace would tell the kernel, and so the design. By kernel: 5.13 to "),
    ],
)
def test_whoever_has_taken_the_wrong_design_is_told_the_right_one(
    release: str | None, design: str, advice: str
) -> None:
    line = told(release, design, 1)
    assert line.startswith(advice)
    assert line == advice or '6.6 to 6.7: "v6.1 with split-on-fault with ' in line
    assert "divergent" in told(release, design, 0)
