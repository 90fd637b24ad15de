"""Bugs between page faults, notifiers and memslots."""

from __future__ import annotations

from .bug import Bug

BUGS: tuple[Bug, ...] = (
    Bug(
        "B09",
        "The snapshot of the number of invalidations does not have all its bits",
        "Once the number is too large, each fault finds that it has changed.",
        fix="d75c1b7bdedd",
        culprit="a955cad84cda",
        kind="livelock",
        design="v6.12",
        deviation="without full-mmu-seq",
        scenarios=("fault-after-many-invalidations",),
        rules=("livelock",),
    ),
    Bug(
        "B49",
        "A range is zapped, and mapped again with what was looked up before",
        "The zap does not count as an invalidation, so faults that began before it do not try again.",
        fix="edb298c663fc",
        culprit="",
        kind="stale mapping",
        design="v6.12",
        deviation="without zap-range-counts",
        scenarios=("fault-vs-zap-range",),
        rules=("stale-range",),
    ),
    Bug(
        "B51",
        "A notifier's start and its end see different memslots",
        "An invalidation ends that never began, or begins and never ends.",
        fix="52ac8b358b0c",
        culprit="",
        kind="livelock",
        design="v6.12",
        deviation="without swap-waits-for-notifiers",
        scenarios=(
            "memslot-create-vs-unmap",
            "memslot-delete-vs-unmap",
        ),
        rules=(
            "BUG",
            "WARN",
        ),
    ),
    Bug(
        "B53",
        "A memslot that is being deleted is taken for MMIO",
        "A fault puts an MMIO SPTE in the place of one that maps a page.",
        fix="e0c378684b65",
        culprit="",
        kind="page-table corruption",
        design="v6.12",
        deviation="without invalid-slot-retry",
        scenarios=("late-fault-vs-memslot-delete",),
        rules=("I1",),
    ),
    Bug(
        "B56",
        "A huge page is mapped while a part of it becomes private",
        "Faults on other gfns of the huge page do not try again.",
        fix="9129633d568e",
        culprit="8dd2eee9d526",
        kind="wrong mapping",
        design="v6.18",
        deviation="without attributes-cover-huge-pages",
        scenarios=("private-conversion-vs-fault",),
        rules=("memory-attributes",),
    ),
)
