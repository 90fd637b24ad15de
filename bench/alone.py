"""One search of one program, in a process of its own, so that its memory and its speed are its own.

`python -m bench.alone '{"program": ["locks", "3", "4"]}'` prints what it measured as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from .measure import Record, peak, resident, run


@dataclass(frozen=True, slots=True)
class Job:
    """What to search and how."""

    program: tuple[str, ...]
    engine: str = "states"
    """states, steps, bounded (by preemptions), or hunt (whole random executions)."""
    without: tuple[str, ...] = ()
    """Ingredients of the state search that are switched off, by the names of `Options`."""
    first: bool = False
    """Stop at the first finding."""
    states: int | None = None
    executions: int | None = None
    seconds: float | None = None
    preemptions: int | None = None
    path: tuple[str, ...] = ()
    """Folders to import interleaf from, before the installed one."""


def search(job: Job) -> Record:
    """Run the search of a job in this process."""
    from interleaf.explore.hunt import Hunt, RandomWalk
    from interleaf.explore.outcome import Bounds
    from interleaf.explore.states import Options, StateSearch

    from . import programs

    before = resident()
    began = time.perf_counter()
    program = programs.load(job.program)
    bounds = Bounds(states=job.states, executions=job.executions, seconds=job.seconds, preemptions=job.preemptions)
    engine: Any
    if job.engine == "hunt":
        engine = Hunt(program.setup, bounds, 1, strategies=[RandomWalk()], final=program.final, stop_at_first=job.first)
    elif job.engine == "bounded":
        from interleaf.explore.bounded import BoundedSearch

        engine = BoundedSearch(program.setup, bounds, final=program.final)
    elif job.engine == "steps":
        from interleaf.explore.steps import StepSearch

        engine = StepSearch(program.setup, bounds=bounds, final=program.final, stop_at_first=job.first)
    else:
        options = Options(**dict.fromkeys(job.without, False))
        engine = StateSearch(
            program.setup, bounds=bounds, options=options, final=program.final, stop_at_first=job.first
        )
    outcome = engine.run()
    seconds = time.perf_counter() - began
    engine.close()
    return {
        "states": outcome.states,
        "transitions": outcome.transitions,
        "executions": outcome.executions,
        "depth": outcome.depth,
        "seconds": seconds,
        "exhaustive": outcome.exhaustive,
        "stopped": outcome.stopped,
        # all there is, or all there is within the bound on preemptions
        "complete": outcome.exhaustive or outcome.stopped.endswith("preemptions were tried"),
        "found": outcome.found[0].violation.rule if outcome.found else "",
        "findings": len(outcome.found),
        "before": before,
        "peak": peak(),
    }


def command(job: Job) -> list[str]:
    """The command that runs a job in a process of its own, in the project's root."""
    return [sys.executable, "-m", "bench.alone", json.dumps(asdict(job))]


def interleaf() -> list[str]:
    """The words that run the command line of this installation."""
    return [sys.executable, "-m", "interleaf"]


def measured(job: Job) -> Record:
    """Run a job in a process of its own; `process` is the whole time of that process."""
    environment = {"PYTHONPATH": ":".join(job.path)} if job.path else None
    ran = run(command(job), environment=environment)
    record: Record = json.loads(ran.output.splitlines()[-1])
    record["process"] = ran.seconds
    return record


def main(argument: str) -> None:
    given = json.loads(argument)
    for name in ("program", "without", "path"):
        given[name] = tuple(given.get(name, ()))
    print(json.dumps(search(Job(**given))))


if __name__ == "__main__":
    main(sys.argv[1])
