"""Does an engine find what brute force finds?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from interleaf.explore.brute import BruteForce, Final, final_state
from interleaf.explore.machine import Machine
from interleaf.explore.outcome import DATA_RACE, DEADLOCK, LIVELOCK, Bounds, Outcome
from interleaf.explore.states import Options, StateSearch
from interleaf.explore.steps import StepSearch
from interleaf.runtime import Violation

from .programs import Program

EXECUTIONS = 10_000
"""A program with more interleavings is not compared."""

STEPS = 400


@dataclass(frozen=True)
class Findings:
    """All that an engine found out about a program."""

    finals: frozenset[Final]
    violations: frozenset[tuple[str, str]]
    deadlocks: frozenset[frozenset[str]]
    """For each deadlock, who waits where."""

    def differences(self, other: Findings) -> list[str]:
        """Where `other` differs from this, in words."""
        found = []
        for what in ("finals", "violations", "deadlocks"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                missing, extra = sorted(map(_show, mine - theirs)), sorted(map(_show, theirs - mine))
                found.append(f"{what}: missing {missing}, too many {extra}")
        return found


def _show(value: object) -> str:
    return str(sorted(value)) if isinstance(value, frozenset) else str(value)


def findings(outcome: Outcome, finals: set[Final]) -> Findings:
    """What an outcome says, in a form that can be compared."""
    violations, deadlocks = set(), set()
    for found in outcome.found:
        rule, message = found.signature
        if rule == DEADLOCK:
            deadlocks.add(frozenset(message.split("; ")))
        elif rule in (DATA_RACE, LIVELOCK) or message.startswith("nothing orders"):
            continue  # brute force does not look for these
        elif message.startswith("possible circular locking"):
            # of a cycle of lock classes, the dependency that was seen last is reported
            violations.add((rule, "possible circular locking"))
        else:
            violations.add((rule, message))
    return Findings(frozenset(finals), frozenset(violations), frozenset(deadlocks))


@dataclass
class Collector:
    """A `final` hook that collects the states in which executions end."""

    finals: set[Final] = field(default_factory=set)

    def __call__(self, machine: Machine) -> list[Violation]:
        self.finals.add(final_state(machine.memory))
        return []


Search = Callable[[Program, Collector], Outcome]
"""Runs an engine on a program."""


def by_steps(program: Program, collector: Collector, search: type[StepSearch] = StepSearch) -> Outcome:
    return run(search(program.setup, final=collector, bounds=Bounds(steps=STEPS)))


def by_steps_without_discipline(program: Program, collector: Collector) -> Outcome:
    return run(StepSearch(program.setup, final=collector, bounds=Bounds(steps=STEPS), discipline=False))


def by_steps_freeing_any_time(program: Program, collector: Collector) -> Outcome:
    return run(StepSearch(program.setup, final=collector, bounds=Bounds(steps=STEPS), eager=False))


def by_states_freeing_any_time(program: Program, collector: Collector) -> Outcome:
    return run(StateSearch(program.setup, final=collector, bounds=Bounds(steps=STEPS), options=Options(eager=False)))


def by_states(program: Program, collector: Collector, search: type[StateSearch] = StateSearch) -> Outcome:
    return run(search(program.setup, final=collector, bounds=Bounds(steps=STEPS)))


def run(search: StateSearch | StepSearch) -> Outcome:
    """Search, and give everything back."""
    try:
        return search.run()
    finally:
        search.close()


ENGINES: dict[str, Search] = {
    "steps": by_steps,
    "steps without discipline": by_steps_without_discipline,
    "states": by_states,
}

FREEING_ANY_TIME: dict[str, Search] = {
    "steps": by_steps_freeing_any_time,
    "states": by_states_freeing_any_time,
}
"""The same without eager freeing, which hides what may be found behind a use-after-free."""


def truth(program: Program, *, live: bool = False, merge: bool = False) -> tuple[Findings, Outcome]:
    """What brute force finds; its outcome is not exhaustive if the program is too large."""
    search = BruteForce(program.setup, live=live, merge=merge, bounds=Bounds(executions=EXECUTIONS, steps=STEPS))
    try:
        outcome = search.run()
    finally:
        search.close()
    return findings(outcome, search.finals), outcome


def disagreement(program: Program, expected: Findings, search: Search) -> str:
    """How an engine differs from `expected`, in words; empty if it does not."""
    collector = Collector()
    outcome = search(program, collector)
    if not outcome.exhaustive:
        return f"not exhaustive: {outcome.stopped}"
    return "\n".join(expected.differences(findings(outcome, collector.finals)))
