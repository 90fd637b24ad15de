"""Traces: how many events a second are read, fitted together, and summarised, beside `grep -c` on the same file.

The file is a carried trace of a real kernel (two vCPUs that race to build the same tables, w08e) a number of times in
a row, as plain text. Each run is a process of its own, so that its memory counts; a repeated trace is no single VM's
life, so what is fitted together is each repetition by itself.
"""

from __future__ import annotations

import functools
import gzip
import shutil
import sys
from pathlib import Path

from .measure import FULL, ROOT, SCRATCH, Record, Scale, Unavailable, median
from .measure import run as run_command
from .report import NONE, count, duration, ratio, size, table

SOURCE = ROOT / "tests" / "groundtruth" / "6.12" / "runA" / "w08e_race_fresh.trace.gz"

AIM = 300_000
"""Events a second that reading aims at, on one core."""

GREP = "grep -c"

PROGRAMS = {
    "reading": "for event in Trace(path): pass",
    "reading, and fitting together": "known = Reconstruction()\nfor event in Trace(path): known.feed(event)",
    "interleaf trace summary, all of it": "summarise(path, Path('/dev/null'), Path('/dev/null'), None, False)",
}

PRELUDE = """\
import sys
from pathlib import Path
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.tracing import summarise
path = Path(sys.argv[1])
"""


def run(scale: Scale) -> list[Record]:
    """Measure all of them on the same file."""
    times = 8 if scale.full else 1
    file = _long_trace(times)
    lines = _lines(file)
    records = [median(scale.repeats, functools.partial(_grep, file, lines))]
    for what, program in PROGRAMS.items():
        # fitting together is measured on one life of a VM, reading on a long file
        chosen = file if what == "reading" else _long_trace(1)
        number = _lines(chosen)
        records.append(median(scale.repeats, functools.partial(_ours, what, program, chosen, number)))
    return records


def _long_trace(times: int) -> Path:
    """The carried trace `times` times in a row."""
    SCRATCH.mkdir(exist_ok=True)
    file = SCRATCH / f"trace-{times}.txt"
    if not file.exists():
        text = gzip.decompress(SOURCE.read_bytes())
        part = file.with_suffix(".part")
        with part.open("wb") as output:
            for _ in range(times):
                output.write(text)
        part.replace(file)
    return file


def _lines(file: Path) -> int:
    """Lines of a file. It is not held in memory, which would count as that of the processes started afterwards."""
    with file.open("rb") as text:
        return sum(1 for _ in text)


def _grep(file: Path, lines: int) -> Record:
    record: Record = {"what": GREP, "lines": lines}
    program = shutil.which("grep")
    if program is None:
        return record | {"unavailable": "there is no grep", "seconds": None}
    ran = run_command([program, "-c", "kvm_tdp_mmu_spte_changed", file])
    return record | {"seconds": ran.seconds, "peak": ran.peak}


def _ours(what: str, program: str, file: Path, lines: int) -> Record:
    """Without the time that Python and the imports take."""
    try:
        empty = run_command([sys.executable, "-c", PRELUDE, file])
        ran = run_command([sys.executable, "-c", PRELUDE + program, file])
    except Unavailable as error:
        return {"what": what, "lines": lines, "seconds": None, "unavailable": str(error)}
    return {"what": what, "lines": lines, "seconds": ran.seconds - empty.seconds, "peak": ran.peak}


def tables(records: list[Record]) -> dict[str, str]:
    """The table of this benchmark, by its place in the document."""
    grep = _each(next((record for record in records if record["what"] == GREP), {}))
    rows = [
        (
            str(record["what"]),
            count(record["lines"]),
            str(record["unavailable"]) if record.get("unavailable") else duration(record["seconds"]),
            NONE if not (each := _each(record)) else count(1 / each),
            ratio(_each(record), grep),
            size(record.get("peak")),
        )
        for record in records
    ]
    return {"tracing-speed": table(("what", "events", "time", "events/s", "time of an event, grep = 1", "peak"), rows)}


def _each(record: Record) -> float | None:
    """Seconds for one event."""
    seconds, lines = record.get("seconds"), record.get("lines")
    return float(seconds) / float(lines) if seconds and lines else None


if __name__ == "__main__":
    print(tables(run(FULL))["tracing-speed"])
