"""One random scenario tried: by a few random schedules, or by a small search of all of them."""

from __future__ import annotations

import functools
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from interleaf.explore.hunt import Hunt
from interleaf.explore.machine import SetupViolated
from interleaf.explore.outcome import Bounds
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import Design
from interleaf.runtime import ModelError, StepLimit

from .plans import Plan
from .source import load, text_of

EXECUTIONS = 12
"""Random schedules, which find most of what there is to be found."""

STEPS = 2_000
"""Steps of one of them at most. Few scenarios have 500."""

STATES = 400
"""States of the search. Of 77 scenarios drawn for v6.12, 35 had no more."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it."""

    plan: Plan
    """What was tried: the scenario, or its history alone if that violates a property by itself."""
    found: tuple[tuple[str, str], ...]
    """Rules that are violated, with a message each."""
    hunted: bool
    """By random schedules, not by a search."""
    states: int = 0
    stopped: str = ""
    """Why the search did not see all interleavings; empty if it did."""


def attempt(design: Design, plan: Plan, hunt: bool) -> Trial:
    """Try one scenario by random schedules, or else by a search; the same each time.

    Raises ModelError, with the scenario, if the scenario makes no sense or the design raises something; SetupViolated
    or StepLimit if the design does not let a VM be made at all.
    """
    setup = functools.partial(load(text_of(plan)).setup, design)
    engine: Hunt | StateSearch
    try:
        if hunt:
            engine = Hunt(setup, Bounds(executions=EXECUTIONS, steps=STEPS), seed=1)
        else:
            engine = StateSearch(setup, bounds=Bounds(states=STATES))
        try:
            outcome = engine.run()
        finally:
            engine.close()
    except (SetupViolated, StepLimit):
        if not plan.history:
            raise
        return attempt(design, plan.alone(), hunt)
    except ModelError as error:
        raise ModelError(f"{error}\nThis is the random scenario:\n\n{text_of(plan)}") from error
    except Exception as error:
        file, line, function, _ = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{design.name} raises {type(error).__name__}: {error} ({file}:{line} in {function})"
        raise ModelError(f"{what}\nThis is the random scenario:\n\n{text_of(plan)}") from error
    found = tuple((found.violation.rule, found.violation.message) for found in outcome.found)
    return Trial(plan, found, hunt, outcome.states, "" if hunt else outcome.stopped)


class _Worker:
    """What a process of a pool keeps between two trials."""

    design: Design


def settle_in(load_design: Callable[[], Design]) -> None:
    """A process of a pool begins. Ctrl-C is for the one that has started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Worker.design = load_design()


def attempt_here(plan: Plan, hunt: bool) -> Trial:
    """`attempt` in a process of a pool."""
    return attempt(_Worker.design, plan, hunt)
