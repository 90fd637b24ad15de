"""SPIN, the model checker that kernel developers know: a model in Promela, compiled to C, compiled to a verifier.

The three parts are timed apart, since only the last one is search: `spin -a`, `gcc -O2`, and the verifier.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .measure import Record, Unavailable, run

MODELS = Path(__file__).parent / "promela"
DEPTH = 10_000
"""Steps in one execution, at most; SPIN makes room for so many."""
TABLE = 22
"""Its hash table has two to the power of so many places: enough for these models, and quickly made."""


def obtain() -> str:
    """The version of SPIN; installs it where that takes no questions. Raises Unavailable if there is none."""
    if shutil.which("gcc") is None:
        raise Unavailable("SPIN needs gcc to compile its verifier, and there is none")
    if shutil.which("spin") is None:
        if os.geteuid() or shutil.which("apt-get") is None:
            raise Unavailable("spin is not installed (Debian package spin)")
        run(["apt-get", "-qq", "install", "-y", "spin"], environment={"DEBIAN_FRONTEND": "noninteractive"})
    version = re.search(r"Version ([\d.]+)", run(["spin", "-V"]).output)
    return version.group(1) if version else "unknown"


def verify(model: str, macros: Mapping[str, int | None], everything: bool = False) -> Record:
    """Verify a model of the folder `promela`, with these preprocessor macros, up to its first error or to its end.

    Raises Unavailable if SPIN is not there, or does not like the model.
    """
    version = obtain()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "model.pml").write_text((MODELS / model).read_text(encoding="utf-8"), encoding="utf-8")
        defined = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in macros.items()]
        generated = run(["spin", "-a", *defined, "model.pml"], directory=directory)
        compiled = run(["gcc", "-O2", "-DSAFETY", "-o", "pan", "pan.c"], directory=directory)
        search = ["-c0"] if everything else []
        verified = run([directory / "pan", f"-m{DEPTH}", f"-w{TABLE}", *search], directory=directory)
    return {
        "version": version,
        **parse(verified.output),
        "seconds": verified.seconds,
        "generate": generated.seconds,
        "compile": compiled.seconds,
    }


def parse(output: str) -> Record:
    """What the verifier says about its search."""

    def number(pattern: str) -> float:
        found = re.search(pattern, output)
        if found is None:
            raise Unavailable(f"SPIN's verifier did not say what was expected ({pattern!r})")
        return float(found.group(1))

    if "max search depth too small" in output:
        raise Unavailable("SPIN's verifier met its depth limit")
    return {
        "states": int(number(r"(\d+(?:e\+\d+)?) states, stored")),
        "transitions": int(number(r"(\d+(?:e\+\d+)?) transitions")),
        "errors": int(number(r"errors: (\d+)")),
        "peak": int(number(r"([\d.]+)\s+total actual memory usage") * 1_000_000),
    }
