"""The command `interleaf fuzz`: random scenarios on one design, and a scenario file for each thing that is found."""

from __future__ import annotations

import functools
import os
import signal
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.text import Text

from interleaf import bugs
from interleaf.arguments import Refused
from interleaf.campaign import end_with_parent
from interleaf.checking import HOLDS, VIOLATED
from interleaf.fuzz.fuzz import Fuzzer, Shrunk, Tally
from interleaf.fuzz.source import text_of
from interleaf.fuzz.trial import settle_in
from interleaf.kvm.design import Design
from interleaf.report.matrix import console_for, duration
from interleaf.runtime import ModelError


def fuzz(spec: str, dropped: Sequence[str], seed: int, seconds: float, workers: int | None, folder: Path) -> int:
    """Fuzz the design for so many seconds; returns the exit code. Raises Refused.

    The result does not depend on how many `workers` there are, but for how far it gets.
    """
    spec = " ".join((spec, *(f"without {rule}" for rule in dropped)))
    try:
        design = bugs.load(spec)
    except ModelError as error:
        raise Refused(str(error)) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder} cannot be made: {error.strerror}.") from error
    console = console_for(stderr=False)
    workers = workers or os.cpu_count() or 1
    before = signal.signal(signal.SIGTERM, _stop)
    with console_for(stderr=True).status("") as status, _pool(spec, workers) as pool:
        fuzzer = Fuzzer(
            design, seed, seconds=seconds, pool=pool, progress=lambda tally: status.update(_progress(tally))
        )
        try:
            for shrunk in fuzzer.run():
                _tell(console, shrunk, _write(folder, shrunk, design, seed, len(fuzzer.tally.found)))
        except KeyboardInterrupt as stop:
            console.print(Text(f"stopped by {str(stop) or 'Ctrl-C'}", style="yellow"))
        except BrokenProcessPool:
            found = f"{len(fuzzer.tally.found)} findings until then"
            raise Refused(f"a process that tried scenarios was killed; {found}. Begin again with this seed.") from None
        finally:
            signal.signal(signal.SIGTERM, before)
    tally = fuzzer.tally
    console.print(Text(_summary(tally, design, seed)), soft_wrap=True)
    return VIOLATED if tally.found else HOLDS


def _stop(_signal: int, _frame: types.FrameType | None) -> None:
    """SIGTERM ends it as Ctrl-C does."""
    raise KeyboardInterrupt("SIGTERM")


def _settle_in(load_design: Callable[[], Design]) -> None:
    """A process that tries scenarios begins."""
    end_with_parent()
    settle_in(load_design)


@contextmanager
def _pool(spec: str, workers: int) -> Iterator[Executor | None]:
    """Processes that try scenarios on the design; None if one is enough."""
    if workers == 1:
        yield None
        return
    load = functools.partial(bugs.load, spec)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _settle_in, (load,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _write(folder: Path, shrunk: Shrunk, design: Design, seed: int, number: int) -> Path:
    rule = "".join(letter if letter.isalnum() else "-" for letter in shrunk.rule)
    path = folder / f"random-{seed}-{number}-{rule}.py"
    note = f"Violates {shrunk.rule} on the design {design.name}: found by `interleaf fuzz --seed {seed}`, and shrunk."
    try:
        path.write_text(text_of(shrunk.plan, note), encoding="utf-8")
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}.") from error
    return path


def _tell(console: Console, shrunk: Shrunk, path: Path) -> None:
    console.print(Text(f"{shrunk.rule}: {shrunk.message}", style="bold red"), soft_wrap=True)
    console.print(Text(f"  the scenario, shrunk: {path}"), soft_wrap=True)


def _progress(tally: Tally) -> str:
    return f"{tally.scenarios:,} random scenarios, {len(tally.found)} findings, {duration(tally.seconds)}"


def _summary(tally: Tally, design: Design, seed: int) -> str:
    text = (
        f"{tally.scenarios:,} random scenarios on {design.name} in {duration(tally.seconds)}, seed {seed}: "
        f"{len(tally.found)} findings; {tally.exhaustive:,} explored to the end ({tally.states:,} states)"
    )
    unfinished = sum(tally.unfinished.values())
    if unfinished:
        text += f", {unfinished:,} not, by a bound"
    return f"{text}. That no more is found proves nothing about scenarios that were not drawn."
