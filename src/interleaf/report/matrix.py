"""Scenarios down, designs across: the matrix of verdicts, while the search runs and afterwards.

On a terminal it is drawn again and again, with an estimate of how far each search is. Where the output is no
terminal, each cell is a line of text once it is done, and nothing moves.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from interleaf.check import Cell, Request
from interleaf.explore.outcome import Progress
from interleaf.explore.verdict import Status
from interleaf.worker import Result

PLAIN_WIDTH = 100
"""Characters of a line where the output is no terminal."""

PLAIN_TABLE_WIDTH = 10_000
"""More than any matrix needs: text that is no terminal's may be as wide as it is."""

CELL_WIDTH = 14
"""Of "use-after-free": a column in which everything is said."""

NARROW_WIDTH = 5
"""Of "v6.12" and of "x I11": a column in which only the verdict is, and the first property that is violated."""

NAME_WIDTH = 24
"""Names of scenarios are folded to no less."""

LOOKS = {
    "holds": ("✓", "+", "green"),
    "violated": ("✗", "x", "bold red"),
    "incomplete": ("?", "?", "yellow"),
    "error": ("!", "!", "bold yellow"),
}
"""Symbol, the same in ASCII, and style."""


def console_for(*, stderr: bool) -> Console:
    """A console that writes plain text of a fixed width where the output is no terminal."""
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if console.is_terminal:
        return console
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=PLAIN_WIDTH, color_system=None)


def outcome(result: Result) -> str:
    """A result in one word: a verdict, or "error"."""
    if result.error:
        return "error"
    return "incomplete" if result.cell is None else str(result.cell.verdict.status)


def reason(result: Result) -> str:
    """Why a result is not the whole answer; empty if it is."""
    if result.error or result.cell is None:
        return result.error or result.stopped
    return result.cell.verdict.reason or result.stopped


def count(number: int) -> str:
    """A number of states in at most six characters."""
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1e3:.0f}k" if number < 1_000_000 else f"{number / 1e6:.1f}M"


def duration(seconds: float) -> str:
    """A time in at most five characters."""
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02}"


