"""Which design is for which kernel: with what a trace of that kernel is to be compared."""

from __future__ import annotations

import re
from typing import NamedTuple

Version = tuple[int, int]


class Kernels(NamedTuple):
    """Kernels, from the first to the last one, whose TDP MMU does the same."""

    first: Version
    last: Version
    design: str
    """As `load` takes it."""

    def __str__(self) -> str:
        first, last = (f"{major}.{minor}" for major, minor in (self.first, self.last))
        return first if first == last else f"{first} to {last}"


V6_6 = (
    "v6.1 with split-on-fault with map-level-guard with age-clears-accessed-bit with clear-dirty-atomic with "
    "nx-disallowed-before-link with nx-track-recheck with nx-skips-dirty-logged with adjust-checks-disallowed"
)

KERNELS = (
    Kernels((5, 13), (5, 15), "v5.13"),
    Kernels((5, 16), (5, 17), "v5.16"),
    Kernels((5, 18), (6, 0), "v5.18"),
    Kernels((6, 1), (6, 1), "v6.1"),  # as it is maintained
    Kernels((6, 2), (6, 5), "v6.4"),
    Kernels((6, 6), (6, 7), V6_6),
    Kernels((6, 10), (6, 12), "v6.12"),
    Kernels((6, 13), (6, 18), "v6.18"),
)
"""Oldest first. Those that are missing are between two designs."""


def design_of(release: str) -> str | None:
    """The design of the kernel that `uname -r` calls so; None if there is none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return None
    version = int(found[1]), int(found[2])
    return next((kernels.design for kernels in KERNELS if kernels.first <= version <= kernels.last), None)
