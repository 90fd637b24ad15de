"""The engines agree with brute force on final states, violations and deadlocks of random programs.

INTERLEAF_ORACLE_PROGRAMS sets how many programs are compared, INTERLEAF_ORACLE_SEED which.
`python -m tests.oracle` does the same outside pytest.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

import pytest

from interleaf.explore.outcome import LIVELOCK

from .compare import ENGINES, FREEING_ANY_TIME, Collector, by_states, by_steps, disagreement, findings, truth
from .fair import goes_round, graph
from .generate import MIXES, Generator
from .preemptions import bounded, fewest
from .programs import Program
from .telling import FREED_EAGERLY, ONCE_WRONG

CHUNKS = 8
PROGRAMS = int(os.environ.get("INTERLEAF_ORACLE_PROGRAMS", "10_080"))
SEED = os.environ.get("INTERLEAF_ORACLE_SEED", "0")


def programs(mix: str, seed: str, *, crowded: bool = False) -> Iterator[Program]:
    """Programs of one mix without end."""
    generator = Generator(random.Random(f"{mix} {seed}"), crowded=crowded)
    while True:
        yield generator.program(mix)


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("mix", MIXES)
def test_engines_agree_with_brute_force(mix: str, chunk: int) -> None:
    for program in itertools.islice(programs(mix, f"{SEED}.{chunk}"), PROGRAMS // (CHUNKS * len(MIXES))):
        expected, outcome = truth(program)
        if not outcome.exhaustive:
            continue  # too large for brute force
        for name, search in ENGINES.items():
            difference = disagreement(program, expected, search)
            assert not difference, f"the search over {name} differs on a program of the mix {mix!r}\n{program}"


@pytest.mark.parametrize("program", ONCE_WRONG, ids=str)
def test_engines_agree_where_one_was_once_wrong(program: Program) -> None:
    expected, _ = truth(program)
    for name, search in ENGINES.items():
        difference = disagreement(program, expected, search)
        assert not difference, f"the search over {name} differs"


@pytest.mark.parametrize("program", ONCE_WRONG, ids=str)
def test_engines_agree_there_without_eager_freeing(program: Program) -> None:
    expected, _ = truth(program)
    for name, search in FREEING_ANY_TIME.items():
        difference = disagreement(program, expected, search)
        assert not difference, f"the search over {name} differs"


@pytest.mark.parametrize("name", FREEING_ANY_TIME)
def test_eager_freeing_hides_nothing_but_behind_a_use_after_free(name: str) -> None:
    expected, _ = truth(FREED_EAGERLY)
    assert {rule for rule, _ in expected.violations} == {"use-after-free", "taken away"}
    assert not disagreement(FREED_EAGERLY, expected, FREEING_ANY_TIME[name])
    collector = Collector()
    found = findings(ENGINES[name](FREED_EAGERLY, collector), collector.finals)
    assert "use-after-free" in {rule for rule, _ in found.violations}
    assert found.violations <= expected.violations


@pytest.mark.parametrize("mix", ["locks", "rwlocks", "drops", "lives", "rcu"])
def test_engines_agree_with_all_states_of_crowded_programs(mix: str) -> None:
    for program in itertools.islice(programs(mix, f"{SEED} crowd", crowded=True), PROGRAMS // 500):
        expected, _ = truth(program, merge=True)
        for name, search in ENGINES.items():
            difference = disagreement(program, expected, search)
            assert not difference, f"the search over {name} differs on a crowded program of the mix {mix!r}\n{program}"


@pytest.mark.parametrize("mix", MIXES)
def test_brute_force_agrees_with_itself_without_automata_and_undo(mix: str) -> None:
    compared = 0
    for program in itertools.islice(programs(mix, "live"), 12):
        remembered, again = truth(program)
        if not again.exhaustive:
            continue  # too large for brute force
        live, run = truth(program, live=True)
        assert run.exhaustive
        assert not live.differences(remembered), str(program)
        compared += 1
    assert compared >= 10


def test_many_programs_have_deadlocks_and_violations() -> None:
    deadlocking = violating = fitting = 0
    number = 10 * len(MIXES)
    for mix in MIXES:
        for program in itertools.islice(programs(mix, "share"), 10):
            found, outcome = truth(program)
            deadlocking += bool(found.deadlocks)
            violating += bool(found.violations)
            fitting += outcome.exhaustive
    assert deadlocking >= number / 10, "too few deadlocks for the comparison to mean much"
    assert violating >= number / 3
    assert fitting >= 0.99 * number, "too many are too large for brute force"


def test_livelocks_are_found_where_brute_force_finds_a_fair_loop() -> None:
    livelocked = compared = 0
    for program in itertools.islice(programs("retries", "livelocks"), 60):
        known = graph(program.setup)
        if known is None:
            continue
        expected = goes_round(known)
        outcome = by_states(program, Collector())
        assert outcome.exhaustive
        found = any(found.violation.rule == LIVELOCK for found in outcome.found)
        assert found == expected, str(program)
        compared += 1
        livelocked += found
    assert livelocked >= 10
    assert compared - livelocked >= 10


def test_what_one_engine_calls_a_livelock_the_other_does_too() -> None:
    """The search over steps reports those that no schedule ends."""
    livelocked = 0
    for program in itertools.islice(programs("retries", "livelocks"), 40):
        found = []
        for search in (by_states, by_steps):
            outcome = search(program, Collector())
            assert outcome.exhaustive
            found.append(any(found.violation.rule == LIVELOCK for found in outcome.found))
        assert found[0] or not found[1], str(program)
        livelocked += found[1]
    assert livelocked >= 10


@pytest.mark.parametrize("mix", MIXES)
def test_a_bounded_search_finds_what_needs_no_more_preemptions(mix: str) -> None:
    for program in itertools.islice(programs(mix, "preemptions"), 15):
        expected = fewest(program, 2)
        for budget in range(3):
            assert not expected[budget].differences(bounded(program, budget)), f"{budget} preemptions\n{program}"
