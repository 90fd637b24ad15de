"""The command `interleaf check`: run the requests, show the results, and write them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from interleaf.arguments import Refused
from interleaf.campaign import run
from interleaf.check import Cell, Finding, Request, program
from interleaf.explore.verdict import Status
from interleaf.ftrace.writing import trace_of
from interleaf.report import document
from interleaf.report.matrix import Matrix, console_for, duration, outcome, reason, reasons, title, totals
from interleaf.report.narration import Narration, narrate
from interleaf.report.story import WIDTH, tell
from interleaf.runtime import StepLimit
from interleaf.worker import Result, explain

HOLDS, VIOLATED, UNUSABLE, INCOMPLETE = 0, 1, 2, 3
"""Exit codes."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results go besides the terminal."""

    json: Path | None
    """None is nowhere; `-` is standard output, which then holds nothing else."""
    findings: Path | None
    """A folder for one file for each finding."""
    ftrace: Path | None = None
    """For the trace of one execution."""

    @property
    def json_alone(self) -> bool:
        return self.json is not None and str(self.json) == "-"


@dataclass(slots=True)
class Told:
    """A finding, its replay, and where else the same was found."""

    finding: Finding
    narration: Narration | None
    trouble: str
    """Why there is no replay."""
    others: list[str]


def check(requests: Sequence[Request], workers: int | None, outputs: Outputs) -> int:
    """Check the requests, show and write the results; returns the exit code. Raises Refused."""
    if outputs.ftrace is not None and len(requests) != 1:
        raise Refused(f"--ftrace writes one execution: name one scenario and one --design, not {len(requests)} cells.")
    expect_writable(outputs)
    began = time.monotonic()
    with Matrix(requests, console_for(stderr=True)) as matrix:
        results = run(requests, workers=workers, listener=matrix)
    told = [retold(finding, others) for finding, others in distinct(results)]
    write(results, told, outputs)
    if outputs.ftrace is not None and not results[0].error:
        write_ftrace(outputs.ftrace, requests[0], told[0].finding if told else None)
    console = console_for(stderr=outputs.json_alone)
    if len(requests) > 1:
        shown = Matrix(requests, console)
        shown.results = dict(enumerate(results))
        shown.print_to(console)
    _print_results(console, results, time.monotonic() - began)
    print_stories(console, told, outputs)
    return exit_code(results)


def print_stories(console: Console, told: Sequence[Told], outputs: Outputs) -> None:
    """The story of each finding, in the order in which `write` has written them."""
    names = _file_names(told)
    for number, finding in enumerate(told, 1):
        told_by = _told_by(finding.finding, told)
        if told_by:
            text = f"Finding {number}, {finding.finding.message}, is what finding {told_by} comes from."
            console.print(Text(f"\n{text}", style="dim"), soft_wrap=True)
            continue
        console.print(Text(f"\n{'=' * min(WIDTH, console.width)}\n"))
        new = all(known.finding.property != finding.finding.property for known in told[: number - 1])
        _print_story(console, finding, _replay_command(number, names[number - 1], outputs), new)


def _told_by(finding: Finding, told: Sequence[Told]) -> int:
    """The number of the finding that shows what comes of this one, if it is no more than a lack of order; or 0."""
    if finding.race and finding.object:
        for number, other in enumerate(told, 1):
            shown = other.finding
            if not shown.race and (shown.object, shown.scenario, shown.design, shown.dropped) == (
                *(finding.object, finding.scenario, finding.design),
                finding.dropped,
            ):
                return number
    return 0


def exit_code(results: Sequence[Result]) -> int:
    """What the command returns: an error counts most, then a violation, then what is incomplete."""
    words = {outcome(result) for result in results}
    for word, code in (("error", UNUSABLE), ("violated", VIOLATED), ("incomplete", INCOMPLETE)):
        if word in words:
            return code
    return HOLDS


