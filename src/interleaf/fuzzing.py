"""The command `interleaf fuzz`: random scenarios on one design, and a scenario file for each thing that is found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from interleaf import designs
from interleaf.arguments import Refused
from interleaf.checking import HOLDS, VIOLATED
from interleaf.fuzz.fuzz import Fuzzer, Shrunk, Tally
from interleaf.fuzz.source import text_of
from interleaf.kvm.design import Design
from interleaf.report.matrix import console_for, duration
from interleaf.runtime import ModelError


def fuzz(spec: str, dropped: Sequence[str], seed: int, seconds: float, folder: Path) -> int:
    """Fuzz the design for so many seconds; returns the exit code. Raises Refused."""
    design = _design(spec, dropped)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder} cannot be made: {error.strerror}.") from error
    console = console_for(stderr=False)
    with console_for(stderr=True).status("") as status:
        fuzzer = Fuzzer(design, seed, seconds, lambda tally: status.update(_progress(tally)))
        try:
            for shrunk in fuzzer.run():
                _tell(console, shrunk, _write(folder, shrunk, design, seed))
        except KeyboardInterrupt:
            console.print(Text("stopped by Ctrl-C", style="yellow"))
    tally = fuzzer.tally
    console.print(Text(_summary(tally, design, seed)), soft_wrap=True)
    return VIOLATED if tally.found else HOLDS


def _design(spec: str, dropped: Sequence[str]) -> Design:
    try:
        design = designs.load(spec)
        for rule in dropped:
            design = design.without(rule)
    except ModelError as error:
        raise Refused(str(error)) from error
    return design


def _write(folder: Path, shrunk: Shrunk, design: Design, seed: int) -> Path:
    path = folder / f"random-{seed}-{''.join(letter if letter.isalnum() else '-' for letter in shrunk.rule)}.py"
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
    return f"{text}. That nothing is found proves nothing about scenarios that were not drawn."
