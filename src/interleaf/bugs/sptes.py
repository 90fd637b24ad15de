"""Bugs in which two updates of one SPTE get in each other's way."""

from __future__ import annotations

from .bug import Bug

BUGS: tuple[Bug, ...] = (
    Bug(
        "B35",
        "An exclusive update loses a bit that was set without the lock",
        "The SPTE is read, the processor sets D, and a value is stored that was made of what was read.",
        fix="ba3a6120a4e7",
        culprit="2f2fad0897cb",
        kind="lost dirty page",
        design="v5.18",
        deviation="without xchg-volatile-sptes",
        scenarios=("write-vs-aging-with-pml",),
        rules=("I11",),
    ),
    Bug(
        "B38",
        "A small page is mapped in the place of a table",
        "The walk to the goal was cut short because somebody had zapped a table on the way.",
        fix="80a3e4ae962d",
        culprit="63d28a25e04c",
        kind="page-table corruption",
        design="v6.12",
        deviation="without map-at-goal-only",
        scenarios=("fault-below-dirty-log-disable",),
        rules=("map-at-wrong-level",),
    ),
    Bug(
        "B41",
        "A table is put on the list of those to recover after it was removed",
        "Whoever has removed it finds it on no list, and frees it. v6.1, which marks the table only when it puts it on "
        "the list, has the same window.",
        fix="21a36ac6b6c7",
        culprit="61f94478547b",
        kind="list corruption",
        design="v6.12",
        deviation="without nx-track-recheck",
        scenarios=("execute-vs-dirty-log-disable",),
        rules=("use-after-free",),
    ),
    Bug(
        "B32",
        "Write tracking passes over an entry that is read-only already",
        "Dirty logging took the W bit, and a fault may give it back without the lock: a write to the page is not seen.",
        fix="7c8a4742c4ab",
        culprit="46044f72c382",
        kind="stale permission",
        design="v6.12",
        deviation="without write-protect-mmu-writable",
        scenarios=("write-tracking-vs-write",),
        rules=("write-tracking",),
    ),
    Bug(
        "B45",
        "The D bit is cleared where nobody logs who sets it",
        "The processor does not log what a nested guest writes, so W must be taken in its root, but D is.",
        fix="2673dfb591a3",
        culprit="5982a5392663",
        kind="lost dirty page",
        design="v6.12",
        deviation="without clear-dirty-by-root",
        scenarios=("dirty-log-pml-vs-nested-write",),
        rules=("I10",),
    ),
)