def distinct(results: Sequence[Result]) -> list[tuple[Finding, list[Finding]]]:
    """Each finding once, in the cell where it is shortest, with the same ones of other cells."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for result in results:
        for finding in result.cell.findings if result.cell is not None else ():
            groups.setdefault((finding.property, finding.message), []).append(finding)
    found = []
    for group in groups.values():
        shortest = min(group, key=_length)
        found.append((shortest, [finding for finding in group if finding is not shortest]))
    return found


def narrated(finding: Finding) -> Narration:
    """The finding replayed. Raises ModelError, or what the user's own files raise."""
    with contextlib.redirect_stdout(sys.stderr):  # what code of the scenario prints
        _, _, setup = program(Request(finding.scenario, finding.design, finding.dropped, parameters=finding.parameters))
        return narrate(setup, finding.schedule, (finding.property, finding.message))


def _length(finding: Finding) -> tuple[float, int]:
    preemptions = float("inf") if finding.preemptions is None else finding.preemptions
    return preemptions, len(finding.schedule)


def retold(finding: Finding, others: Sequence[Finding]) -> Told:
    """The finding with its replay, or with why there is none; `others` are the same in other cells."""
    cells = [f"{other.scenario} on {other.design}" for other in others]
    try:
        return Told(finding, narrated(finding), "", cells)
    except Exception as error:
        request = Request(finding.scenario, finding.design, finding.dropped)
        return Told(finding, None, explain(request, error), cells)


def write(results: Sequence[Result], told: Sequence[Told], outputs: Outputs, **more: Any) -> None:
    """Write what was asked for; `more` are further parts of the document. Raises Refused."""
    entries = [document.finding_entry(known.finding, known.narration) for known in told]
    try:
        if outputs.findings is not None:
            for name, entry in zip(_file_names(told), entries, strict=True):
                document.write(outputs.findings / name, document.to_text(document.finding_document(entry)))
        if outputs.json is not None:
            cells = [document.cell_entry(got.request, got.cell, got.error, got.stopped) for got in results]
            text = document.to_text(document.check_document(cells, entries) | more)
            if outputs.json_alone:
                print(text, end="", flush=True)
            else:
                document.write(outputs.json, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or ("standard output" if outputs.json_alone else outputs.json or outputs.findings)
        raise Refused(f"{where} cannot be written: {error.strerror or error}. {totals(results)}.") from error


def write_ftrace(path: Path, request: Request, finding: Finding | None) -> None:
    """Write the events of a finding's execution, or of the first one of the request. Raises Refused."""
    if finding is not None:
        request = Request(finding.scenario, finding.design, finding.dropped, parameters=finding.parameters)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _, _, setup = program(request)
            text = trace_of(setup, None if finding is None else finding.schedule)
    except StepLimit as error:
        raise Refused(f"{path} was not written: the execution does not come to an end ({error}).") from error
    except Exception as error:
        raise Refused(f"{path} was not written: {explain(request, error)}") from error
    try:
        document.write(path, text)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror or error}.") from error


def _print_results(console: Console, results: Sequence[Result], elapsed: float) -> None:
    if len(results) == 1:
        print_cell(console, results[0])
        return
    console.print(Text(f"\n{totals(results)}, in {duration(elapsed)}"), soft_wrap=True)
    for line in reasons(results):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    vacuous = _vacuous_everywhere([result.cell for result in results if result.cell is not None])
    if vacuous:
        console.print(Text(f"vacuous in every cell (nothing could have violated them): {', '.join(vacuous)}"))


