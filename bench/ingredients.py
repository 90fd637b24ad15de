"""What each ingredient of the state search buys: each switched off in turn, on the same programs.

Known steps and the undo journal make the same search faster; the others make it smaller. The audits are no ingredient,
but what they cost is measured in the same way. A search that meets its bound of states
or time is unfinished, and says how far it came; that is a result too.
"""

from __future__ import annotations

import functools

from .alone import Job, measured
from .measure import Record, Scale, Unavailable, median
from .programs import MEASURED, SMALL
from .report import count, duration, table

INGREDIENTS = {
    "frames": "without call frames (a task's state is its whole history)",
    "sleep": "without sleep sets",
    "locks": "without lock reduction",
    "foresight": "without foresight (a field is contended everywhere or nowhere)",
    "eager": "without eager freeing",
    "known": "without known steps (each is made again in each state)",
    "journal": "without the undo journal (states are reached again from the start)",
    "audit": "without the audits of the search by itself",
}


def run(scale: Scale) -> list[Record]:
    """Measure each program with everything, and without each ingredient."""
    records: list[Record] = []
    for words in MEASURED if scale.full else SMALL:
        for without in ((), *((name,) for name in INGREDIENTS)):
            job = Job(words, without=without, states=scale.states, seconds=scale.seconds)
            record: Record
            try:
                record = median(scale.repeats, functools.partial(measured, job))
            except Unavailable as reason:
                record = {"unavailable": str(reason)}
            records.append(record | {"program": " ".join(words), "without": " ".join(without)})
    return records


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    rows = []
    for record in records:
        name = INGREDIENTS.get(str(record["without"]), "all ingredients")
        if "unavailable" in record:
            rows.append((f"{record['program']}: {name}", "", "", "", str(record["unavailable"])))
            continue
        time = duration(record["seconds"])
        rows.append(
            (
                f"{record['program']}: {name}",
                count(record["states"]),
                count(record["transitions"]),
                count(record["executions"]),
                time if record["exhaustive"] else f"unfinished: {record['stopped']}, {time}",
            )
        )
    return {"ingredients": table(("program", "states", "transitions", "executions", "time"), rows)}