class Matrix(AbstractContextManager["Matrix"]):
    """Listens to a campaign, and shows it on `console` while `with` lasts."""

    def __init__(self, requests: Sequence[Request], console: Console) -> None:
        self.requests = list(requests)
        self.console = console
        self.results: dict[int, Result] = {}
        self._running: dict[int, Progress | None] = {}
        self._preview = ""
        self._began = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Matrix:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console, transient=True, refresh_per_second=8, get_renderable=self._moving_picture
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, position: int) -> None:
        """A request is being checked."""
        self._running[position] = None

    def progress(self, position: int, progress: Progress) -> None:
        """The search has come this far."""
        self._running[position] = progress

    def ended(self, position: int, result: Result) -> None:
        """A result is there."""
        self._running.pop(position, None)
        self.results[position] = result
        if self._live is None:
            done = f"[{len(self.results)}/{len(self.requests)}]"
            self.console.print(Text(f"{done} {title(result.request)}: {summary(result)}"), soft_wrap=True)

    def hunted(self, cell: Cell) -> None:
        """The hunt beside the proof is over."""
        seed = cell.request.seed
        if cell.findings:
            first = min(cell.findings, key=lambda finding: finding.executions)
            self._preview = f"hunter: found {first.property} after {first.executions} executions (seed {seed})"
        else:
            self._preview = f"hunter: nothing in {cell.executions} executions (seed {seed})"
        if self._live is None:
            self.console.print(Text(self._preview), soft_wrap=True)

    def tables(self) -> list[Table]:
        """The matrix as it stands. On a terminal it is as wide as that: with narrow columns where wide ones do not fit,
        and in several tables where narrow ones do not either. Elsewhere it is as wide as it is."""
        designs = list(dict.fromkeys(_column(request) for request in self.requests))
        longest = max(len(_row(request)) for request in self.requests)
        if not self.console.is_terminal:
            return [self._table(designs, longest, CELL_WIDTH)]
        width = self.console.width
        name = min(longest, max(NAME_WIDTH, width - len(designs) * (NARROW_WIDTH + 1)))
        cell = (width - name) // len(designs) - 1
        if cell >= CELL_WIDTH:
            return [self._table(designs, name, CELL_WIDTH)]
        cell = max(cell, NARROW_WIDTH)
        each = max(1, (width - name) // (cell + 1))
        return [self._table(designs[first : first + each], name, cell) for first in range(0, len(designs), each)]

    def print_to(self, console: Console) -> None:
        """Print the matrix; as wide as it is, where the output is no terminal."""
        for table in self.tables():
            console.print(table, width=None if console.is_terminal else PLAIN_TABLE_WIDTH, crop=False)

    def _table(self, designs: Sequence[str], name_width: int, cell_width: int) -> Table:
        ascii_only = not self.console.encoding.lower().startswith("utf")
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
        table.add_column("", width=name_width, overflow="fold")
        for design in designs:
            table.add_column(Text(_folded(design, cell_width)), width=cell_width, overflow="fold")
        at = {(_row(request), _column(request)): position for position, request in enumerate(self.requests)}
        for scenario in dict.fromkeys(_row(request) for request in self.requests):
            cells = [self._cell(at.get((scenario, design)), ascii_only, cell_width) for design in designs]
            table.add_row(Text(_folded(scenario, name_width)), *cells)
        return table

    def _cell(self, position: int | None, ascii_only: bool, width: int) -> Text:
        if position is None:
            return Text("")
        wide = width >= CELL_WIDTH
        result = self.results.get(position)
        if result is None:
            if position not in self._running:
                return Text("-", style="dim")
            progress = self._running[position]
            if progress is not None and progress.found:
                # it will not hold whatever else is found
                symbol, in_ascii, style = LOOKS["violated"]
                text = Text(in_ascii if ascii_only else symbol, style=style)
                return text.append(" violated …" if wide and not ascii_only else " ...", style=style)
            share = f"{progress.fraction:.0%}" if progress is not None else "begins" if wide else "0%"
            return Text(f"{share} {count(progress.states)}" if wide and progress is not None else share, style="cyan")
        word = outcome(result)
        symbol, in_ascii, style = LOOKS[word]
        text = Text(in_ascii if ascii_only else symbol, style=style)
        cell = result.cell
        violated = [name for name, status in cell.verdict.properties if status is Status.VIOLATED] if cell else []
        if not wide:
            text.append(_narrow(violated, width - 2), style="red")
            return text
        text.append(f" {word}")
        for name in violated:
            text.append(f"\n{name}", style="red")
        if cell is not None:
            text.append(f"\n{count(cell.states)} {duration(cell.seconds)}", style="dim")
        return text

    def _moving_picture(self) -> Group:
        """What the terminal shows while the search runs."""
        done, wanted = len(self.results), len(self.requests)
        elapsed = duration(time.monotonic() - self._began)
        parts: list[Text | Table] = []
        tables = self.tables()
        if (
            sum(len(self.console.render_lines(table)) for table in tables) + len(self._running) + 3
            < self.console.height
        ):
            parts += [*tables, Text("")]
        parts += [
            Text(f"{title(self.requests[position])}: ", no_wrap=True).append_text(_share(progress))
            for position, progress in sorted(self._running.items())
        ]
        parts.append(Text(f"{done} of {wanted} done, {elapsed}; Ctrl-C ends it and keeps what was found", style="dim"))
        if self._preview:
            parts.append(Text(self._preview))
        return Group(*parts)


def _folded(text: str, width: int) -> str:
    """Text in lines of a width, broken after spaces, hyphens and colons where there are some."""
    lines = [""]
    for part in re.findall(r"[^ :-]*[ :-]?", text):
        if len(lines[-1]) + len(part.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _narrow(violated: Sequence[str], width: int) -> str:
    """The first violated property as far as there is room, and whether there are more."""
    if not violated:
        return ""
    shortest = min(violated, key=len)
    more = "+" if len(violated) > 1 else ""
    if len(shortest) + len(more) <= width:
        return f" {shortest}{more}"
    return f" {shortest[: width - 1]}…" if width >= 6 else ""  # fewer letters say nothing


def title(request: Request) -> str:
    """What a request checks."""
    return f"{_row(request)} on {_column(request)}"


def reasons(results: Sequence[Result]) -> list[str]:
    """Why results are not whole answers, a line for each reason."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if why := reason(result):
            grouped.setdefault((outcome(result), why), []).append(title(result.request))
    lines = []
    for (word, why), titles in grouped.items():
        if word == "error":
            lines.append(f"error: {why}")
        elif len(titles) == 1:
            lines.append(f"{word}: {titles[0]}: {why}")
        else:
            lines.append(f"{word}: {len(titles)} cells, from {titles[0]} to {titles[-1]}: {why}")
    return lines


def summary(result: Result) -> str:
    """A result in one line."""
    word = outcome(result)
    text = word
    if result.cell is not None:
        cell = result.cell
        violated = [name for name, status in cell.verdict.properties if status is Status.VIOLATED]
        text += f" {', '.join(violated)}" if violated else ""
        text += f" ({cell.states:,} states, {duration(cell.seconds)})"
    why = reason(result)
    return f"{text}: {why}" if why else text


def totals(results: Sequence[Result]) -> str:
    """How many cells have which verdict."""
    words = [outcome(result) for result in results]
    parts = {
        "holds": f"{words.count('holds')} hold" + ("s" if words.count("holds") == 1 else ""),
        "violated": f"{words.count('violated')} violated",
        "incomplete": f"{words.count('incomplete')} incomplete",
        "error": f"{words.count('error')} in error",
    }
    return ", ".join(text for word, text in parts.items() if word in words)


def _row(request: Request) -> str:
    settings = ",".join(f"{name}={value}" for name, value in request.parameters)
    return f"{request.scenario} {settings}" if settings else request.scenario


def _column(request: Request) -> str:
    return " ".join((request.design, *(f"without {rule}" for rule in request.dropped)))


def _share(progress: Progress | None) -> Text:
    if progress is None:
        return Text("begins")
    full = round(progress.fraction * 20)
    bar = "#" * full + "." * (20 - full)
    text = Text(f"[{bar}] about {progress.fraction:.0%}, {progress.states:,} states")
    if progress.found:
        text.append(f", violated ({progress.found} found)", style=LOOKS["violated"][2])
    return text
