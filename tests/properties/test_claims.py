"""The claims of the patch: what decides them, and what the searches say."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from interleaf import designs, scenarios
from interleaf.check import Cell, Finding, Request, check
from interleaf.claims import Decision, Word, decide, requests_of
from interleaf.designs import OFF_LIST
from interleaf.explore.verdict import Status, Verdict
from interleaf.kvm.design import RULES
from interleaf.properties.claims import CLAIMS, Claim, Trial
from interleaf.runtime.execution import Move
from interleaf.worker import Result

POSTED, CHANGED, REMEDY = Trial("there", "off-list"), Trial("there", "off-list without it"), Trial("there", "better")
NEEDED = Claim(
    1,
    "It is needed.",
    "So it seems.",
    "somewhere",
    ("bad", "worse"),
    (POSTED,),
    ("bad",),
    (CHANGED,),
    needed=True,
)
SAFE = replace(NEEDED, needed=False)


def result(trial: Trial, *found: str, exercised: tuple[str, ...] = ("bad",), exhaustive: bool = True) -> Result:
    """The answer of a search that found these rules violated."""
    findings = tuple(
        Finding(rule, f"{rule} thing", trial.scenario, trial.design, (), (), (Move("vcpu0"),), 1, 1, "", "")
        for rule in found
    )
    properties = tuple((name, Status.VIOLATED if name in found else Status.HOLDS) for name in {*exercised, *found})
    status = Status.VIOLATED if found else Status.HOLDS
    why = "" if exhaustive else "the bound of 5 states was reached"
    request = Request(trial.scenario, trial.design)
    verdict = Verdict(status, why, exhaustive, properties, None)
    return Result(request, Cell(request, trial.scenario, trial.design, verdict, findings, 10, 20, 3, 4, 0.1))


def decision(claim: Claim, *results: Result) -> Decision:
    [only] = decide([claim], results)
    return only


def test_what_breaks_when_it_is_left_out_is_needed() -> None:
    got = decision(NEEDED, result(POSTED), result(CHANGED, "worse", "other"))
    assert got.word is Word.HOLDS
    assert got.detail == "worse without it in there (vcpu0: worse thing)"
    assert got.states == 20
    assert got.finding is None


def test_what_breaks_nothing_when_it_is_left_out_is_not_needed() -> None:
    got = decision(NEEDED, result(POSTED), result(CHANGED, "other"))
    assert (got.word, got.detail) == (Word.FAILS, "not needed: nothing breaks without it in there")


def test_what_is_found_in_the_posted_program_refutes_the_claim() -> None:
    claim = replace(SAFE, remedy=(REMEDY,))
    got = decision(claim, result(POSTED, "worse", "bad"), result(CHANGED, "bad"), result(REMEDY))
    assert got.word is Word.FAILS
    assert got.finding is not None
    assert got.finding.property == "bad"
    assert got.detail == "bad, worse in there (vcpu0: bad thing); nothing breaks in there"


def test_what_was_never_exercised_is_vacuous_whatever_was_found() -> None:
    results = (result(POSTED, "worse", exercised=()), result(CHANGED, "bad"))
    got = decision(SAFE, *results)
    assert (got.word, got.detail) == (Word.VACUOUS, "nothing exercises bad in there")
    assert decision(replace(SAFE, vacuous="nobody comes here"), *results).detail == "nobody comes here"


def test_a_search_that_would_find_nothing_in_any_case_shows_nothing() -> None:
    got = decision(SAFE, result(POSTED), result(CHANGED))
    assert got.word is Word.VACUOUS
    assert "could not have shown it" in got.detail


@pytest.mark.parametrize(
    "posted",
    [
        result(POSTED, exhaustive=False),
        result(POSTED, "bad", exhaustive=False),
        Result(Request("there", "off-list"), None, "", "the bound of 5 states was reached"),
    ],
)
def test_nothing_less_than_a_whole_search_decides(posted: Result) -> None:
    got = decision(SAFE, posted, result(CHANGED, "bad"))
    assert (got.word, got.finding) == (None, None)
    assert got.detail == "there on off-list: the bound of 5 states was reached"


def test_there_are_thirteen_claims_and_each_says_what_decides_it() -> None:
    assert sorted({claim.number for claim in CLAIMS}) == list(range(1, 14))
    assert len({claim.label for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.text.endswith(".")
        assert claim.reason.endswith(".")
        assert claim.posted
        assert claim.changed or not claim.needed
        for trial in claim.trials:
            assert designs.load(trial.design).name == trial.design
            assert scenarios.load(trial.scenario).name == trial.scenario


def test_each_rule_of_the_patch_is_left_out_by_a_claim_or_is_a_claim_that_holds_without_it() -> None:
    own = {name for name in OFF_LIST.rules if RULES[name].commit == RULES["rcu-list-del"].commit}
    left_out = {name for claim in CLAIMS for trial in claim.changed for name in own if name in trial.design}
    assert own - left_out == {"plain-list-add", "skip-zero-refcount-roots"}


def test_the_scenarios_of_claims_are_not_in_the_matrix() -> None:
    assert not scenarios.of_claims().keys() & scenarios.library().keys()
    assert scenarios.load("invalidate-vs-put").name == "invalidate-vs-put"


@functools.cache
def searched(request: Request) -> Result:
    return Result(request, check(request))


@pytest.mark.parametrize(
    ("label", "word", "detail"),
    [
        ("1", Word.HOLDS, "but get-root-invalid without invalidate-under-write-lock"),
        ("2", Word.HOLDS, "nothing breaks in invalidate-vs-invalidate, "),
        ("3", Word.HOLDS, "but walk-misses-no-valid-root without invalidate-under-write-lock"),
        ("4a", Word.VACUOUS, "the WARN is never evaluated"),
        ("4b", Word.FAILS, "put-invalid-root-flush in invalidate-vs-put-far (vcpu0: "),
        ("5", Word.HOLDS, "but data-race with roots-under-read-lock in create-vs-walk"),
        ("7", Word.HOLDS, "use-after-free without safe-invalidated-walk in invalidate-vs-put (nx: "),
        ("8a", Word.HOLDS, "has to zap 4 SPTEs itself)"),
        ("8b", Word.FAILS, "has to zap 4 SPTEs itself); nothing breaks with iter-yielded"),
        ("9", Word.HOLDS, "; but I9 without"),
        ("11", Word.HOLDS, "list-corruption, data-race, I5, "),
        ("12", Word.HOLDS, "I7 without zap-all-takes-slots-lock in invalidate-vs-invalidate (memslot: "),
        ("13a", Word.VACUOUS, "never meets such a root"),
        ("13b", Word.FAILS, "I7 with iter-yielded in invalidate-vs-put-far (nx: "),
    ],
)
def test_what_the_searches_say(label: str, word: Word, detail: str) -> None:
    """All but 6 and 10, whose searches are larger, and which tests of the design show."""
    claim = next(claim for claim in CLAIMS if claim.label == label)
    got = decision(claim, *(searched(request) for request in requests_of([claim])))
    assert got.word is word
    assert detail in got.detail
    assert (got.finding is not None) is (word is Word.FAILS)
