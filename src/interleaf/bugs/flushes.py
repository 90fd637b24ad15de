"""Bugs in which a TLB flush is lost, or comes too late."""

from __future__ import annotations

from .bug import Bug

BUGS: tuple[Bug, ...] = (
    Bug(
        "B21",
        "A pending flush is lost at the next root",
        "A page is zapped in one root; the next one has nothing mapped, and so it seems that nothing need be flushed.",
        fix="f47e5bbbc92f",
        culprit="cf3e26427c08",
        kind="stale TLB",
        design="v6.12",
        deviation="without flush-across-roots",
        scenarios=("unmap-in-two-roots",),
        rules=("I1",),
    ),
    Bug(
        "B22",
        "A walk yields in a root with the flush of the previous root pending",
        "Somebody else then finds a page that is not mapped any more, but is still used through a TLB.",
        fix="a835429cda91",
        culprit="",
        kind="stale TLB",
        design="v6.12",
        deviation="without flush-of-previous-roots-before-yield",
        scenarios=("zap-range-vs-unmap-in-two-roots",),
        rules=("I1",),
    ),
    Bug(
        "B29",
        "The flush comes after the RCU reader has been left",
        "A table that the walk has removed is freed while the hardware still walks it.",
        fix="bd29677952fa and fcb93eb6d09d",
        culprit="bb95dfb9e2df",
        kind="use-after-free by the hardware",
        design="v5.16 with flush-before-rcu-unlock without removed-pt-flushes",
        deviation="without flush-before-rcu-unlock",
        scenarios=("zap-tables-vs-guest",),
        rules=("I2",),
    ),
)
