"""The summary of a trace as one HTML page that needs nothing else: no script, no network.

The pictures are SVG, drawn from the binned counts of the summary, so that the page stays small however long the trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from .document import Json
from .trace_text import moment, verdict

WIDTH = 960
"""Of the pictures, in their own units."""
MARGIN = 110
"""For the labels on the left."""
LANE = 42
ROW = 9


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of a picture."""

    x: float
    y: float
    width: float
    height: float
    title: str
    strength: float = 1.0
    """Opacity."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of the timeline."""

    name: str
    kind: str
    """For its colour."""
    y: float
    bars: list[Bar]
    most: int


@dataclass(frozen=True, slots=True)
class Label:
    """A word beside a picture."""

    x: float
    y: float
    text: str


def trace_page(document: Json) -> str:
    """The page for a summary."""
    environment = Environment(
        loader=PackageLoader("interleaf.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    clock = document["clock"]
    environment.filters["time"] = lambda value: moment(clock, value)
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["hex"] = lambda value: "?" if value is None else f"{value:x}"
    text, good = verdict(document)
    lanes, ticks, height = _timeline(document)
    return environment.get_template("trace.html.j2").render(
        document=document,
        events=sum(document["events"].values()),
        verdict=text,
        good=good,
        lanes=lanes,
        ticks=ticks,
        timeline_height=height,
        heat=_heat(document),
        width=WIDTH,
        margin=MARGIN,
        lane=LANE,
        row=ROW,
        latency={(found["access"], found["outcome"]): found for found in document["latency"]},
    )


def _timeline(document: Json) -> tuple[list[Lane], list[Label], float]:
    timeline, clock = document["timeline"], document["clock"]
    series: list[tuple[str, str, Sequence[int]]] = [
        *((name, "count", values) for name, values in timeline["counts"].items()),
        *((f"{size} mapped", "mapped", values) for size, values in timeline["mapped"].items()),
    ]
    if not series:
        return [], [], 0
    bins = max(len(values) for _, _, values in series)
    step = (WIDTH - MARGIN) / bins
    lanes = []
    for number, (name, kind, values) in enumerate(series):
        top, most = number * (LANE + 8), max([*values, 1])
        bars = []
        for at, value in enumerate(values):
            if value > 0:
                height = max(1.0, LANE * value / most)
                when = moment(clock, timeline["start"] + at * timeline["width"])
                bars.append(
                    Bar(
                        round(MARGIN + at * step, 2),
                        round(top + LANE - height, 2),
                        round(step, 2),
                        round(height, 2),
                        f"{name}: {value:,} at {when}",
                    )
                )
        lanes.append(Lane(name, kind, top, bars, max([*values, 0])))
    return lanes, _ticks(document, timeline, bins, len(series) * (LANE + 8)), len(series) * (LANE + 8) + 20


def _ticks(document: Json, binned: Json, bins: int, y: float) -> list[Label]:
    """Times below a picture."""
    return [
        Label(
            round(MARGIN + (WIDTH - MARGIN) * share / 4, 2),
            y + 12,
            moment(document["clock"], binned["start"] + bins * binned["width"] * share // 4),
        )
        for share in range(5)
    ]


def _heat(document: Json) -> dict[str, Any] | None:
    heat = document["heat"]
    if not heat["cells"]:
        return None
    clock, gfns = document["clock"], heat["gfns"]
    bins = max(position for position, _, _ in heat["cells"]) + 1
    step = (WIDTH - MARGIN) / bins
    most = max(count for _, _, count in heat["cells"])
    bars = [
        Bar(
            round(MARGIN + position * step, 2),
            number * ROW,
            round(max(step, 1.0), 2),
            ROW - 1,
            f"gfn {gfns[number]:x} to {gfns[number] + heat['pages'] - 1:x}, "
            f"{moment(clock, heat['start'] + position * heat['width'])}: {count:,} changes",
            round(0.15 + 0.85 * math.log1p(count) / math.log1p(most), 2),
        )
        for position, number, count in heat["cells"]
    ]
    every = max(1, -(-len(gfns) // 24))
    labels = [
        Label(MARGIN - 6, number * ROW + ROW - 2, f"{gfn:x}") for number, gfn in enumerate(gfns) if number % every == 0
    ]
    height = len(gfns) * ROW
    return {
        "bars": bars,
        "labels": labels,
        "ticks": _ticks(document, heat, bins, height),
        "height": height + 20,
        "pages": heat["pages"],
    }
