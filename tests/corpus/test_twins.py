"""Every program of the corpus does what it says, over all its interleavings."""

from __future__ import annotations

import pytest

from . import (
    atomics,
    barriers,
    lists,
    lockorder,
    locks,
    objects,
    rcu,
    refcounts,
    rwlocks,
    sleepers,
    srcu,
    threads,
    work,
)
from .explore import explore
from .program import Program

PROGRAMS = [
    program
    for module in (
        atomics,
        barriers,
        lists,
        locks,
        lockorder,
        objects,
        rcu,
        refcounts,
        rwlocks,
        sleepers,
        srcu,
        threads,
        work,
    )
    for program in module.CORPUS.programs
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_program(program: Program) -> None:
    explored = explore(program.setup, program.end)
    assert explored.found.keys() == program.rules, explored.found
    if program.ends is not None:
        assert explored.ends == program.ends
    if not program.rules:
        assert explored.ends
