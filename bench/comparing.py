"""Traces beside the model: how many SPTE changes a second the model is driven at, and its memory by length.

Each workload of a carried kernel is compared a number of times in a row, as one trace, in a process of its own; what it
takes to start Python and to import is left out. For memory, one workload that makes and destroys whole VMs is repeated
more and more often: what grows with the length of the trace shows.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

from .measure import ROOT, Record, Scale, Unavailable, median
from .measure import run as run_command
from .report import NONE, count, duration, rate, size, table
from .tracing import repeated

CARRIED = ROOT / "tests" / "groundtruth" / "6.12" / "icount"
DESIGN = "v6.12"
CHANGE = b" kvm_tdp_mmu_spte_changed:"

RACING = "w08"
"""Two vCPUs at once: another matter, because orders are tried."""

AIM = 10_000
"""SPTE changes a second."""

GROWING = "w11_destroy"

PROGRAM = """\
import json, sys, time
from pathlib import Path
from bench.measure import peak
from interleaf.designs import load
from interleaf.ftrace.compare import compare_trace
began = time.perf_counter()
result = compare_trace(Path(sys.argv[1]), load(sys.argv[2]))
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak": peak(), "events": result.events, "divergent": result.divergent}))
"""


def run(scale: Scale) -> list[Record]:
    """Measure the speed of each workload, and the memory of one by its length."""
    workloads = [path.name.removesuffix(".trace.gz") for path in sorted(CARRIED.glob("*.trace.gz"))]
    chosen = [name for name in workloads if not name.startswith(RACING)]
    if not scale.full:
        chosen = chosen[:1]
    records = [
        median(scale.repeats, functools.partial(_compared, "speed", name, 8 if scale.full else 1)) for name in chosen
    ]
    lengths = (1, 4, 16, 64) if scale.full else (1, 2)
    return records + [_compared("memory", GROWING, times) for times in lengths]


def _compared(part: str, workload: str, times: int) -> Record:
    """Compare a workload, so many times in a row."""
    file = repeated(CARRIED / f"{workload}.trace.gz", times)
    record: Record = {"part": part, "workload": workload, "times": times, "changes": _changes(file)}
    try:
        said: Record = json.loads(run_command([sys.executable, "-c", PROGRAM, file, DESIGN]).output)
    except Unavailable as error:
        return record | {"seconds": None, "unavailable": str(error)}
    if said["divergent"]:
        return record | said | {"unavailable": f"{said['divergent']} events diverge", "seconds": None}
    return record | said


def _changes(file: Path) -> int:
    """SPTE changes in a trace."""
    with file.open("rb") as text:
        return sum(CHANGE in line for line in text)


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    speed = [record for record in records if record["part"] == "speed"]
    compared = [record for record in speed if record.get("seconds")]
    rows = [_row(str(record["workload"]), record) for record in speed]
    together: Record = {
        name: sum(float(record[name] or 0) for record in compared) for name in ("changes", "events", "seconds")
    }
    rows.append(_row("all of them", together))
    lengths = [
        (
            f"{record['workload']}, {record['times']} times",
            count(record.get("events")),
            count(record["changes"]),
            str(record["unavailable"]) if record.get("unavailable") else size(record["peak"]),
        )
        for record in records
        if record["part"] == "memory"
    ]
    return {
        "comparing-speed": table(("workload", "events compared", "SPTE changes", "time", "changes/s"), rows),
        "comparing-memory": table(("trace", "events compared", "SPTE changes", "peak memory"), lengths),
    }


def _row(what: str, record: Record) -> tuple[str, ...]:
    seconds = record.get("seconds")
    return (
        what,
        count(record.get("events")),
        count(record["changes"]),
        str(record["unavailable"]) if record.get("unavailable") else duration(seconds) if seconds else NONE,
        rate(record["changes"], seconds),
    )
