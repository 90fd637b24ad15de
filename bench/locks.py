"""The lock benchmark, on Interleaf and on its peers.

T tasks, each K times: take the lock, v = c[(id+i)&1], c[(id+i)&1] = v+1, give it back; the sum is checked at the
end. In the racy variant the last task skips the lock in its last round. Every tool runs the same program, written
as its own users would write it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from . import python_peers, spin
from .alone import Job, measured
from .measure import Record, Scale, Unavailable, median
from .report import NONE, count, duration, rate, ratio, size, table

OURS = "Interleaf"

SPIN = "SPIN"
SPIN_WHOLE = "SPIN, section as one step by hand"
MUSIL = "musil"
FRONTRUN = "frontrun, DPOR"
FRONTRUN_RANDOM = "frontrun, random"

QUOTED: tuple[Record, ...] = (
    {"tool": "TLC, 1 worker (quoted)", "size": "3x4", "states": 1_025, "seconds": 1.9, "peak": 106_000_000},
    {"tool": "TLC, 1 worker (quoted)", "size": "4x8", "states": 76_545, "seconds": 3.0, "peak": None},
    {"tool": "TLC, 1 worker (quoted)", "size": "5x8", "states": 846_369, "seconds": 13.1, "peak": 1_600_000_000},
)
"""TLC with one worker, the start of its Java machine included, measured once on this kind of machine; not run here."""

HUNTED = 20
"""So many times the executions of frontrun are hunted, to have a time that can be measured."""


def run(scale: Scale) -> list[Record]:
    """Measure all tools at all sizes."""
    records: list[Record] = []
    for tasks, rounds in scale.sizes:
        records += _exhaustive(scale, tasks, rounds)
    tasks, rounds = scale.sizes[0]
    records += _racy(scale, tasks, rounds)
    records += _rates(scale, tasks, rounds)
    return records


def _exhaustive(scale: Scale, tasks: int, rounds: int) -> list[Record]:
    words = (str(tasks), str(rounds))
    named: list[tuple[str, Callable[[], Record]]] = [
        (OURS, lambda: measured(Job(("locks", *words)))),
        (SPIN, lambda: spin.verify("locks.pml", {"T": tasks, "K": rounds})),
        (SPIN_WHOLE, lambda: spin.verify("locks.pml", {"T": tasks, "K": rounds, "WHOLE": None})),
        (MUSIL, lambda: python_peers.drive("musil", *words, "safe")),
    ]
    return [tried("safe", tool, f"{tasks}x{rounds}", scale, measure) for tool, measure in named]


def _racy(scale: Scale, tasks: int, rounds: int) -> list[Record]:
    words = (str(tasks), str(rounds))
    frontrun = functools.partial(python_peers.drive, "frontrun", *words, "racy")
    named: list[tuple[str, Callable[[], Record]]] = [
        (OURS, lambda: measured(Job(("racy", *words), first=True))),
        (SPIN, lambda: spin.verify("locks.pml", {"T": tasks, "K": rounds, "RACY": None})),
        (MUSIL, lambda: python_peers.drive("musil", *words, "racy")),
        (FRONTRUN, lambda: frontrun("dpor", 10_000)),
        (FRONTRUN_RANDOM, lambda: frontrun("random", 10_000)),
    ]
    return [tried("racy", tool, f"{tasks}x{rounds}", scale, measure) for tool, measure in named]


def _rates(scale: Scale, tasks: int, rounds: int) -> list[Record]:
    """Whole executions of the safe program, from its start to its end, as many as the scale says."""
    words = (str(tasks), str(rounds))
    executions = scale.executions
    frontrun = functools.partial(python_peers.drive, "frontrun", *words, "safe")
    named: list[tuple[str, Callable[[], Record]]] = [
        (
            f"{OURS}, random schedules",
            lambda: measured(Job(("locks", *words), engine="hunt", executions=HUNTED * executions)),
        ),
        (
            f"{OURS}, step engine",
            lambda: measured(Job(("locks", *words), engine="steps", executions=HUNTED * executions)),
        ),
        (FRONTRUN, lambda: frontrun("dpor", executions)),
        (FRONTRUN_RANDOM, lambda: frontrun("random", executions)),
    ]
    return [tried("rate", tool, f"{tasks}x{rounds}", scale, measure) for tool, measure in named]


def tried(part: str, tool: str, size: str, scale: Scale, measure: Callable[[], Record]) -> Record:
    """The median run of a tool, or why there is none."""
    try:
        record = median(scale.repeats, measure)
    except Unavailable as reason:
        record = {"unavailable": str(reason)}
    return record | {"part": part, "tool": tool, "size": size}


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    safe = [record for record in records if record["part"] == "safe"]
    sizes = list(dict.fromkeys(record["size"] for record in safe))
    safe += [record for record in QUOTED if record["size"] in sizes]
    safe.sort(key=lambda record: sizes.index(record["size"]))
    ours = {record["size"]: record.get("seconds") for record in safe if record["tool"] == OURS}
    return {
        "locks-safe": table(
            ("tasks x rounds, tool", "states", "transitions", "time", "states/s", "peak memory", "time, Interleaf = 1"),
            [
                (
                    f"{record['size']}, {record['tool']}",
                    count(record.get("states")),
                    count(record.get("transitions")),
                    duration(record.get("seconds")),
                    rate(record.get("states"), record.get("seconds")),
                    size(record.get("peak")),
                    ratio(record.get("seconds"), ours.get(record["size"])),
                )
                for record in safe
                if "unavailable" not in record
            ],
        )
        + missing(safe),
        "locks-racy": _racy_table([record for record in records if record["part"] == "racy"]),
        "locks-rate": _rate_table([record for record in records if record["part"] == "rate"]),
    }


def _racy_table(records: list[Record]) -> str:
    def explored(record: Record) -> str:
        name = "states" if record.get("states") else "executions"
        return f"{count(record[name])} {name}"

    def outcome(record: Record) -> str:
        return duration(record["seconds"]) if record.get("found") or record.get("errors") else "found nothing"

    return table(
        ("tool", "explored", "time to the first bug"),
        [(str(record["tool"]), explored(record), outcome(record)) for record in records if "unavailable" not in record],
    ) + missing(records)


def _rate_table(records: list[Record]) -> str:
    reference = next((record for record in records if record["tool"] == FRONTRUN), {})

    def each(record: Record) -> float | None:
        executions, seconds = record.get("executions"), record.get("seconds")
        return float(executions) / float(seconds) if executions and seconds else None

    return table(
        ("tool", "executions", "executions/s", "rate, frontrun = 1"),
        [
            (
                str(record["tool"]),
                count(record["executions"]),
                rate(record["executions"], record["seconds"]),
                ratio(each(record), each(reference)) if reference else NONE,
            )
            for record in records
            if "unavailable" not in record
        ],
    ) + missing(records)


def missing(records: list[Record]) -> str:
    """A line for each tool that could not be measured."""
    absent = {str(record["tool"]): str(record["unavailable"]) for record in records if "unavailable" in record}
    return "".join(f"\n\nNot available: {tool}, because {reason}." for tool, reason in absent.items())
