"""Traces: how many events a second are read, fitted together, and summarised, beside grep and zgrep on the same file.

The file is a carried trace of a real kernel (two vCPUs that race to build the same tables, w08e) a number of times in
a row, as plain text and compressed. Each run is a process of its own, so that its memory counts; a repeated trace is
no single VM's life, so what is fitted together is each repetition by itself.
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
ZGREP = "zgrep -c, compressed"
READING = "reading"
READING_COMPRESSED = "reading, compressed"

PROGRAMS = {
    READING: "for event in Trace(path): pass",
    READING_COMPRESSED: "for event in Trace(path): pass",
    "reading, and fitting together": "known = Reconstruction()\nfor event in Trace(path): known.feed(event)",
    "interleaf trace summary, all of it": "summarise(path, Path('/dev/null'), Path('/dev/null'), None, False)",
}

PRELUDE = """\
import sys
from pathlib import Path
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.tracing import summarise
from bench.measure import peak
path = Path(sys.argv[1])
"""

EPILOGUE = "\nprint(peak())"


def run(scale: Scale) -> list[Record]:
    """Measure all of them on the same file."""
    times = 8 if scale.full else 1
    long, once = repeated(SOURCE, times), repeated(SOURCE, 1)
    compressed = repeated(SOURCE, times, compress=True)
    many, few = _lines(long), _lines(once)
    records = [
        median(scale.repeats, functools.partial(_grep, GREP, long, many)),
        median(scale.repeats, functools.partial(_grep, ZGREP, compressed, many)),
    ]
    for what, program in PROGRAMS.items():
        # fitting together is measured on one life of a VM, reading on a long file
        file = {READING: long, READING_COMPRESSED: compressed}.get(what, once)
        lines = few if file is once else many
        records.append(median(scale.repeats, functools.partial(_ours, what, program, file, lines)))
    return records


def repeated(trace: Path, times: int, *, compress: bool = False) -> Path:
    """A carried trace, so many times in a row, as plain text or compressed."""
    SCRATCH.mkdir(exist_ok=True)
    file = SCRATCH / f"{trace.name.removesuffix('.trace.gz')}-{times}.txt{'.gz' if compress else ''}"
    if not file.exists():
        text = gzip.decompress(trace.read_bytes())
        part = file.with_suffix(".part")
        with gzip.open(part, "wb") if compress else part.open("wb") as output:
            for _ in range(times):
                output.write(text)
        part.replace(file)
    return file


def _lines(file: Path) -> int:
    """Lines of a file. It is not held in memory, which would count as that of the processes started afterwards."""
    with file.open("rb") as text:
        return sum(1 for _ in text)


def _grep(what: str, file: Path, lines: int) -> Record:
    record: Record = {"what": what, "lines": lines}
    name = what.partition(" ")[0]
    program = shutil.which(name)
    if program is None:
        return record | {"unavailable": f"there is no {name}", "seconds": None}
    return record | {"seconds": run_command([program, "-c", "kvm_tdp_mmu_spte_changed", file]).seconds}


def _ours(what: str, program: str, file: Path, lines: int) -> Record:
    """Without the time that Python and the imports take."""
    try:
        empty = run_command([sys.executable, "-c", PRELUDE, file])
        ran = run_command([sys.executable, "-c", PRELUDE + program + EPILOGUE, file])
    except Unavailable as error:
        return {"what": what, "lines": lines, "seconds": None, "unavailable": str(error)}
    return {"what": what, "lines": lines, "seconds": ran.seconds - empty.seconds, "peak": int(ran.output.split()[-1])}


def tables(records: list[Record]) -> dict[str, str]:
    """The table of this benchmark, by its place in the document."""
    peers = {name: _each(next((record for record in records if record["what"] == name), {})) for name in (GREP, ZGREP)}
    rows = [
        (
            str(record["what"]),
            count(record["lines"]),
            str(record["unavailable"]) if record.get("unavailable") else duration(record["seconds"]),
            NONE if not (each := _each(record)) else count(1 / each),
            ratio(each, peers[ZGREP if record["what"] in (ZGREP, READING_COMPRESSED) else GREP]),
            size(record.get("peak")),
        )
        for record in records
    ]
    return {
        "tracing-speed": table(
            ("what", "events", "time", "events/s", "time of an event, grep or zgrep = 1", "peak"), rows
        )
    }


def _each(record: Record) -> float | None:
    """Seconds for one event."""
    seconds, lines = record.get("seconds"), record.get("lines")
    return float(seconds) / float(lines) if seconds and lines else None


if __name__ == "__main__":
    print(tables(run(FULL))["tracing-speed"])
