"""The command `interleaf show`."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from interleaf.arguments import Refused
from interleaf.check import Request, digest_of, program
from interleaf.checking import UNUSABLE, VIOLATED, Outputs, expect_writable, narrated, write_ftrace
from interleaf.report.document import Unreadable, read_finding
from interleaf.report.matrix import console_for
from interleaf.report.story import WIDTH, tell
from interleaf.worker import explain


def show(path: Path, number: int | None, ftrace: Path | None = None) -> int:
    """Replay the finding in a file and tell it, and write its trace to `ftrace`; returns the exit code. Raises
    Refused."""
    expect_writable(Outputs(None, None, ftrace))
    try:
        finding = read_finding(path, number)
    except Unreadable as error:
        raise Refused(str(error)) from error
    request = Request(finding.scenario, finding.design, finding.dropped, parameters=finding.parameters)
    complaints = console_for(stderr=True)
    try:
        program(request)
        if digest_of(request) != finding.digest:
            warning = "the model, the scenario or the design is not what the finding was made with; trying anyway"
            complaints.print(Text(f"interleaf: {warning}", style="yellow"), soft_wrap=True)
        narration = narrated(finding)
    except KeyboardInterrupt:
        raise Refused("interrupted.") from None
    except Exception as error:
        raise Refused(explain(request, error)) from error
    if ftrace is not None:
        write_ftrace(ftrace, request, finding)
    console = console_for(stderr=False)
    for line in tell(finding, narration, width=min(WIDTH, console.width)):
        console.print(Text(line.text, style=line.style), soft_wrap=True)
    if narration.violation is None:
        text = f"the schedule of {path} runs to its end, but {finding.property} is not violated any more"
        complaints.print(Text(f"interleaf: {text}", style="bold yellow"), soft_wrap=True)
        return UNUSABLE
    return VIOLATED
