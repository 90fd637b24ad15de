"""What each rule of v6.12 is good for: dropped, it lets some property fail in some scenario, or it is told why not."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from interleaf import scenarios
from interleaf.designs import V6_12
from interleaf.explore.outcome import Bounds
from interleaf.explore.states import StateSearch
from interleaf.kvm.design import RULES

DOCUMENT = Path(__file__).parents[2] / "docs" / "rules.md"

STATES = 10_000

BREAKS: dict[str, tuple[str, str]] = {
    "age-keeps-dirty": ("write-vs-aging-without-ad-bits", "I11"),
    "atomic-zap-flushes": ("dirty-log-disable-vs-fault", "I2"),
    "clear-dirty-by-root": ("dirty-log-pml-vs-nested-write", "I10"),
    "enable-log-always-flushes": ("dirty-log-enable-vs-aging", "I10"),
    "flush-across-roots": ("unmap-in-two-roots", "I1"),
    "flush-of-previous-roots-before-yield": ("zap-range-vs-unmap-in-two-roots", "I1"),
    "forward-progress": ("zap-range-vs-unmap-in-two-roots", "livelock"),
    "free-obsolete-checks-each": ("nested-switch-vs-nx-huge-pages", "obsolete-root-kept"),
    "frozen-leaf-check": ("dirty-log-disable-vs-fault", "frozen-spte-atomic"),
    "full-mmu-seq": ("fault-after-many-invalidations", "livelock"),
    "invalid-slot-retry": ("late-fault-vs-memslot-delete", "I1"),
    "invalidate-requests-reload": ("fault-vs-other-memslot-delete", "I9"),
    "iter-yielded": ("last-put-vs-unmap", "I12"),
    "map-at-goal-only": ("fault-below-dirty-log-disable", "map-at-wrong-level"),
    "mmio-generation-wrap": ("mmio-vs-many-memslots", "stale-mmio"),
    "mmio-refuses-update": ("mmio-vs-memslot-create", "stale-mmio"),
    "next-root-rcu": ("fault-vs-other-memslot-delete", "use-after-free"),
    "notifier-retry": ("fault-vs-unmap", "I1"),
    "nx-disallowed-before-link": ("execute-vs-dirty-log-disable", "use-after-free"),
    "nx-recovery-flushes": ("nx-recovery-vs-fault", "I2"),
    "nx-track-recheck": ("execute-vs-dirty-log-disable", "use-after-free"),
    "replaced-table-flush": ("huge-page-replaces-table", "I2"),
    "reclaim-for-legacy-only": ("faults-at-shadow-page-quota", "list-corruption"),
    "special-root-check": ("nested-pae-fault-vs-nx-huge-pages", "BUG"),
    "stale-check-after-reclaim": ("nested-fault-recycles-root", "use-after-free"),
    "stale-root-check": ("fault-vs-other-memslot-delete", "I8"),
    "swap-waits-for-notifiers": ("memslot-create-vs-unmap", "BUG"),
    "unmap-sees-invalid-roots": ("memslot-delete-vs-unmap", "I1"),
    "write-protect-mmu-writable": ("write-tracking-vs-write", "write-tracking"),
    "xchg-volatile-sptes": ("dirty-log-enable-vs-aging", "I11"),
    "zap-1g-first": ("last-put-beyond-1g-vs-unmap", "I14"),
    "zap-all-takes-slots-lock": ("memslot-delete-vs-nx-huge-pages", "I7"),
    "zap-range-counts": ("fault-vs-zap-range", "stale-range"),
    "zap-range-unit": ("late-fault-vs-zap-range", "stale-range"),
    "zap-up-to-architecture-s-max-gfn": ("memory-above-maxphyaddr", "I12"),
}
"""A scenario, and what is violated there without the rule."""

LOOKED_IN = sorted({scenario for scenario, _ in BREAKS.values()})
"""The scenarios in which `python -m tests.designs.idle_rules` looks for what the other rules are good for."""

COST = "it saves work, and nothing is wrong without it"
SHAPE = "another way to the same end: kernels differ in it, and traces show it"
LATENT = "nothing in this kernel depends on it; it does in older or newer ones"

IDLE: dict[str, str] = {
    "adjust-checks-disallowed": COST,
    "age-clears-accessed-bit": SHAPE,
    "child-role-from-parent": SHAPE,
    "clear-dirty-atomic": SHAPE,
    "clear-splits-last-page": COST,
    "collapse-zaps-leafs": LATENT,
    "collapse-zaps-parents": SHAPE,
    "cr0-wp-keeps-roots": COST,
    "eager-page-split": SHAPE,
    "fast-page-fault": COST,
    "flush-before-rcu-unlock": LATENT,
    "freeze-without-bookkeeping": SHAPE,
    "invalidate-names-gfns": SHAPE,
    "leaf-replaces-table": SHAPE,
    "leaf-writable-hint": "no huge page covers what is write-tracked; the kernel needs it for shadow pages out of step",
    "map-level-guard": "a second check beside map-at-goal-only",
    "memory-attributes": SHAPE,
    "nx-skips-dirty-logged": COST,
    "pre-fault-memory": SHAPE,
    "rcu-per-root": COST,
    "remade-spte-clean": SHAPE,
    "retry-before-lock": COST,
    "roots-under-read-lock": COST,
    "slot-zap-quirk": COST,
    "split-allocates-unlocked": SHAPE,
    "split-on-fault": SHAPE,
    "split-valid-roots": COST,
    "volatile-accessed-bit": "it decides which A bits may be lost; kernels from v6.15 on let more of them go",
    "warn-frozen-atomic": "a check of the kernel's own",
    "warn-frozen-exclusive": "a check of the kernel's own",
    "write-protect-valid-roots": COST,
    "zap-leafs-no-flush-invalid": COST,
    "zap-small-first": COST,
    "zapped-root-frees-obsolete-only": COST,
}


def document() -> str:
    """What docs/rules.md says."""
    lines = [
        "# What each rule of v6.12 is good for",
        "",
        "A rule that is dropped lets a property fail, or it is said why it does not: that was looked for in all the",
        f"{len(LOOKED_IN)} scenarios of this table, up to 3,000 states, by `python -m tests.designs.idle_rules`.",
        "`interleaf list rules` says what each rule is, and which designs follow it.",
        "",
        "| rule | without it |",
        "|---|---|",
    ]
    for name in sorted(V6_12.rules):
        if name in BREAKS:
            scenario, violated = BREAKS[name]
            lines.append(f"| `{name}` | {violated} is violated in `{scenario}` |")
        else:
            lines.append(f"| `{name}` | nothing was found: {IDLE[name]} |")
    return "\n".join([*lines, ""])


def test_each_rule_is_in_one_table() -> None:
    assert set(BREAKS) | set(IDLE) == V6_12.rules
    assert not set(BREAKS) & set(IDLE)
    assert set(RULES) >= V6_12.rules


@pytest.mark.parametrize("name", BREAKS)
def test_without_the_rule_something_breaks(name: str) -> None:
    scenario, violated = BREAKS[name]
    setup = functools.partial(scenarios.load(scenario).setup, V6_12.without(name))
    search = StateSearch(setup, bounds=Bounds(states=STATES))
    try:
        outcome = search.run()
    finally:
        search.close()
    assert violated in {found.violation.rule for found in outcome.found}


def test_the_document_says_so() -> None:
    assert DOCUMENT.read_text() == document()
