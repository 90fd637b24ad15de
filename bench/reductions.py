"""How the search grows with the conflicts of a scenario, before and after each reduction.

Each column adds one reduction to those of the column before. A column ends at the first size whose search does not end
within the bounds. Beside them are the searches that are bounded by preemptions, for what they still promise there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .alone import Job, measured
from .measure import Record, Scale, Unavailable
from .report import NONE, count, table

STATES = 10_000
"""States of one search at most."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """One scenario at growing sizes."""

    name: str
    """Of its table."""
    scenario: str
    parameter: str
    sizes: tuple[int, ...]

    def program(self, size: int) -> tuple[str, ...]:
        return ("scenario", self.scenario, "v6.12", f"{self.parameter}={size}")


LADDERS = (
    Ladder("vcpus", "two-vcpus-fault-same-page", "vcpus", (1, 2, 3, 4, 5, 6)),
    Ladder("pages", "memslot-delete-vs-unmap", "pages", (1, 2, 4, 8, 16, 32, 64)),
    Ladder("yields", "last-put-vs-unmap", "pages", (1, 2, 3, 4, 5, 6)),
)
SMALL = (Ladder("vcpus", "two-vcpus-fault-same-page", "vcpus", (1,)),)

REDUCTIONS = {
    "none": (),
    "+ locks": ("locks",),
    "+ foresight": ("foresight",),
    "+ sleep sets": ("sleep",),
    "+ call frames": ("frames",),
    "+ eager freeing": ("eager",),
}
"""The ingredients of the state search that each column adds."""

PREEMPTIONS = (0, 1, 2)


def columns() -> dict[str, Job]:
    """What is measured of each size, by its heading; the program is still to be filled in."""
    left = {name for added in REDUCTIONS.values() for name in added}
    jobs = {}
    for heading, added in REDUCTIONS.items():
        left -= set(added)
        jobs[heading] = Job((), without=tuple(sorted(left)), states=STATES)
    for most in PREEMPTIONS:
        heading = f"{most} preemption{'' if most == 1 else 's'}"
        jobs[heading] = Job((), engine="bounded", preemptions=most, states=STATES)
    return jobs


def run(scale: Scale) -> list[Record]:
    """Climb each ladder in each column, until a search does not end."""
    records: list[Record] = []
    for ladder in LADDERS if scale.full else SMALL:
        for heading, job in columns().items():
            for size in ladder.sizes:
                record = _measured(job, ladder.program(size), scale)
                records.append(record | {"ladder": ladder.name, "size": size, "column": heading})
                if not record.get("complete"):
                    break
    return records


def _measured(job: Job, program: tuple[str, ...], scale: Scale) -> Record:
    try:
        return measured(
            Job(
                program,
                engine=job.engine,
                without=job.without,
                states=min(STATES, scale.states),
                seconds=scale.seconds,
                preemptions=job.preemptions,
            )
        )
    except Unavailable as reason:
        return {"unavailable": str(reason)}


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    made = {}
    for ladder in LADDERS:
        cells = {
            (record["size"], record["column"]): _cell(record) for record in records if record["ladder"] == ladder.name
        }
        headings = tuple(columns())
        rows = [(str(size), *(cells.get((size, heading), NONE) for heading in headings)) for size in ladder.sizes]
        made[f"reductions-{ladder.name}"] = table((ladder.name, *headings), rows)
    return made


def _cell(record: Record) -> str:
    if "unavailable" in record:
        return str(record["unavailable"])
    return f"{'' if record['complete'] else '> '}{count(record['executions'])} / {count(record['states'])}"
