"""Can an event speak of this table, and which one is the likeliest of several?"""

from __future__ import annotations

from collections.abc import Sequence

from .changes import Wanted
from .spte import FROZEN, NON_PRESENT, PRESENT, Layout
from .tables import Table, index_of
from .tasks import Doing, TaskState


def fits(layout: Layout | None, table: Table, index: int, old: int) -> bool:
    """Can the entry have been `old`?"""
    stored = table.entries.get(index)
    if stored is None:
        if table.huge is None:
            return old in NON_PRESENT or not table.sure
        stored = table.read(index) or 0
        if layout is not None and differ_by_hardware(layout, layout.executable(stored), old):
            return True
    if stored == old:
        return True
    if stored in FROZEN or stored in NON_PRESENT:
        return old in NON_PRESENT or not table.sure
    return differ_by_hardware(layout, stored, old) or not table.sure


def differ_by_hardware(layout: Layout | None, stored: int, old: int) -> bool:
    """Is `old` what `stored` becomes when the CPU sets A and D bits?"""
    if layout is None or not stored & PRESENT:
        return stored == old
    return stored | (old & layout.volatile) == old


def unlikely(table: Table, index: int, old: int, state: TaskState, last: Table | None) -> tuple[int | bool, ...]:
    """A key by which the likeliest of several fitting ones comes first; `last`: where the task made its last change."""
    root = table.root()
    exact = (table.read(index) or 0) == old or (table.read(index) is None and old in NON_PRESENT)
    return (
        table.until is not None,
        root.detached,
        state.doing is Doing.FAULT and root.invalid,
        state.doing is Doing.FAULT and state.root is not None and root.pfn != state.root,
        state.doing is Doing.ZAP_ALL and not root.invalid,
        not table.sure,
        not exact,
        last is None or last.root() is not root,
        -root.since,
    )


def misfit(wanted: Wanted, tables: Sequence[Table]) -> str:
    """Why a change fits none of the `tables` that are in its place, in words."""
    where = "" if wanted.level is None else f", level {wanted.level}"
    known = [f"{table.read(index_of(wanted.level or 1, wanted.gfn)) or 0:x}" for table in tables]
    before = f"the trace said {' or '.join(known)}" if known else "the trace knows of no table there"
    return f"gfn {wanted.gfn:x}{where} changes from {wanted.old:x} to {wanted.new:x}, but {before}"
