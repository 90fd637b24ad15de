"""Bugs in which somebody waits or tries for ever, or holds others up for too long."""

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
    Bug(
        "B68",
        "A vCPU that puts the last reference on a root tears it down in one go",
        "It holds mmu_lock until all that the guest had mapped is zapped: 15 minutes and more for 64 TiB.",
        fix="8351779ce65f and efd995dae5eb",
        culprit="",
        kind="soft lockup",
        design="v5.18",
        deviation="swap kvm_tdp_mmu_put_root=v5.16",
        scenarios=("last-put-beyond-1g-vs-unmap",),
        rules=("I14",),
    ),
    Bug(
        "B69",
        "Each entry of a root is zapped with all the 512 GiB below it",
        "It yields between two of them only, and is in one RCU reader for each.",
        fix="1b6043e8e584",
        culprit="",
        kind="RCU stall",
        design="v5.18",
        deviation="without zap-1g-first",
        scenarios=("last-put-beyond-1g-vs-unmap",),
        rules=("I14",),
    ),
)
