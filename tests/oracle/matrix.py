"""Compare both engines on every cell of the matrix: each scenario of the library on each design.

    python -m tests.oracle.matrix [SECONDS [WHAT...]]

Each cell at its default size, SECONDS (60) for a search over steps; WHAT are parts of "scenario/design" that choose
cells. Prints a line a cell, and ends with 1 if the engines disagree on any. Where the search over steps comes to its
end, both must have found the same violations and the same final states, and measured the same. Where it does not, it
is begun again as long as there is something left to find, each time with other executions first: at random, and in the
end along the story of what is left to find, up to its last switch between tasks. The search over states must have found
whatever any of them has found, and together they must have found a violation of each rule that the search over states
has found violated.
"""

from __future__ import annotations

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from interleaf import designs, scenarios
from interleaf.explore.branches import Frame
from interleaf.explore.outcome import Bounds, Outcome
from interleaf.explore.states import StateSearch
from interleaf.explore.steps import Final, StepSearch
from interleaf.runtime.execution import Schedule

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


AGAIN = 4
"""A search over steps that has not come to its end is begun again so often, at most."""


class Elsewhere(StepSearch):
    """A search over steps that begins with executions chosen at random, and so looks elsewhere first."""

    def _first(self, frame: Frame, able: list[int]) -> int:
        if frame.last in able and self._rng.random() < 0.9:
            return frame.last
        return self._rng.choice(able)


class Along(StepSearch):
    """A search over steps that begins with the executions that begin as a schedule does, up to its last switch."""

    def __init__(self, setup: Callable[[], object], schedule: Schedule, *, final: Final, bounds: Bounds) -> None:
        super().__init__(setup, final=final, bounds=bounds)
        tasks = [move.task for move in schedule]
        while tasks and tasks[-1] == schedule[-1].task:
            tasks.pop()
        self._tasks = tasks

    def _first(self, frame: Frame, able: list[int]) -> int:
        made = Counter(event.node.task.name for event in self.path.events for _ in event.moves)
        names = {node.task.name: task for task in able if (node := frame.snapshot.nodes[task]) is not None}
        for name in self._tasks:
            if made[name]:
                made[name] -= 1
            elif name in names:
                return names[name]
        return super()._first(frame, able)


@dataclass(frozen=True)
class Comparison:
    """What both engines say of a cell."""

    states: Outcome
    steps: tuple[Outcome, ...]
    """Of the searches over steps: if any came to its end, the last one did."""
    by_states: Findings
    by_steps: Findings

    @property
    def whole(self) -> bool:
        """Have both searches come to their end?"""
        return self.states.exhaustive and self.steps[-1].exhaustive

    def disagreement(self) -> str:
        """What cannot be if both engines are right, in words; empty if they agree as far as they have come."""
        words = []
        if self.states.exhaustive:
            words += [f"only the search over steps finds: {more}" for more in _beyond(self.by_steps, self.by_states)]
        if self.steps[-1].exhaustive:
            words += [f"only the search over states finds: {more}" for more in _beyond(self.by_states, self.by_steps)]
        if self.whole and self.states.measured != self.steps[-1].measured:
            words.append(f"they measure {self.states.measured} and {self.steps[-1].measured}")
        missed = rules(self.states) - rules(*self.steps)
        if missed and not words:
            words.append(f"the search over steps does not find: {', '.join(sorted(missed))}")
        return "; ".join(words)


def _beyond(found: Findings, other: Findings) -> list[str]:
    """What `found` has and `other` has not."""
    pairs = [(getattr(found, what), getattr(other, what)) for what in ("finals", "violations", "deadlocks")]
    return [str(sorted(map(str, mine - theirs))) for mine, theirs in pairs if mine - theirs]


def rules(*outcomes: Outcome) -> set[str]:
    """The rules that were found violated, but for what only the order of events shows, not the events."""
    return {found.violation.rule for outcome in outcomes for found in outcome.found if not found.race}


def cells(least: bool = False) -> Iterator[Cell]:
    """The matrix."""
    for scenario in scenarios.library():
        for design in designs.library():
            yield Cell(scenario, design, least)


def compare(cell: Cell, bounds: Bounds, again: Bounds, of_states: Bounds | None = None) -> Comparison:
    """Search over states to the end, or to one `of_states`; over steps to the end or one of the `bounds`, and then
    `again` and again, until all is found that the search over states has found.
    """
    setup = cell.setup()
    collector, theirs = Collector(), Collector()
    states = run(StateSearch(setup, final=collector, bounds=of_states))
    steps = [run(StepSearch(setup, final=theirs, bounds=bounds))]
    while not steps[-1].exhaustive and len(steps) <= AGAIN and rules(states) - rules(*steps):
        steps.append(run(Elsewhere(setup, final=theirs, bounds=again, seed=len(steps))))
    for found in states.found:
        if not steps[-1].exhaustive and found.violation.rule in rules(states) - rules(*steps):
            steps.append(run(Along(setup, found.schedule, final=theirs, bounds=again)))
    by_steps = [_findings(outcome, theirs) for outcome in steps]
    return Comparison(
        states,
        tuple(steps),
        _findings(states, collector),
        Findings(
            by_steps[0].finals,
            frozenset().union(*(found.violations for found in by_steps)),
            frozenset().union(*(found.deadlocks for found in by_steps)),
        ),
    )


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
        comparison = compare(cell, Bounds(seconds=seconds), Bounds(seconds=seconds))
        difference = comparison.disagreement()
        number += 1
        wrong += bool(difference)
        ended += comparison.whole
        print(
            f"{cell!s:55} {'agree' if not difference else 'DISAGREE':8} "
            f"{'on all' if comparison.whole else 'so far':6} {comparison.states.states:7,} states, "
            f"{sum(steps.executions for steps in comparison.steps):7,} executions, {time.monotonic() - began:5.1f} s  "
            f"{' '.join(sorted(rules(comparison.states))) or 'holds'}  {difference}".rstrip(),
            flush=True,
        )
    print(f"{number} cells, {ended} searched to the end by both engines, {wrong} disagreements")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
