"""The comparison of a trace with the model: JSON with a version, and the same for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from interleaf import __version__
from interleaf.designs import load
from interleaf.designs.kernels import KERNELS, design_of
from interleaf.ftrace.outcome import Result

from .document import Json

COMPARE_SCHEMA = "interleaf/compare/1"

DIFFERENCES = 20
"""Entries of a snapshot that differ and are named."""


def compare_document(path: Path, result: Result, release: str | None) -> Json:
    """All that a comparison has found. `release`: of the kernel that wrote the trace, if that is known."""
    divergences = [
        {
            "line": found.line,
            "event": found.event,
            "reason": found.reason,
            "doing": found.doing,
            "rules": list(found.rules),
            "tables": list(found.tables),
            "before": list(found.before),
        }
        for found in result.divergences
    ]
    return {
        "schema": COMPARE_SCHEMA,
        "interleaf": __version__,
        "file": str(path),
        "design": result.design,
        "kernel": release,
        "kernel_design": None if release is None else design_of(release),
        "events": result.events,
        "matched": result.matched,
        "explained": sum(result.explained.values()),
        "explanations": {str(rule): count for rule, count in result.explained.most_common()},
        "divergent": result.divergent,
        "orders": result.orders,
        "resynchronised": result.resynchronised,
        "gaps": result.gaps,
        "snapshots_equal": result.snapshots_equal,
        "snapshots_different": result.snapshots_different,
        "snapshots": [
            {
                "id": snapshot.number,
                "label": snapshot.label,
                "entries": snapshot.entries,
                "different": len(snapshot.differences),
                "differences": snapshot.differences[:DIFFERENCES],
            }
            for snapshot in result.snapshots
        ],
        "first_divergence": divergences[0] if divergences else None,
        "divergences": divergences,
    }


def print_comparison(console: Console, entry: Json) -> None:
    """Print the answer, the reasons for what was not literally equal, and the first divergence with its context."""

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    line(f"{entry['file']} beside the model of {entry['design']}: {entry['events']:,} events")
    line(f"  matched    {entry['matched']:>9,}")
    line(f"  explained  {entry['explained']:>9,}")
    for rule, count in entry["explanations"].items():
        line(f"             {count:>9,}  {rule}")
    line(f"  divergent  {entry['divergent']:>9,}", "bold red" if entry["divergent"] else "green")
    different = entry["snapshots_different"]
    if entry["snapshots"]:
        line(
            f"  snapshots  {entry['snapshots_equal']:>9,} equal, {different:,} different",
            "bold red" if different else "green",
        )
    for snapshot in entry["snapshots"]:
        for text in snapshot["differences"][:3]:
            line(f"    snapshot {snapshot['id']} ({snapshot['label']}): {text}")
    for gap in entry["gaps"]:
        line(f"  incomplete: {gap}", "yellow")
    first = entry["first_divergence"]
    if first is not None:
        line(f"\nthe first divergence is at line {first['line']:,}: {first['reason']}", "bold")
        for text in first["before"]:
            line(f"    {text}")
        line(f"the model was doing this: {first['doing']}")
        for text in first["tables"]:
            line(f"the entry is, in {text}")
        if first["rules"]:
            line(f"the rules that it asked for last: {', '.join(first['rules'])}")
    if entry["divergent"] or different:
        line(_advice(entry), "bold")


def _advice(entry: Json) -> str:
    """Which design to take for the kernel of a trace."""
    kernel, design = entry["kernel"], entry["kernel_design"]
    if design is not None:
        other = "" if load(design).name == entry["design"] else f", not {entry['design']}"
        return f'the kernel is {kernel}, for which the design is "{design}"{other}'
    known = "; ".join(f'{kernels}: "{kernels.design}"' for kernels in KERNELS)
    unknown = "uname.txt beside the trace would tell the kernel, and so the design"
    return f"{unknown if kernel is None else f'no design is that of the kernel {kernel}'}. By kernel: {known}"
