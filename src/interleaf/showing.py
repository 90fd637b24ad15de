"""The commands `interleaf show` and `interleaf list`."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from interleaf import designs, scenarios
from interleaf.arguments import Refused
from interleaf.check import Request, digest_of, program
from interleaf.checking import UNUSABLE, VIOLATED, narrated
from interleaf.kvm.design import RULES
from interleaf.properties import PROPERTIES
from interleaf.report.document import Unreadable, read_finding
from interleaf.report.matrix import console_for
from interleaf.report.story import WIDTH, tell
from interleaf.worker import explain


def show(path: Path, number: int | None) -> int:
    """Replay the finding in a file and tell it; returns the exit code. Raises Refused."""
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
    console = console_for(stderr=False)
    for line in tell(finding, narration, width=min(WIDTH, console.width)):
        console.print(Text(line.text, style=line.style), soft_wrap=True)
    if narration.violation is None:
        text = f"the schedule of {path} runs to its end, but {finding.property} is not violated any more"
        complaints.print(Text(f"interleaf: {text}", style="bold yellow"), soft_wrap=True)
        return UNUSABLE
    return VIOLATED


def names_of(what: str) -> list[tuple[str, str]]:
    """What `list` lists: names, each with a sentence."""
    library = designs.library()
    match what:
        case "scenarios":
            return [(name, scenario.title) for name, scenario in scenarios.library().items()]
        case "designs":
            return [(name, design.summary) for name, design in library.items()]
        case "properties":
            return [(name, known.text) for name, known in PROPERTIES.items()]
        case "rules":
            followed = {name: [design.name for design in library.values() if name in design.rules] for name in RULES}
            return [
                (name, f"{known.text} [{', '.join(followed[name]) or 'no design'}]")
                for name, known in sorted(RULES.items())
            ]
    raise Refused(f"there is no list of {what}.")
