"""How the search grows with tasks, pages, accesses and yields: the same scenarios with other parameters."""

from __future__ import annotations

import functools

from .alone import Job, measured
from .measure import Record, Scale, Unavailable, median
from .programs import HOLE
from .report import count, duration, table

LADDERS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("tasks of the lock benchmark", tuple(("locks", str(tasks), "4") for tasks in (2, 3, 4, 5, 6))),
    ("rounds of the lock benchmark", tuple(("locks", "3", str(rounds)) for rounds in (2, 4, 8, 16))),
    ("pages, and so yields", tuple(("scenario", HOLE, "v6.12", f"pages={pages}") for pages in (1, 2, 3))),
    ("vCPUs", tuple(("scenario", "two-vcpus-fault-same-page", "v6.12", f"vcpus={vcpus}") for vcpus in (1, 2, 3))),
    ("rounds of a vCPU", tuple(("scenario", "unload-reload-storm", "v6.12", f"rounds={n}") for n in (1, 2, 3))),
)
SMALL = (("tasks of the lock benchmark", (("locks", "2", "1"), ("locks", "2", "2"))),)


def run(scale: Scale) -> list[Record]:
    """Climb each ladder until a search does not end within its bounds."""
    records: list[Record] = []
    for ladder, rungs in LADDERS if scale.full else SMALL:
        for words in rungs:
            job = Job(words, states=scale.states, seconds=scale.seconds)
            record: Record
            try:
                record = median(scale.repeats, functools.partial(measured, job))
            except Unavailable as reason:
                record = {"unavailable": str(reason)}
            records.append(record | {"ladder": ladder, "program": " ".join(words)})
            if not record.get("exhaustive"):
                break
    return records


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    rows = []
    for record in records:
        if "unavailable" in record:
            rows.append((str(record["ladder"]), str(record["program"]), "", "", str(record["unavailable"])))
            continue
        time = duration(record["seconds"])
        rows.append(
            (
                str(record["ladder"]),
                str(record["program"]),
                count(record["states"]),
                count(record["transitions"]),
                time if record["exhaustive"] else f"unfinished: {record['stopped']}, {time}",
            )
        )
    return {"growth": table(("what grows", "program", "states", "transitions", "time"), rows)}
