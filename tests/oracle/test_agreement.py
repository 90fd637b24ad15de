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

from .compare import ENGINES, Collector, by_states, by_steps, disagreement, truth
from .generate import MIXES, Generator
from .preemptions import bounded, fewest
from .programs import (
    Assert,
    Block,
    Dispose,
    Locked,
    Program,
    Publish,
    Put,
    RcuReader,
    Read,
    Retry,
    Statement,
    Store,
    Trylock,
    Use,
    Write,
)

CHUNKS = 8
PROGRAMS = int(os.environ.get("INTERLEAF_ORACLE_PROGRAMS", "10_032"))
SEED = os.environ.get("INTERLEAF_ORACLE_SEED", "0")


NOTHING = Block(())


def of(*bodies: tuple[Statement, ...]) -> Program:
    return Program(tuple(Block(body) for body in bodies))


ONCE_WRONG = [
    # a task that dies in the step that took a lock was not seen to hold it
    of((Trylock("a", NOTHING), Assert(2, 1)), (Locked("spin", "a", Block((Store(1, 2), Assert(0, 2)))),)),
    # a lock that another task frees was taken without a scheduling point before
    of((Read(1), Dispose("at once")), (RcuReader(Block((Use("lock"),))),)),
    of((Put(),), (Use("lock"), Put())),
    # an access made only after all others had ended was not counted as one that could conflict
    of((Write(0, 1), Store(1, 2)), (Read(0), Write(0, 0), Assert(0, 1), Write(1, 0))),
    # what a callback will do was not foreseen where it was yet to be queued
    of((Use("plain"), Use("plain")), (Dispose("callback"), Publish())),
    # an eager callback made the search over steps begin again for ever
    of((RcuReader(Block((Dispose("callback"),))),), (Use("marked"), Write(0, 1))),
    # each reader waits in the lock for the other one, so that their sections always overlap
    of(
        (Locked("read", "v", Block((Store(0, 1), Retry(1, Block((Read(1),)))))),),
        (Locked("read", "v", Block((Store(1, 1), Retry(1, Block((Read(0),)))))),),
        (Locked("write", "v", Block((Read(0), Write(2, 1)))),),
    ),
]


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


@pytest.mark.parametrize("mix", ["locks", "rwlocks", "drops", "lives", "rcu"])
def test_engines_agree_with_all_states_of_crowded_programs(mix: str) -> None:
    for program in itertools.islice(programs(mix, f"{SEED} crowd", crowded=True), PROGRAMS // 500):
        expected, _ = truth(program, merge=True)
        for name, search in ENGINES.items():
            difference = disagreement(program, expected, search)
            assert not difference, f"the search over {name} differs on a crowded program of the mix {mix!r}\n{program}"


@pytest.mark.parametrize("mix", MIXES)
def test_brute_force_agrees_with_itself_without_automata_and_undo(mix: str) -> None:
    for program in itertools.islice(programs(mix, "live"), 12):
        live, run = truth(program, live=True)
        remembered, again = truth(program)
        assert run.exhaustive
        assert again.exhaustive
        assert not live.differences(remembered), str(program)


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
    assert fitting == number


def test_engines_agree_on_livelocks() -> None:
    livelocked = 0
    for program in itertools.islice(programs("retries", "livelocks"), 40):
        found = []
        for search in (by_states, by_steps):
            outcome = search(program, Collector())
            assert outcome.exhaustive
            found.append(any(found.violation.rule == LIVELOCK for found in outcome.found))
        assert found[0] == found[1], str(program)
        livelocked += found[0]
    assert livelocked >= 10


@pytest.mark.parametrize("mix", MIXES)
def test_a_bounded_search_finds_what_needs_no_more_preemptions(mix: str) -> None:
    for program in itertools.islice(programs(mix, "preemptions"), 15):
        expected = fewest(program, 2)
        for budget in range(3):
            assert not expected[budget].differences(bounded(program, budget)), f"{budget} preemptions\n{program}"
