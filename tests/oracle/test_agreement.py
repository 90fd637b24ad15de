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

from .compare import ENGINES, disagreement, truth
from .generate import MIXES, Generator
from .programs import Program

CHUNKS = 8
PROGRAMS = int(os.environ.get("INTERLEAF_ORACLE_PROGRAMS", "10_032"))
SEED = os.environ.get("INTERLEAF_ORACLE_SEED", "0")


def programs(mix: str, seed: str) -> Iterator[Program]:
    """Programs of one mix without end."""
    generator = Generator(random.Random(f"{mix} {seed}"))
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
    assert deadlocking >= number / 10
    assert violating >= number / 3
    assert fitting == number
