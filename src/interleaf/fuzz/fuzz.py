"""Draw random scenarios, check each, and shrink what is found, until the time is up.

One round is one run of Hypothesis, with a seed that follows from the user's. It draws scenarios, which are tried in
their order, or by several processes at once: the first one that shows something new is the same. Hypothesis then draws
the same again up to that one, and shrinks it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky

from interleaf.kvm.design import Design

from .plans import Plan, plans
from .trial import Trial, attempt, attempt_here

ROUND = 50
"""Scenarios that one round draws."""

CANDIDATES = 150
"""Smaller scenarios that are tried to shrink one."""

OF_ONE_RULE = 3
"""Different scenarios that show a violation of the same rule, after which it is not looked for any more."""

AHEAD = 8
"""Scenarios that are given to the processes of a pool before the result of the first one is looked at."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A random scenario that violates a property, as small as it could be made."""

    plan: Plan
    rule: str
    message: str

    def within(self, plan: Plan) -> bool:
        """Does all that happens here happen there, too? A violation of the same rule then says nothing new."""
        return Counter(call.action.name for call in self.plan.calls) <= Counter(call.action.name for call in plan.calls)


@dataclass(slots=True)
class Tally:
    """What has been done so far."""

    scenarios: int = 0
    """Scenarios that were drawn and tried."""
    candidates: int = 0
    """Those that were tried to shrink one."""
    exhaustive: int = 0
    """Of the scenarios, the ones in which all interleavings were explored."""
    states: int = 0
    rounds: int = 0
    seconds: float = 0.0
    unfinished: Counter[str] = field(default_factory=Counter)
    """Why searches were not exhaustive."""
    found: list[Shrunk] = field(default_factory=list)


class _Violated(Exception):
    """A candidate violates the property: for Hypothesis, a failing example."""


class Fuzzer:
    """One design under random scenarios, for so many seconds or scenarios. The same seed draws the same scenarios.

    `pool` are processes that were begun by `trial.settle_in` with that design; without, all is done here.
    """

    def __init__(
        self,
        design: Design,
        seed: int,
        *,
        seconds: float | None = None,
        scenarios: int | None = None,
        pool: Executor | None = None,
        progress: Callable[[Tally], None] = lambda tally: None,
    ) -> None:
        if seconds is None and scenarios is None:
            raise ValueError("fuzzing has no end of its own: give a bound on seconds or scenarios")
        self.design = design
        self.tally = Tally()
        self._seed = seed
        self._began = time.monotonic()
        self._until = None if seconds is None else self._began + seconds
        self._most = scenarios
        self._pool = pool
        self._progress = progress

    def run(self) -> Iterator[Shrunk]:
        """Round after round, what is found, until a bound is met."""
        while not self._over():
            shrunk = self._round(self._seed * 1_000_003 + self.tally.rounds)
            self.tally.rounds += 1
            if shrunk is not None:
                self.tally.found.append(shrunk)
                yield shrunk

    def _over(self) -> bool:
        if self._most is not None and self.tally.scenarios >= self._most:
            return True
        return self._late()

    def _late(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def _round(self, seed: int) -> Shrunk | None:
        tally = self.tally
        innocent: set[Plan] = set()
        drawn = tuple(dict.fromkeys(_draw(seed)))
        if self._most is not None:
            drawn = drawn[: self._most - tally.scenarios]
        for hunt in (True, False):
            # random schedules are cheap: all scenarios get some before one is searched
            for plan, trial in self._trials(drawn, hunt):
                tally.scenarios += hunt
                tally.states += trial.states
                if trial.stopped:
                    tally.unfinished[trial.stopped] += 1
                elif not hunt:
                    tally.exhaustive += 1
                self._report()
                new = self._news(trial)
                if new is not None:
                    return self._shrink(seed, plan, trial, new, innocent)
                innocent.add(plan)
            innocent.clear()
        return None

    def _trials(self, drawn: tuple[Plan, ...], hunt: bool) -> Iterator[tuple[Plan, Trial]]:
        """The scenarios in their order, each with what came of it, until the time is up."""
        if self._pool is None:
            for plan in drawn:
                if self._late():
                    return
                yield plan, attempt(self.design, plan, hunt)
            return
        running: deque[tuple[Plan, Future[Trial]]] = deque()
        left = iter(drawn)
        try:
            while True:
                for plan in left:
                    running.append((plan, self._pool.submit(attempt_here, plan, hunt)))
                    if len(running) == AHEAD:
                        break
                if not running:
                    return
                plan, future = running.popleft()
                yield plan, future.result(None if self._until is None else max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            return
        finally:
            for _, future in running:
                future.cancel()

    def _news(self, trial: Trial) -> tuple[str, str] | None:
        """A violation, with its message, that does not follow from what was found before."""
        for rule, message in trial.found:
            known = [shrunk for shrunk in self.tally.found if shrunk.rule == rule]
            if len(known) < OF_ONE_RULE and not any(shrunk.within(trial.plan) for shrunk in known):
                return rule, message
        return None

    def _shrink(self, seed: int, plan: Plan, trial: Trial, new: tuple[str, str], innocent: set[Plan]) -> Shrunk:
        """The smallest scenario that Hypothesis gets to from `plan` in which the same rule is violated."""
        rule = new[0]
        failing = [(trial.plan, new[1])]
        tried = {plan: True} | dict.fromkeys(innocent, False)

        def violates(candidate: Plan) -> bool:
            self.tally.candidates += 1
            self._report()
            # what has found it is all that has to be tried
            smaller = attempt(self.design, candidate, trial.hunted)
            messages = [message for violated, message in smaller.found if violated == rule]
            if messages and self._news(smaller) is not None:
                failing.append((smaller.plan, messages[0]))
            return bool(messages)

        def examine(candidate: Plan) -> None:
            if candidate not in tried:
                if len(tried) - len(innocent) > CANDIDATES or self._late():
                    return
                tried[candidate] = violates(candidate)
            if tried[candidate]:
                raise _Violated

        # Flaky: a bound was met in the middle of shrinking
        with suppress(_Violated, Flaky):
            _hypothesis(seed, (Phase.generate, Phase.shrink), examine)
        smallest, message = min(failing, key=lambda one: one[0].size)
        return Shrunk(smallest, rule, message)

    def _report(self) -> None:
        self.tally.seconds = time.monotonic() - self._began
        self._progress(self.tally)


def _draw(seed: int) -> list[Plan]:
    """The scenarios of a round."""
    drawn: list[Plan] = []
    _hypothesis(seed, (Phase.generate,), drawn.append)
    return drawn


def _hypothesis(seed: int, phases: tuple[Phase, ...], examine: Callable[[Plan], object]) -> None:
    """One run of Hypothesis, which gives what it draws to `examine`. A scenario is failing if that raises."""

    @seeded(seed)
    @settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=tuple(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(plans())
    def run(plan: Plan) -> None:
        examine(plan)

    run()
