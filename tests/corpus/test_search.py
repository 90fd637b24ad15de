"""The search over states finds in every program of the corpus what brute force finds there.

Data races are left out: brute force calls every pair of accesses that nothing orders a race, the search only those
that can happen at the same time.
"""

from __future__ import annotations

import pytest

from interleaf.explore.machine import Machine
from interleaf.explore.states import StateSearch
from interleaf.runtime import Value, Violation

from .program import Program
from .test_twins import PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_program(program: Program) -> None:
    ends: set[Value] = set()

    def final(machine: Machine) -> list[Violation]:
        ends.add(program.end(machine.memory))
        return []

    search = StateSearch(program.setup, final=final)
    try:
        outcome = search.run()
    finally:
        search.close()
    assert outcome.exhaustive
    assert {found.violation.rule for found in outcome.found} - {"data-race"} == program.rules - {"data-race"}
    if program.ends is not None:
        assert ends == program.ends
