"""Compare both engines on every cell of the matrix: each scenario of the library on each design.

    python -m tests.oracle.matrix [SECONDS [WHAT...]]

Each cell at its default size, SECONDS (60) for the search over steps; WHAT are parts of "scenario/design" that choose
cells. Prints a line a cell, and ends with 1 if the engines disagree on any. Where the search over steps comes to its
end, both must have found the same violations and the same final states. Where it does not, the search over states
must have found whatever it found, and it must have found a violation of each rule that the search over states found
violated.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from interleaf import designs, scenarios
from interleaf.explore.outcome import Bounds, Outcome
from interleaf.explore.states import StateSearch
from interleaf.explore.steps import StepSearch

from .compare import Collector, Findings, findings, run


@dataclass(frozen=True)
class Cell:
    """A scenario of the library on a design, at its default size or at its least."""

    scenario: str
    design: str
    least: bool = False

    def setup(self) -> functools.partial[None]:
        scenario = scenarios.load(self.scenario)
        sizes = {parameter.name: parameter.minimum for parameter in scenario.parameters} if self.least else {}
        return functools.partial(scenario.setup, designs.load(self.design), **sizes)

    def __str__(self) -> str:
        return f"{self.scenario}/{self.design}"


@dataclass(frozen=True)
class Comparison:
    """What both engines say of a cell."""

    states: Outcome
    steps: Outcome
    by_states: Findings
    by_steps: Findings

    def disagreement(self) -> str:
        """What must not be, in words; empty if the engines agree."""
        if not self.states.exhaustive:
            return f"the search over states is not exhaustive: {self.states.stopped}"
        if self.steps.exhaustive:
            return "; ".join(self.by_states.differences(self.by_steps))
        for what in ("finals", "violations", "deadlocks"):
            more = getattr(self.by_steps, what) - getattr(self.by_states, what)
            if more:
                return f"only the search over steps has found these {what}: {sorted(map(str, more))}"
        missed = rules(self.states) - rules(self.steps)
        return f"the search over steps has not found {', '.join(sorted(missed))}" if missed else ""


def rules(outcome: Outcome) -> set[str]:
    """The rules that a search found violated, but for what only the order of events shows, not the events."""
    return {found.violation.rule for found in outcome.found if not found.race}


def cells(least: bool = False) -> Iterator[Cell]:
    """The matrix."""
    for scenario in scenarios.library():
        for design in designs.library():
            yield Cell(scenario, design, least)


def compare(cell: Cell, bounds: Bounds, of_states: Bounds | None = None) -> Comparison:
    """Run the search over steps to its end or to one of `bounds`, and the search over states to one `of_states`."""
    setup = cell.setup()
    by_states, by_steps = Collector(), Collector()
    states = run(StateSearch(setup, final=by_states, bounds=of_states))
    steps = run(StepSearch(setup, final=by_steps, bounds=bounds))
    return Comparison(states, steps, _findings(states, by_states), _findings(steps, by_steps))


def _findings(outcome: Outcome, collector: Collector) -> Findings:
    """What can be compared: RCU's own state cannot, since tasks are numbered in the order in which they first came."""
    return findings(
        outcome,
        {
            frozenset((label, value) for label, value in final if not label.startswith("RcuState."))
            for final in collector.finals
        },
    )


def main(arguments: list[str]) -> int:
    """Compare the chosen cells."""
    seconds = float(arguments[0]) if arguments else 60.0
    wrong = ended = number = 0
    for cell in cells():
        if arguments[1:] and not any(part in str(cell) for part in arguments[1:]):
            continue
        began = time.monotonic()
        comparison = compare(cell, Bounds(seconds=seconds))
        difference = comparison.disagreement()
        number += 1
        wrong += bool(difference)
        ended += comparison.steps.exhaustive
        print(
            f"{cell!s:55} {'agree' if not difference else 'DISAGREE':8} "
            f"{'on all' if comparison.steps.exhaustive else 'so far':6} {comparison.states.states:7,} states, "
            f"{comparison.steps.executions:7,} executions, {time.monotonic() - began:5.1f} s  "
            f"{' '.join(sorted(rules(comparison.states))) or 'holds'}  {difference}".rstrip(),
            flush=True,
        )
    print(f"{number} cells, {ended} searched to the end by both engines, {wrong} disagreements")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
