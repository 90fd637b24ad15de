"""What a search found: findings, the verdict on each property, and how far the search went.

Every engine fills an `Outcome`; only `verdict.py` turns one into a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from interleaf.runtime.execution import Schedule
from interleaf.runtime.findings import Violation

DEADLOCK = "deadlock"
LIVELOCK = "livelock"
STARVATION = "starvation"
DATA_RACE = "data-race"


@dataclass(frozen=True, slots=True)
class Found:
    """A violation and the schedule that leads to it, as steps of a `runtime.Execution`."""

    violation: Violation
    schedule: Schedule
    executions: int = 0
    """How many executions the search had made when it found this, this one included."""
    race: bool = False
    """Two steps that nothing orders were seen side by side; the schedule ends with the two."""

    @property
    def signature(self) -> tuple[str, str]:
        return self.violation.signature


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits that the user sets; None is no limit. A search that meets one is not exhaustive."""

    states: int | None = None
    executions: int | None = None
    seconds: float | None = None
    preemptions: int | None = None
    steps: int = 10_000
    """Scheduled steps in one execution."""

    def given(self) -> dict[str, float]:
        """The bounds in force, for a verdict to state."""
        named = {"states": self.states, "executions": self.executions, "seconds": self.seconds}
        named["preemptions"] = self.preemptions
        return {name: limit for name, limit in named.items() if limit is not None}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running search is."""

    states: int
    """0 in a search that does not tell states apart."""
    transitions: int
    executions: int
    depth: int
    found: int
    fraction: float
    """Estimated share of the work that is done: the weight of the finished branches on the current path."""


class Stopped(Exception):
    """Ends a search before its time, with what it has found; the text says why.

    A bound that is met raises it, and so may whoever follows the search: from `progress`, or at any other moment.
    """


def finished(branches: Iterable[tuple[int, int]]) -> float:
    """Share of a search tree that is finished, each branch of a state counted as equally large (Knuth 1975).

    `branches` tells of each state on the current path how many branches it has, and how many are not begun.
    """
    share = 1.0
    done = 0.0
    for size, left in branches:
        if size == 0:
            break
        done += share * max(size - left - 1, 0) / size
        share /= size
    return min(done, 1.0)


@dataclass(slots=True)
class Outcome:
    """The result of one search."""

    engine: str
    found: list[Found] = field(default_factory=list)
    states: int = 0
    transitions: int = 0
    executions: int = 0
    depth: int = 0
    seconds: float = 0.0
    exhaustive: bool = False
    stopped: str = ""
    """Why it is not exhaustive, in words; empty if it is."""
    exercised: dict[str, int] = field(default_factory=dict)
    """How often each property had the chance to fail."""
    measured: dict[tuple[str, str], int] = field(default_factory=dict)
    """The largest value of each quantity that the model measures, by its name and the task's."""
    restarts: int = 0
    """Searches begun again because a lock discipline did not hold."""
    reductions: tuple[str, ...] = ()
    audits: int = 0
    """Executions that were run again without automata, and merges that were compared."""

    def add(self, found: Found) -> bool:
        """Keep a violation unless one of the same signature is known; True if it is new."""
        if any(known.signature == found.signature for known in self.found):
            return False
        self.found.append(found)
        return True
