"""Stand-ins for `check.check` that worker processes can import, each doing what the scenario's name says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from interleaf.check import Cell, Finding, Request
from interleaf.explore.outcome import Progress
from interleaf.explore.verdict import Status, Verdict
from interleaf.runtime import ModelError
from interleaf.runtime.execution import Move


def cell(request: Request, status: Status = Status.HOLDS, *found: str, exhaustive: bool = True) -> Cell:
    """An answer with one finding of I1 for each message in `found`."""
    findings = tuple(
        Finding(
            "I1", message, request.scenario, request.design, (), (), (Move("vcpu0"),), 1, 7, "Page0", "0123456789abcdef"
        )
        for message in found
    )
    properties = (("I1", status), ("I7", Status.VACUOUS))
    why = "" if status is not Status.INCOMPLETE else "the bound of 9 states was reached"
    verdict = Verdict(status, why, exhaustive, properties, None)
    return Cell(request, request.scenario, request.design, verdict, findings, 1234, 5678, 90, 12, 0.5)


def by_name(request: Request, progress: Callable[[Progress], None] | None) -> Cell:
    """The answer that the scenario's name asks for."""
    name = request.scenario
    if request.engine == "hunt":
        if "unlucky" in name:
            raise ZeroDivisionError("division by chance")
        found = ("found by chance",) if "lucky" in name else ()
        return cell(request, Status.VIOLATED if found else Status.INCOMPLETE, *found, exhaustive=False)
    if "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "stopped" in name:
        os.kill(os.getpid(), signal.SIGSTOP)
    if "model" in name:
        raise ModelError("hidden mutable state")
    if "raises" in name:
        raise ZeroDivisionError("division by zero")
    if "forever" in name:
        while True:
            time.sleep(0.01)
    if "slow" in name:
        time.sleep(0.3)
    if progress is not None:
        progress(Progress(1, 2, 3, 4, 0, 0.5))
    if "violated" in name:
        return cell(request, Status.VIOLATED, f"violated by {request.design}")
    if "bounded" in name:
        return cell(request, Status.INCOMPLETE, exhaustive=False)
    return replace(cell(request), states=1000 + len(name))
