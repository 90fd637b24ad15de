"""Draw random scenarios, check each, and shrink what is found, until the time is up.

One round is one run of Hypothesis, with a seed that follows from the user's: it draws scenarios until one violates a
property that no round has found before, and shrinks that one. Each candidate is searched for all of its
interleavings, up to a number of states; a search that meets it has found what it found, and proves nothing.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky

from interleaf.explore.hunt import Hunt
from interleaf.explore.outcome import Bounds, Found, Outcome
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import Design
from interleaf.runtime import ModelError

from .plans import Plan, plans
from .source import load, text_of

ROUND = 100
"""Scenarios that one round draws, if it finds nothing."""

STATES = 1_500
"""States of one search. Most random scenarios have far fewer."""

HUNT = "hunt"
"""Name of the engine that tries random schedules (`Outcome.engine`)."""

EXECUTIONS = 100
"""Random schedules tried before the search, which find most of what is there to be found."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A random scenario that violates a property, as small as it could be made."""

    plan: Plan
    rule: str
    message: str
    seed: int
    """Of the round that has found it."""


@dataclass(slots=True)
class Tally:
    """What has been done so far."""

    scenarios: int = 0
    """Different ones that were checked, the candidates of shrinking included."""
    exhaustive: int = 0
    """Of those, the ones in which all interleavings were explored."""
    states: int = 0
    rounds: int = 0
    seconds: float = 0.0
    unfinished: Counter[str] = field(default_factory=Counter)
    """Why searches were not exhaustive."""
    found: list[Shrunk] = field(default_factory=list)


class _Violated(Exception):
    """A candidate violates a property that is not known yet: for Hypothesis, a failing example."""


class Fuzzer:
    """One design under random scenarios. The same seed draws the same scenarios, round for round."""

    def __init__(self, design: Design, seed: int, seconds: float, progress: Callable[[Tally], None]) -> None:
        self.design = design
        self.tally = Tally()
        self._seed = seed
        self._began = time.monotonic()
        self._until = self._began + seconds
        self._progress = progress
        self._known: set[str] = set()
        """Rules that earlier rounds have found violated."""
        self._results: dict[tuple[Plan, bool], Outcome] = {}

    def run(self) -> Iterator[Shrunk]:
        """Round after round, what is found, until the time is up."""
        while time.monotonic() < self._until:
            seed = self._seed * 1_000_003 + self.tally.rounds
            shrunk = self._round(seed)
            self.tally.rounds += 1
            self._results.clear()
            if shrunk is not None:
                self._known.add(shrunk.rule)
                self.tally.found.append(shrunk)
                yield shrunk
            self._report()

    def _round(self, seed: int) -> Shrunk | None:
        failing: list[tuple[Plan, Found, bool]] = []

        @seeded(seed)
        @settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=tuple(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        )
        @given(plans())
        def attempt(plan: Plan) -> None:
            if time.monotonic() > self._until:
                return
            # while a scenario is shrunk, what finds it is all that has to be tried
            outcome = self._check(plan, bool(failing) and failing[0][2])
            for found in outcome.found:
                rule = found.violation.rule
                if rule not in self._known and rule == (failing[0][1].violation.rule if failing else rule):
                    failing.append((plan, found, outcome.engine == HUNT))
                    raise _Violated

        try:
            attempt()
        except (_Violated, Flaky):
            # Flaky: the time was up in the middle of shrinking
            plan, found, _ = min(failing, key=lambda one: one[0].size)
            return Shrunk(plan, found.violation.rule, found.violation.message, seed)
        return None

    def _check(self, plan: Plan, hunted: bool) -> Outcome:
        known = self._results.get((plan, hunted))
        if known is None:
            known = self._results[plan, hunted] = self._search(plan, hunted)
        return known

    def _search(self, plan: Plan, hunted: bool) -> Outcome:
        """Search one scenario; if `hunted`, by random schedules alone."""
        setup = functools.partial(load(text_of(plan)).setup, self.design)
        tally = self.tally
        tally.scenarios += 1
        left = max(0.1, self._until - time.monotonic())
        hunt = Hunt(setup, Bounds(executions=EXECUTIONS, seconds=left), seed=1)
        try:
            outcome = hunt.run()
        except ModelError as error:
            raise ModelError(f"{error}\nThis is the random scenario:\n\n{text_of(plan)}") from error
        finally:
            hunt.close()
        if not outcome.found and not hunted:
            search = StateSearch(setup, bounds=Bounds(states=STATES, seconds=left))
            try:
                outcome = search.run()
            finally:
                search.close()
            tally.states += outcome.states
            if outcome.exhaustive:
                tally.exhaustive += 1
            else:
                tally.unfinished[outcome.stopped] += 1
        self._report()
        return outcome

    def _report(self) -> None:
        self.tally.seconds = time.monotonic() - self._began
        self._progress(self.tally)
