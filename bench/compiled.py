"""What compiling the engine with mypyc would give.

The product is pure Python. Here each module of `runtime` and `explore` is compiled by itself in a throw-away copy,
to see whether it can be compiled and still works there; then all that can be are compiled together, and the lock
benchmark is run on the result.
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path

from . import measure
from .alone import Job, measured
from .measure import ROOT, Record, Scale, Unavailable, median
from .python_peers import scratch
from .report import count, duration, ratio, table

FOLDERS = ("runtime", "explore")
PROBE = (("locks", "2", "2"), ("racy", "2", "2"))
"""What a compiled copy must be able to run, with the same result as the pure one."""


def run(scale: Scale) -> list[Record]:
    """Try each module, compile those that work, and measure the lock benchmark on both engines."""
    expected = [_essence(measured(Job(words))) for words in PROBE]
    modules = sorted(path.relative_to(ROOT / "src") for name in FOLDERS for path in _sources(name))
    if not scale.full:
        modules = [path for path in modules if path.stem == "values"]
    records = [_try(path, expected) for path in modules]
    working = [path for path, record in zip(modules, records, strict=True) if record["works"]]
    try:
        copy = _compile(working)
    except Unavailable as reason:
        return [*records, {"part": "speed", "engine": "compiled", "unavailable": str(reason)}]
    for tasks, rounds in scale.sizes:
        for engine, path in (("pure", ()), ("compiled", (str(copy),))):
            job = Job(("locks", str(tasks), str(rounds)), path=path)
            record = median(scale.repeats, functools.partial(measured, job))
            records.append(record | {"part": "speed", "engine": engine, "size": f"{tasks}x{rounds}"})
    return records


def _sources(folder: str) -> list[Path]:
    return [path for path in (ROOT / "src" / "interleaf" / folder).glob("*.py") if path.stem != "__init__"]


def _essence(record: Record) -> tuple[object, ...]:
    return tuple(record[name] for name in ("states", "transitions", "executions", "found"))


def _try(path: Path, expected: list[tuple[object, ...]]) -> Record:
    """Compile one module in a fresh copy, and run the probe there."""
    record: Record = {"part": "module", "module": path.relative_to("interleaf").as_posix(), "works": False}
    try:
        copy = _compile([path])
        got = [_essence(measured(Job(words, path=(str(copy),)))) for words in PROBE]
    except Unavailable as reason:
        return record | {"why": str(reason)}
    return record | {"works": got == expected, "why": "" if got == expected else f"it gives {got}, not {expected}"}


def _compile(modules: list[Path]) -> Path:
    """A fresh copy of the project with these modules compiled. Raises Unavailable if that fails."""
    folder = scratch() / "compiled"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "src", folder, ignore=shutil.ignore_patterns("__pycache__"))
    mypyc = Path(sys.executable).parent / "mypyc"
    if not mypyc.exists():
        raise Unavailable("mypyc is not installed")
    measure.run([mypyc, *modules], directory=folder)
    return folder


def tables(records: list[Record]) -> dict[str, str]:
    """The tables of this benchmark, by their place in the document."""
    speed = [record for record in records if record["part"] == "speed" and "unavailable" not in record]
    pure = {record["size"]: record["seconds"] for record in speed if record["engine"] == "pure"}
    modules = [record for record in records if record["part"] == "module"]
    return {
        "compiled-speed": table(
            ("tasks x rounds, engine", "states", "time", "time, pure = 1"),
            [
                (
                    f"{record['size']}, {record['engine']}",
                    count(record["states"]),
                    duration(record["seconds"]),
                    ratio(record["seconds"], pure[record["size"]]),
                )
                for record in speed
            ],
        )
        + "".join(f"\n\nNot available: {record['unavailable']}." for record in records if "unavailable" in record),
        "compiled-modules": table(
            ("module", "compiled"),
            [(str(record["module"]), "works" if record["works"] else str(record["why"])) for record in modules],
        ),
    }
