"""The hole of the patch, in Interleaf and in SPIN.

A memslot is deleted while the host unmaps its memory. With the patch (`off-list`) the host frees a page that is still
mapped; in v6.12 it does not. SPIN's model is hand-written, one statement for each operation of Interleaf's
model; Interleaf's is the model that everything else is checked with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from . import spin
from .alone import Job, interleaf, measured
from .locks import missing, tried
from .measure import Record, Scale
from .measure import run as run_command
from .programs import HOLE
from .report import NONE, count, duration, size, table

MODEL = "memslot_delete_vs_unmap.pml"

TO_FIRST, TO_END = "to the first finding", "everything"


def run(scale: Scale) -> list[Record]:
    """Measure both designs, to the first finding and to the end."""
    records = []
    designs: dict[str, dict[str, int | None]] = {"off-list": {"OFF_LIST": None}, "v6.12": {}}
    for design, macros in designs.items():
        ends = (TO_FIRST, TO_END) if design == "off-list" else (TO_END,)
        for end in ends:
            everything = end == TO_END
            named: list[tuple[str, Callable[[], Record]]] = [
                ("Interleaf", functools.partial(_ours, design, not everything, scale)),
                ("SPIN", functools.partial(spin.verify, MODEL, macros, everything)),
                (
                    "SPIN, sections atomic by hand",
                    functools.partial(spin.verify, MODEL, {**macros, "WHOLE": None}, everything),
                ),
            ]
            records += [tried(end, tool, design, scale, measure) for tool, measure in named]
        if scale.full:
            records.append(tried("process", "interleaf check", design, scale, functools.partial(_process, design)))
    return records


def _ours(design: str, first: bool, scale: Scale) -> Record:
    bound = None if scale.full else scale.states
    return measured(Job(("scenario", HOLE, design), first=first, states=bound))


def _process(design: str) -> Record:
    """The whole command as a user runs it: start, search, verdict, shortest stories, report."""
    ran = run_command([*interleaf(), "check", HOLE, "--design", design], expected=(0, 1))
    return {"seconds": ran.seconds, "peak": ran.peak}


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    rows = []
    for record in records:
        if "unavailable" in record:
            continue
        what = "the whole command" if record["part"] == "process" else str(record["part"])
        made = None if record.get("compile") is None else _sum(record, "generate", "compile")
        rows.append(
            (
                f"{record['size']}, {what}: {record['tool']}",
                count(record.get("states")),
                count(record.get("transitions")),
                duration(record["seconds"]),
                NONE if made is None else duration(made),
                size(record.get("peak")),
            )
        )
    return {
        "hole": table(("design, what: tool", "states", "transitions", "time", "compiling", "peak memory"), rows)
        + missing(records)
    }


def _sum(record: Record, *names: str) -> float:
    return sum(float(record[name] or 0) for name in names)
