"""Tables of what was measured, and the document that holds them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .measure import ROOT, Record

RESULTS = ROOT / "bench" / "results.json"
DOCUMENT = ROOT / "docs" / "bench.md"

NONE = "\N{EN DASH}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table that also reads well as plain text; all columns but the first are aligned right."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]

    def written(line: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (width + 2) if column == 0 else "-" * (width + 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([written(lines[0]), f"|{'|'.join(rule)}|", *(written(line) for line in lines[1:])])


def count(value: Any) -> str:
    """A number of things, with its thousands apart."""
    return NONE if value is None else f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")


def duration(seconds: Any) -> str:
    """A time, in the unit that suits it, with two digits that mean something."""
    if seconds is None:
        return NONE
    if seconds < 0.001:
        return f"{digits(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{digits(seconds * 1e3)} ms"
    return f"{digits(seconds)} s"


def size(octets: Any) -> str:
    """An amount of memory in megabytes."""
    return NONE if octets is None else f"{digits(octets / 1e6)} MB"


def ratio(value: Any, reference: Any) -> str:
    """How many times `reference` is `value`."""
    return NONE if not value or not reference else f"{digits(value / reference)}\N{MULTIPLICATION SIGN}"


def rate(number: Any, seconds: Any) -> str:
    """So many a second, to two digits."""
    if not number or not seconds:
        return NONE
    each = number / seconds
    scale = 10 ** max(len(str(int(each))) - 2, 0)
    return count(round(each / scale) * scale)


def digits(value: float) -> str:
    """Two digits, or all before the point."""
    if value >= 10:
        return count(round(value))
    if value >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2g}"


def keep(results: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Write results, beside those of benchmarks that were not run now."""
    path.write_text(json.dumps(kept(path) | dict(results), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def kept(path: Path = RESULTS) -> dict[str, Any]:
    """All results so far: by benchmark, its `machine` and its `records`."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def renew(text: str, tables: Mapping[str, str]) -> str:
    """The document with each `<!-- NAME -->` … `<!-- end -->` holding the table of that name, where there is one."""

    def replaced(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in tables:
            return match.group(0)
        return f"<!-- {name} -->\n\n{tables[name]}\n\n<!-- end -->"

    places = set(re.findall(r"<!-- (?!end)([\w-]+) -->", text))
    missing = sorted(set(tables) - places)
    if missing:
        raise ValueError(f"the document has no place for {', '.join(missing)}")
    return re.sub(r"<!-- (?!end)([\w-]+) -->\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


def described(machine: Record) -> str:
    """The machine in one line."""
    memory = machine["memory"]
    return f"{machine['processor']}, {machine['cores']} cores, {size(memory)}, {machine['system']}, {machine['python']}"