def print_cell(console: Console, result: Result) -> None:
    """All that is known of the one cell that was checked."""
    cell = result.cell
    if cell is None:
        console.print(Text(f"{outcome(result)}: {reason(result)}", style="bold yellow"), soft_wrap=True)
        return
    word = "error" if result.error else str(cell.verdict.status)
    console.print(Text(f"{title(result.request)}: {word}", style="bold"), soft_wrap=True)
    why = reason(result)
    if why:
        console.print(Text(f"  {why}", style="yellow"), soft_wrap=True)
    for status in (Status.VIOLATED, Status.HOLDS, Status.INCOMPLETE, Status.VACUOUS):
        names = [name for name, known in cell.verdict.properties if known is status]
        if names:
            console.print(Text(f"  {status:10} {', '.join(names)}"))
    if cell.work:
        console.print(Text(_most_work(cell)), soft_wrap=True)
    console.print(
        Text(
            f"  {cell.states:,} states, {cell.transitions:,} steps, depth {cell.depth:,}, "
            f"{duration(cell.seconds)}, seed {result.request.seed}"
        )
    )
    certificate = cell.verdict.certificate
    if certificate is not None:
        console.print(
            Text(
                f"  exhaustive: proved by {' and '.join(certificate.engines)} ({', '.join(certificate.reductions)}), "
                f"{certificate.audits:,} audits, chance of a hash collision {certificate.collision:.0e}, "
                f"model {certificate.subject.digest}"
            ),
            soft_wrap=True,
        )


def _most_work(cell: Cell) -> str:
    """The most SPTEs that each task changes without a yield point, in a line."""
    tasks = (
        f"{done.task} {done.changed}" + (f" ({done.torn_down} torn down)" if done.torn_down else "")
        for done in cell.work
    )
    line = f"  {'work':10} most SPTEs changed between two yield points: {', '.join(tasks)}"
    return line if cell.verdict.exhaustive else f"{line}, as far as was explored"


def _vacuous_everywhere(cells: Sequence[Cell]) -> list[str]:
    if not cells:
        return []
    vacuous = [{name for name, status in cell.verdict.properties if status is Status.VACUOUS} for cell in cells]
    return sorted(set.intersection(*vacuous))


def _print_story(console: Console, known: Told, replay: str, explained: bool) -> None:
    if known.narration is None:
        console.print(Text(f"{known.finding.property}: {known.finding.message}", style="bold red"), soft_wrap=True)
        console.print(Text(f"This cannot be replayed: {known.trouble}", style="yellow"), soft_wrap=True)
        return
    width = min(WIDTH, console.width)
    story = tell(known.finding, known.narration, width=width, replay=replay, others=known.others, explained=explained)
    for line in story:
        console.print(Text(line.text, style=line.style), soft_wrap=True)


def _replay_command(number: int, name: str, outputs: Outputs) -> str:
    if outputs.findings is not None:
        return f"interleaf show {outputs.findings / name}"
    if outputs.json is not None and not outputs.json_alone:
        return f"interleaf show {outputs.json} --finding {number}"
    return f"add --findings DIR to this command, then: interleaf show DIR/{name}"


def _file_names(told: Sequence[Told]) -> list[str]:
    names: list[str] = []
    for known in told:
        names.append(_file_name(known.finding, names))
    return names


def _file_name(finding: Finding, taken: Sequence[str]) -> str:
    parts = [Path(finding.scenario.partition(":")[0]).stem, finding.design.rpartition("/")[2], *finding.dropped]
    stem = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in "-".join(parts))
    name, number = f"{stem}-{finding.property}.json", 2
    while name in taken:
        name, number = f"{stem}-{finding.property}-{number}.json", number + 1
    return name


def expect_writable(outputs: Outputs) -> None:
    """Make the folder for findings. Raises Refused if the results could not be written, before the search."""
    try:
        if outputs.findings is not None:
            if outputs.findings.exists() and not outputs.findings.is_dir():
                raise NotADirectoryError(f"{outputs.findings} is no folder; --findings takes a folder")
            outputs.findings.mkdir(parents=True, exist_ok=True)
            document.expect_writable(outputs.findings / "finding.json")
        if outputs.json is not None and not outputs.json_alone:
            document.expect_writable(outputs.json)
        if outputs.ftrace is not None:
            document.expect_writable(outputs.ftrace)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
        raise Refused(f"the result could not be written: {why}.") from error
