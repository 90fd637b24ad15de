"""Running something in a process of its own, and what it took.

Times are wall-clock seconds. Machines are noisy: everything is repeated, the median run is kept, and figures are
compared with peers that were measured in the same run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Record: TypeAlias = dict[str, str | int | float | bool | None]
"""One measurement, as it goes to results.json: plain values by name. Memory is in bytes, time in seconds."""

ROOT = Path(__file__).parent.parent
SCRATCH = ROOT / ".bench"
"""Environments of peers, compiled models and throw-away copies; never committed."""


class Unavailable(Exception):
    """A peer cannot be measured on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: everything, or just enough to see that it works."""

    repeats: int
    """Runs of each measurement; the median is kept."""
    sizes: tuple[tuple[int, int], ...]
    """Sizes of the lock benchmark: tasks and rounds."""
    seconds: float
    """Bound on one search that is not expected to end."""
    states: int
    """Bound on the same search, so that it does not fill the memory."""
    executions: int
    """Executions of a tool that would take for ever to run them all."""
    steady: float
    """Seconds for which memory is watched."""
    full: bool = True


FULL = Scale(repeats=3, sizes=((3, 4), (4, 8), (5, 8)), seconds=60, states=300_000, executions=500, steady=20)
TINY = Scale(repeats=1, sizes=((2, 2),), seconds=2, states=500, executions=4, steady=0.4, full=False)


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that has ended."""

    seconds: float
    peak: int
    """Largest resident memory in bytes."""
    output: str


def run(
    command: Sequence[str | Path],
    *,
    directory: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    expected: tuple[int, ...] = (0,),
) -> Ran:
    """Run a command to its end. Raises Unavailable, with what it said, if it ends in another way than `expected`."""
    began = time.perf_counter()
    with subprocess.Popen(
        [str(word) for word in command],
        cwd=directory,
        env=None if environment is None else {**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in expected:
        said = output.strip().splitlines()[-1:] or ["nothing"]
        raise Unavailable(f"{Path(command[0]).name} ended with {process.returncode} and said: {said[0]}")
    return Ran(seconds, usage.ru_maxrss * 1024, output)


def resident(process: int | str = "self") -> int:
    """Resident memory of a process now, in bytes."""
    return _status(process, "VmRSS")


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return _status("self", "VmHWM")


def _status(process: int | str, name: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise Unavailable(f"this system does not tell {name} of a process")


def watch(command: Sequence[str], every: float) -> list[tuple[float, int]]:
    """Run a command and look at its resident memory all `every` seconds: (seconds since the start, bytes)."""
    began = time.perf_counter()
    seen: list[tuple[float, int]] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError, Unavailable):  # it has ended in this very moment
                seen.append((time.perf_counter() - began, resident(process.pid)))
            time.sleep(every)
    if process.returncode:
        raise Unavailable(f"{command[0]} ended with {process.returncode}")
    return seen


ENOUGH = 60.0
"""Seconds after which a measurement is not repeated any more: what takes long varies less."""


def median(repeats: int, measure: Callable[[], Record], by: str = "seconds") -> Record:
    """Measure several times and keep the run with the median of `by`; `runs` is how many there were."""
    began = time.perf_counter()
    runs = [measure()]
    while len(runs) < repeats and time.perf_counter() - began < ENOUGH:
        runs.append(measure())
    runs.sort(key=lambda record: float(record[by] or 0))
    chosen = runs[len(runs) // 2]
    chosen["runs"] = len(runs)
    return chosen


def machine() -> Record:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
