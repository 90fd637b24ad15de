"""The summary of a trace for programs: JSON with a version. The terminal's view and the page are made of the same.

docs/trace.md says what each field means. All times are in the trace's own units (`clock`), and moments count from
the first event on.
"""

from __future__ import annotations

from pathlib import Path

from interleaf import __version__
from interleaf.ftrace.reader import Account
from interleaf.ftrace.series import Heat, Spread, Timeline
from interleaf.ftrace.summary import SIZES, Summary

from .document import Json

SUMMARY_SCHEMA = "interleaf/trace-summary/1"

BUSIEST = 10
"""Ranges of gfns that are named."""


def summary_document(path: Path, summary: Summary) -> Json:
    """All that a summary knows."""
    account, known = summary.account, summary.known
    start = account.first or 0
    return {
        "schema": SUMMARY_SCHEMA,
        "interleaf": __version__,
        "file": str(path),
        "clock": str(account.clock),
        "start": start,
        "duration": account.last - start,
        "paging": known.layout.paging.value if known.layout is not None else None,
        "lines": account.lines,
        "events": dict(account.events.most_common()),
        "troubles": _troubles(account),
        "continuity": {
            "changes": known.changes,
            "not_understood": known.foreign,
            "contradictions": known.contradicted,
            "first_contradictions": [{"line": c.event.line, "text": c.text} for c in known.contradictions[:20]],
            "explained": {str(reason): count for reason, count in known.explained.most_common()},
            "from_the_beginning": not known.unseen,
        },
        "faults": [
            {"access": access, "outcome": outcome, "count": count}
            for (access, outcome), count in summary.faults.most_common()
        ],
        "latency": [
            {"access": access, "outcome": outcome, **_spread(spread)}
            for (access, outcome), spread in sorted(summary.latency.items(), key=lambda item: -item[1].total)
        ],
        "mapped": [
            {"size": _size(level), "now": summary.mapped[level], "most": most}
            for level, most in sorted(summary.most.items())
        ],
        "changes": [
            {"change": change, "level": level, "count": count}
            for (change, level), count in summary.changes.most_common()
        ],
        "zaps": [
            {"cause": cause, "size": _size(level), "count": count}
            for (cause, level), count in summary.zaps.most_common()
        ],
        "refaults": [
            {"cause": cause, "zapped": found.zapped, "refaulted": found.refaulted, **_spread(found.after)}
            for cause, found in sorted(summary.refaults.items(), key=lambda item: -item[1].zapped)
        ],
        "storms": [
            {
                "at": storm.first - start,
                "duration": storm.last - storm.first,
                "task": f"{storm.comm}-{storm.pid}",
                "cause": storm.doing,
                "zaps": storm.zaps,
                "low_gfn": storm.low,
                "high_gfn": storm.high,
            }
            for storm in summary.storms()
        ],
        "stretches": [
            {"doing": doing, **_spread(spread)}
            for doing, spread in sorted(summary.stretches.items(), key=lambda item: -item[1].longest)
        ],
        "roots": {
            "created": summary.roots_created,
            "zap_alls": summary.zap_alls,
            "lives": [
                {
                    "number": root.number,
                    "pfn": root.table.pfn,
                    "created": root.created - start,
                    "invalid": None if root.invalid is None else root.invalid - start,
                    "gone": None if root.gone is None else root.gone - start,
                    "leafs": root.leafs,
                }
                for root in summary.roots
            ],
        },
        "busiest": [
            {
                "gfn": row << summary.busiest.shift,
                "pages": 1 << summary.busiest.shift,
                "slots": summary.slots.slots_in(row << summary.busiest.shift, 1 << summary.busiest.shift),
                "changes": number,
            }
            for row, number in summary.busiest.rows.most_common(BUSIEST)
        ],
        "timeline": _timeline(summary.timeline, start),
        "heat": _heat(summary.heat, start),
    }


def _troubles(account: Account) -> Json:
    return {
        "counts": {str(kind): count for kind, count in account.counts.most_common()},
        "lost_events": account.lost,
        "places": [{"kind": str(found.kind), "line": found.line, "text": found.text} for found in account.troubles],
    }


def _spread(spread: Spread) -> Json:
    return {
        "count": spread.number,
        "median": spread.quantile(0.5),
        "p99": spread.quantile(0.99),
        "longest": spread.longest,
    }


def _timeline(timeline: Timeline, start: int) -> Json:
    last = max([*timeline.counts, *timeline.levels], default=-1)
    names = sorted({name for counter in timeline.counts.values() for name in counter})
    sizes = [size for size in SIZES.values() if any(size in values for values in timeline.levels.values())]
    mapped: dict[str, list[int]] = {size: [] for size in sizes}
    for size in sizes:
        value = 0
        for position in range(last + 1):
            value = timeline.levels.get(position, {}).get(size, value)
            mapped[size].append(value)
    return {
        "start": 0 if timeline.start is None else timeline.start - start,
        "width": timeline.width,
        "counts": {
            name: [timeline.counts[at][name] if at in timeline.counts else 0 for at in range(last + 1)]
            for name in names
        },
        "mapped": mapped,
    }


def _heat(heat: Heat, start: int) -> Json:
    rows = sorted(heat.rows)
    number = {row: index for index, row in enumerate(rows)}
    return {
        "start": 0 if heat.start is None else heat.start - start,
        "width": heat.width,
        "pages": 1 << heat.shift,
        "gfns": [row << heat.shift for row in rows],
        "cells": [[position, number[row], count] for (position, row), count in sorted(heat.cells.items())],
    }


def _size(level: int) -> str:
    return SIZES.get(level, f"level {level}")
