"""Bugs in which somebody waits or tries for ever."""

from __future__ import annotations

from .bug import Bug

BUGS: tuple[Bug, ...] = (
    Bug(
        "B19",
        "A prefault tries for ever with a root that is obsolete",
        "It takes no requests, and making sure of a root does not look whether it is obsolete.",
        fix="20a6cff3b283",
        culprit="",
        kind="livelock",
        design="v6.18",
        deviation="without reload-frees-obsolete",
        scenarios=("prefault-with-obsolete-root",),
        rules=("livelock",),
    ),
    Bug(
        "B54",
        "A prefault and the deletion of its memslot wait for each other",
        "The prefault tries until the memslot is gone; the deletion waits for its SRCU reader.",
        fix="3ccbf6f47098",
        culprit="",
        kind="deadlock",
        design="v6.18",
        deviation="without prefault-invalid-slot",
        scenarios=("prefault-vs-memslot-delete",),
        rules=("livelock",),
    ),
    Bug(
        "B64",
        "Two walks yield to each other for ever",
        "Each gives mmu_lock up for the other one before it has done anything since it last did, and begins again.",
        fix="ed5e484b79e8",
        culprit="",
        kind="livelock",
        design="v6.12",
        deviation="without forward-progress",
        scenarios=("zap-range-vs-unmap-in-two-roots",),
        rules=("livelock",),
    ),
)
