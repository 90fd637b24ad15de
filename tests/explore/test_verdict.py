"""Only a complete search without findings may give *holds*."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.explore.outcome import Bounds, Found, Outcome
from interleaf.explore.verdict import Status, Subject, collision_chance, judge
from interleaf.runtime import ModelError, Violation

SUBJECT = Subject("scenario", "design", "digest")
FOUND = Found(Violation("I1", "the page is freed"), ())


def complete(engine: str = "states", *, found: tuple[Found, ...] = (), exercised: tuple[str, ...] = ("I1",)) -> Outcome:
    return Outcome(engine, list(found), states=10, exhaustive=True, exercised=dict.fromkeys(exercised, 1))


def test_a_complete_search_without_findings_holds_and_is_certified() -> None:
    verdict = judge(SUBJECT, [complete()], ("I1", "I2"), Bounds(), 1)
    assert verdict.status is Status.HOLDS
    assert verdict.exhaustive
    assert verdict.certificate is not None
    assert verdict.certificate.states == 10
    assert dict(verdict.properties)["I1"] is Status.HOLDS


def test_a_property_that_nothing_exercised_is_vacuous() -> None:
    verdict = judge(SUBJECT, [complete()], ("I1", "I2"), Bounds(), 1)
    assert dict(verdict.properties)["I2"] is Status.VACUOUS


def test_a_finding_is_a_violation_even_if_the_search_is_not_complete() -> None:
    outcome = Outcome("hunt", [FOUND], stopped="random")
    verdict = judge(SUBJECT, [outcome], ("I1", "I2"), Bounds(), 1)
    assert verdict.status is Status.VIOLATED
    assert verdict.certificate is None
    assert dict(verdict.properties) == {
        "I1": Status.VIOLATED,
        "I2": Status.INCOMPLETE,
        "data-race": Status.INCOMPLETE,
        "deadlock": Status.INCOMPLETE,
        "livelock": Status.INCOMPLETE,
        "use-after-free": Status.INCOMPLETE,
    }


@pytest.mark.parametrize(
    ("outcome", "bounds"),
    [
        (Outcome("states", stopped="the bound of 5 states was reached"), Bounds(states=5)),
        (Outcome("hunt", stopped="random schedules only"), Bounds(executions=5)),
        (Outcome("bounded", stopped="at most 2 preemptions were tried"), Bounds(preemptions=2)),
        (Outcome("hunt", exhaustive=True), Bounds()),  # an engine that proves nothing, whatever it claims
        (complete(), Bounds(preemptions=2)),  # executions were left out
    ],
)
def test_anything_less_is_incomplete(outcome: Any, bounds: Any) -> None:
    verdict = judge(SUBJECT, [outcome], ("I1",), bounds, 1)
    assert verdict.status is Status.INCOMPLETE
    assert verdict.reason
    assert verdict.certificate is None


def test_a_bound_that_stopped_nothing_does_no_harm() -> None:
    assert judge(SUBJECT, [complete()], (), Bounds(seconds=60, states=1_000), 1).status is Status.HOLDS


def test_no_search_at_all_is_incomplete() -> None:
    assert judge(SUBJECT, [], (), Bounds(), 1).status is Status.INCOMPLETE


def test_engines_that_contradict_each_other_give_no_verdict() -> None:
    stopped = Outcome("steps", [FOUND], stopped="the bound of 1 seconds was reached")
    for outcomes in (
        [complete(), complete("steps", found=(FOUND,))],
        [complete(found=(FOUND,)), complete("steps")],
        [complete(), stopped],
    ):
        with pytest.raises(ModelError, match=r"the engines disagree: .* found I1, .* looked at everything"):
            judge(SUBJECT, outcomes, (), Bounds(), 1)


def test_an_engine_that_was_stopped_need_not_have_found_all() -> None:
    stopped = Outcome("steps", stopped="the bound of 1 seconds was reached")
    assert judge(SUBJECT, [complete(found=(FOUND,)), stopped], (), Bounds(), 1).status is Status.VIOLATED


def test_what_only_the_search_over_states_decides_is_not_claimed_by_the_other_engine() -> None:
    verdict = judge(SUBJECT, [complete("steps")], (), Bounds(), 1)
    assert dict(verdict.properties)["livelock"] is Status.INCOMPLETE
    assert dict(verdict.properties)["deadlock"] is Status.HOLDS
    assert verdict.status is Status.INCOMPLETE
    assert verdict.reason == "only a search over states decides livelock, starvation, data-race"
    assert verdict.certificate is None


def test_an_engine_that_did_not_get_to_its_end_is_told_beside_one_that_did() -> None:
    stopped = Outcome("steps", stopped="the bound of 1 seconds was reached")
    verdict = judge(SUBJECT, [complete(), stopped], (), Bounds(seconds=1), 1)
    assert verdict.status is Status.HOLDS
    assert verdict.reason == "the search over steps: the bound of 1 seconds was reached"
    assert verdict.certificate is not None
    assert verdict.certificate.engines == ("states",)


def test_the_chance_of_a_collision_grows_with_the_square() -> None:
    assert collision_chance(1_000_000) == pytest.approx(2.7e-8, rel=0.01)


MADE_OF = {"I13": ("deadlock", "livelock"), "I14": ("sleeping-while-atomic",)}


@pytest.mark.parametrize(
    ("rule", "name", "other"), [("livelock", "I13", "I14"), ("sleeping-while-atomic", "I14", "I13")]
)
def test_a_property_that_consists_of_rules_is_violated_where_one_of_them_is(rule: str, name: str, other: str) -> None:
    outcome = complete(found=(Found(Violation(rule, "for ever"), ()),), exercised=("sleeping-while-atomic",))
    verdict = dict(judge(SUBJECT, [outcome], ("I13", "I14"), Bounds(), 1, MADE_OF).properties)
    assert verdict[name] is verdict[rule] is Status.VIOLATED
    assert verdict[other] is Status.HOLDS


def test_a_property_that_consists_of_rules_is_as_vacuous_and_as_incomplete_as_they_are() -> None:
    verdict = dict(judge(SUBJECT, [complete()], ("I13", "I14"), Bounds(), 1, MADE_OF).properties)
    assert verdict["I13"] is Status.HOLDS
    assert verdict["I14"] is Status.VACUOUS
    verdict = dict(judge(SUBJECT, [complete("steps")], ("I13",), Bounds(), 1, MADE_OF).properties)
    assert verdict["I13"] is Status.INCOMPLETE


def test_what_only_the_order_of_events_shows_is_no_disagreement() -> None:
    race = Found(Violation("use-after-free", "nothing orders the freeing and the use"), (), race=True)
    verdict = judge(SUBJECT, [complete("states", found=(race,)), complete("steps")], ("I1",), Bounds(), 1)
    assert verdict.status is Status.VIOLATED
