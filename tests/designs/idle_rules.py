"""Look for what a rule of v6.12 is good for of which nothing is known: python -m tests.designs.idle_rules [RULE...]

Each such rule is dropped in each of the scenarios in which another rule matters, each searched up to STATES states.
Prints a line for each violation that v6.12 itself does not have there, and ends with 1 if there is any: then the rule
belongs into the other table of test_rules.py.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from interleaf import scenarios
from interleaf.designs import V6_12
from interleaf.explore.outcome import Bounds
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import Design
from tests.designs.test_rules import IDLE, LOOKED_IN

STATES = 3_000


def violated(scenario: str, design: Design) -> frozenset[str]:
    """The properties that a search of the scenario sees violated, as far as it goes."""
    setup = functools.partial(scenarios.load(scenario).setup, design)
    search = StateSearch(setup, bounds=Bounds(states=STATES))
    try:
        outcome = search.run()
    finally:
        search.close()
    return frozenset(found.violation.rule for found in outcome.found)


def main(names: Sequence[str]) -> int:
    found = False
    for scenario in LOOKED_IN:
        known = violated(scenario, V6_12)
        for name in names or sorted(IDLE):
            more = violated(scenario, V6_12.without(name)) - known
            if more:
                found = True
                print(f"without {name}, {scenario} violates {', '.join(sorted(more))}", flush=True)
        print(f"{scenario} is done", flush=True)
    return int(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
