"""The comparison with brute force notices engines that are wrong in one way each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from interleaf.explore.bounded import BoundedSearch
from interleaf.explore.brute import BruteForce
from interleaf.explore.states import Options, StateSearch
from interleaf.runtime import ModelError

from .compare import disagreement, truth
from .mutants import MUTANTS, ForgetsBudget, ForgetsLast, Mutant, PrunesVisited
from .preemptions import bounded, fewest
from .programs import Block, Program, Retry, Rotate, Statement, Store
from .test_agreement import programs

ENOUGH = 400
"""Programs within which each mutant must have been noticed."""


def alternating(mixes: Iterable[str]) -> Iterable[Program]:
    """Programs of each mix in turn."""
    for together in zip(*(programs(mix, "mutants") for mix in mixes), strict=True):
        yield from together


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_engine_is_noticed(mutant: Mutant) -> None:
    for program in itertools.chain(mutant.telling, itertools.islice(alternating(mutant.mixes), ENOUGH)):
        expected, _ = truth(program)
        try:
            with mutant.wrong():
                different = disagreement(program, expected, mutant.search)
        except ModelError:
            return  # the engine's own checks have noticed it
        if different:
            return
    pytest.fail(f"{ENOUGH} programs did not tell {mutant.name!r} from a right engine")


@pytest.mark.parametrize("search", [ForgetsBudget, ForgetsLast])
def test_a_key_without_what_bounds_the_search_is_noticed(search: type[BoundedSearch]) -> None:
    for program in itertools.islice(alternating(("locks", "calls", "lives", "references")), ENOUGH):
        expected = fewest(program, 2)
        if any(expected[budget].differences(bounded(program, budget, search)) for budget in range(3)):
            return
    pytest.fail(f"{ENOUGH} programs did not tell {search.__name__} from a right search")


def states(program: Program, search: type[StateSearch]) -> int:
    """How many states a search visits that leaves out none."""
    running = search(program.setup, options=Options(locks=False, eager=False, foresight=False, audit=False))
    try:
        return running.run().states
    finally:
        running.close()


def for_ever(*bodies: tuple[Statement, ...]) -> Program:
    """Tasks that do the same again and again."""
    return Program(tuple(Block((Retry(9, Block(body)),)) for body in bodies))


ROUND_AND_ROUND = [
    for_ever((Rotate(2), Rotate(0)), (Store(1, 0), Rotate(2)), (Store(0, 1), Store(1, 0))),
    for_ever((Store(0, 1), Rotate(1)), (Rotate(0), Store(1, 1)), (Store(1, 0),)),
    for_ever((Rotate(0), Store(1, 1), Store(0, 0)), (Store(1, 0), Rotate(1)), (Rotate(0),)),
]
"""Without cycles, pruning all visited states misses none; with cycles it does."""


@pytest.mark.parametrize("program", ROUND_AND_ROUND, ids=str)
def test_all_states_of_cyclic_programs_are_visited(program: Program) -> None:
    everything = BruteForce(program.setup, live=False, merge=True)
    try:
        assert states(program, StateSearch) == everything.run().states
    finally:
        everything.close()


def test_pruning_visited_states_whoever_slept_is_noticed() -> None:
    program = ROUND_AND_ROUND[0]
    assert states(program, PrunesVisited) < states(program, StateSearch)
