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
    Bug(
        "B26",
        "A fault fills an entry again before the flush",
        "An entry is zapped with mmu_lock held for read, and mapped again while others use what was there before.",
        fix="08f07c800e9d",
        culprit="",
        kind="stale TLB",
        design="v6.12",
        deviation="without atomic-zap-flushes",
        scenarios=("dirty-log-disable-vs-fault",),
        rules=(
            "I2",
            "I3",
            "use-after-free",
        ),
    ),
    Bug(
        "B33",
        "Enabling dirty logging does not flush, because all SPTEs are access-tracked",
        "Aging made them unusable without a flush, so nothing is to be protected; a vCPU goes on writing by its TLB.",
        fix="b64d740ea7dd",
        culprit="",
        kind="lost dirty page",
        design="v6.12",
        deviation="without enable-log-always-flushes",
        scenarios=("dirty-log-enable-vs-aging",),
        rules=("I10",),
    ),
)
