"""The peers that are Python packages: an environment of their own, and their programs run in it.

musil needs Python 3.12, so the environment is made with the newest Python on this machine.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from .measure import SCRATCH, Record, Unavailable, run

DRIVERS = Path(__file__).parent / "drivers"
PEERS = ("musil", "frontrun")
OLDEST = (3, 12)


@functools.cache
def environment() -> Path:
    """The folder of executables of an environment with the peers. Raises Unavailable if it cannot be made."""
    folder = scratch() / "peers"
    executables = folder / "bin"
    if not (folder / "complete").exists():
        python = _new_python()
        shutil.rmtree(folder, ignore_errors=True)
        run([python, "-m", "venv", folder])
        run([executables / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *PEERS])
        (folder / "complete").touch()
    return executables


def scratch() -> Path:
    """The folder for what must not be committed, made so that git does not see it."""
    SCRATCH.mkdir(exist_ok=True)
    (SCRATCH / ".gitignore").write_text("*\n", encoding="ascii")
    return SCRATCH


def drive(peer: str, *arguments: object) -> Record:
    """Run the driver of a peer; it prints its record as its last line. Raises Unavailable if it cannot run."""
    executables = environment()
    python = executables / "python"
    command: list[str | Path] = [python, DRIVERS / f"{peer}_locks.py", *(str(argument) for argument in arguments)]
    if peer == "frontrun":
        command.insert(0, executables / "frontrun")
    lines = [line for line in run(command).output.splitlines() if line.startswith("{")]
    if not lines:
        raise Unavailable(f"{peer} printed no result")
    record: Record = json.loads(lines[-1])
    return record


def _new_python() -> str:
    for python in _pythons():
        try:
            said = run([python, "-c", "import sys; print(*sys.version_info[:2])"]).output.split()
        except (Unavailable, OSError):
            continue
        if tuple(int(part) for part in said) >= OLDEST:
            return python
    raise Unavailable(f"they need Python {OLDEST[0]}.{OLDEST[1]} or later, and there is none")


def _pythons() -> Iterator[str]:
    for minor in (13, 12):
        found = shutil.which(f"python3.{minor}")
        if found is not None:
            yield found
    yield from sorted(str(path) for path in Path("~/.pyenv/versions").expanduser().glob("3.1[23].*/bin/python"))
