"""Compare the engines with brute force on as many random programs as asked for.

    python -m tests.oracle [PROGRAMS [SEED [MIX...]]]

Prints each program on which an engine disagrees, and ends with 1 if there was any.
"""

from __future__ import annotations

import random
import sys

from .compare import ENGINES, disagreement, truth
from .generate import MIXES, Generator


def main(arguments: list[str]) -> int:
    """Go round the mixes until the number of programs is reached."""
    programs = int(arguments[0]) if arguments else 1_000
    seed = arguments[1] if len(arguments) > 1 else "0"
    mixes = arguments[2:] or list(MIXES)
    generators = {mix: Generator(random.Random(f"{mix} {seed}")) for mix in mixes}
    compared = skipped = deadlocking = violating = wrong = 0
    for number in range(programs):
        mix = mixes[number % len(mixes)]
        program = generators[mix].program(mix)
        expected, outcome = truth(program)
        if not outcome.exhaustive:
            skipped += 1
            continue
        compared += 1
        deadlocking += bool(expected.deadlocks)
        violating += bool(expected.violations)
        for name, search in ENGINES.items():
            difference = disagreement(program, expected, search)
            if difference:
                wrong += 1
                print(f"\n{mix} {seed}, program {number}: the search over {name}\n{difference}\n{program}", flush=True)
        if compared % 500 == 0:
            print(f"{compared} programs compared, {wrong} disagreements", file=sys.stderr, flush=True)
    print(
        f"{compared} programs compared with {len(ENGINES)} engines, {skipped} too large, "
        f"{deadlocking} with a deadlock, {violating} with a violation: {wrong} disagreements"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
