"""The one place that may say *holds*.

A verdict is made from the outcomes of one or more searches of one program. It says *holds* only if a proof engine
looked at everything and for everything, without a bound, and nothing was found; what it rests on is written into a
certificate.
Anything else is *violated*, or *incomplete* with the reason. A property that never had the chance to fail is
*vacuous*: it was not tested, so it does not hold either.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from interleaf.runtime.findings import ModelError

from .outcome import DATA_RACE, DEADLOCK, LIVELOCK, STARVATION, Bounds, Outcome

PROOF_ENGINES = ("states", "steps")

ALWAYS_CHECKED = (DEADLOCK, LIVELOCK, DATA_RACE, "use-after-free")
"""What a search checks in every state or step, whatever the model declares."""

BY_STATES_ONLY = (LIVELOCK, STARVATION, DATA_RACE)
"""Of these, what the search over states alone decides."""


class Status(enum.StrEnum):
    """What is known of a property, or of a whole program."""

    HOLDS = "holds"
    VIOLATED = "violated"
    INCOMPLETE = "incomplete"
    VACUOUS = "vacuous"


@dataclass(frozen=True, slots=True)
class Subject:
    """What was checked: the scenario, the design, and a digest of the code of both and of the model."""

    scenario: str
    design: str
    digest: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a *holds* rests on."""

    subject: Subject
    engines: tuple[str, ...]
    reductions: tuple[str, ...]
    states: int
    transitions: int
    executions: int
    depth: int
    seed: int
    audits: int
    """Executions run twice, and merged states compared, without finding a difference."""
    collision: float
    """Chance that two different states had the same hash anywhere in this search, at most."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one program.

    `reason` is why it is incomplete, or why one of several engines did not get to its end beside one that did; else
    it is empty.
    """

    status: Status
    reason: str
    exhaustive: bool
    properties: tuple[tuple[str, Status], ...]
    certificate: Certificate | None


def judge(
    subject: Subject,
    outcomes: Sequence[Outcome],
    properties: Sequence[str],
    bounds: Bounds,
    seed: int,
    made_of: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """The verdict on `subject` from its searches; `properties` are the names to report on beside those met.

    `made_of` says which of them consist of other rules: one is violated if one of its rules is, and has had the
    chance to fail if one of them has.

    A bound that stopped nothing does no harm; one on preemptions leaves executions out whatever it stopped. Raises
    ModelError if an exhaustive engine and another contradict each other.
    """
    complete = [outcome for outcome in outcomes if outcome.exhaustive and outcome.engine in PROOF_ENGINES]
    _agree(complete, outcomes)
    violated = {found.violation.rule for outcome in outcomes for found in outcome.found}
    exercised = set(ALWAYS_CHECKED)
    for outcome in outcomes:
        exercised.update(outcome.exercised)
    exhaustive = bool(complete) and bounds.preemptions is None
    by_states = any(outcome.engine == "states" for outcome in complete)
    made_of = made_of or {}
    statuses = []
    for name in sorted(exercised | violated | set(properties)):
        rules = {name, *made_of.get(name, ())}
        if rules & violated:
            status = Status.VIOLATED
        elif not exhaustive or (not rules.isdisjoint(BY_STATES_ONLY) and not by_states):
            status = Status.INCOMPLETE
        else:
            status = Status.VACUOUS if rules.isdisjoint(exercised) else Status.HOLDS
        statuses.append((name, status))
    reasons = [_not_ended(outcome, outcomes) for outcome in outcomes if outcome.stopped]
    certificate = None
    if violated:
        overall = Status.VIOLATED
        reasons = []
    elif exhaustive and by_states:
        overall = Status.HOLDS
        certificate = _certify(subject, complete, seed)
    else:
        overall = Status.INCOMPLETE
        if exhaustive:
            reasons.append(f"only a search over states decides {', '.join(BY_STATES_ONLY)}")
    reason = "; ".join(reasons)
    if overall is Status.INCOMPLETE:
        reason = reason or "no search was run"
    return Verdict(overall, reason, exhaustive, tuple(statuses), certificate)


def _not_ended(outcome: Outcome, outcomes: Sequence[Outcome]) -> str:
    """Why a search did not get to its end; which one, if there are several."""
    return outcome.stopped if len(outcomes) == 1 else f"the search over {outcome.engine}: {outcome.stopped}"


def _certify(subject: Subject, complete: list[Outcome], seed: int) -> Certificate:
    main = complete[0]
    return Certificate(
        subject,
        tuple(outcome.engine for outcome in complete),
        main.reductions,
        main.states,
        main.transitions,
        main.executions,
        main.depth,
        seed,
        sum(outcome.audits for outcome in complete),
        collision_chance(main.states),
    )


def collision_chance(states: int) -> float:
    """Birthday bound for `states` random 64-bit hashes."""
    return min(1.0, states * states / 2.0**65)


def _agree(complete: Sequence[Outcome], outcomes: Sequence[Outcome]) -> None:
    """A search of everything must have found violations of all properties that any other search has found.

    But for races, also those about the freeing of an object: only the search over states looks for two steps that
    nothing orders.
    """
    for one in complete:
        for other in outcomes:
            more = _decided_by_all(other) - _decided_by_all(one)
            if more:
                raise ModelError(
                    f"the engines disagree: the search over {other.engine} found {', '.join(sorted(more))}, the search "
                    f"over {one.engine} looked at everything and did not. One of them has a defect: no verdict."
                )


def _decided_by_all(outcome: Outcome) -> set[str]:
    """The rules that are violated, without those that only the search over states decides."""
    return {found.violation.rule for found in outcome.found if not found.race} - set(BY_STATES_ONLY)
