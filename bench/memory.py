"""Memory: what a visited state costs beyond the fixed cost, and whether the step engine stays flat.

The resident memory of two searches of different size, each in its own process, gives a line: its slope is the cost
of a state. The step engine keeps no states, so its memory is watched while it runs.
"""

from __future__ import annotations

import functools

from .alone import Job, command, measured
from .measure import Record, Scale, median, watch
from .report import NONE, count, size, table

AIM_STATE = 150
AIM_FIXED = 150_000_000
"""The aims: bytes a visited state, beyond so many bytes."""

LARGE = (6, 8)
"""Size of a search beside whose states all else is small."""

STEADY = ("locks", "5", "8")
PER_SECOND = 10


def run(scale: Scale) -> list[Record]:
    """Measure both engines."""
    records = []
    for tasks, rounds in (*scale.sizes, LARGE) if scale.full else scale.sizes:
        job = Job(("locks", str(tasks), str(rounds)))
        record = median(scale.repeats, functools.partial(measured, job), by="peak")
        records.append(record | {"part": "states", "program": f"lock benchmark, {tasks}x{rounds}"})
    records.append(_steady(scale))
    return records


def _steady(scale: Scale) -> Record:
    """Resident memory of the step engine over time, after its first tenth."""
    seen = watch(command(Job(STEADY, engine="steps", seconds=scale.steady)), 1 / PER_SECOND)
    later = seen[len(seen) // 4 :]
    half = len(later) // 2
    return {
        "part": "steps",
        "program": "lock benchmark, {}x{}".format(*STEADY[1:]),
        "samples": len(later),
        "first": max(octets for _, octets in later[:half]),
        "second": max(octets for _, octets in later[half:]),
        "seconds": later[-1][0],
    }


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    states = sorted((record for record in records if record["part"] == "states"), key=_visited)
    rows = []
    for smaller, record in zip([None, *states], states, strict=False):
        slope = NONE
        if smaller is not None and _visited(record) > _visited(smaller):
            slope = f"{(_peak(record) - _peak(smaller)) / (_visited(record) - _visited(smaller)):.0f}"
        rows.append((str(record["program"]), count(record["states"]), size(record["peak"]), slope))
    steady = next(record for record in records if record["part"] == "steps")
    return {
        "memory-states": table(("program", "states", "peak memory", "bytes a state more than the row above"), rows),
        "memory-steps": (
            f"Step engine, {steady['program']}, watched for {float(steady['seconds'] or 0):.0f} s: "
            f"at most {size(steady['first'])} in the first half, {size(steady['second'])} in the second."
        ),
    }


def _visited(record: Record) -> int:
    return int(record["states"] or 0)


def _peak(record: Record) -> int:
    return int(record["peak"] or 0)
