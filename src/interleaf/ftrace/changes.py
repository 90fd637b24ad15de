"""One change of an entry: as a trace tells of it, as it was put in its place, and what is wrong with it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from .records import Event
from .spte import Change
from .tables import Table
from .tasks import Doing


class Explained(enum.StrEnum):
    """Why an event fits although the trace did not say so."""

    AD_BITS = "the CPU set A or D bits"
    THAWED = "a frozen entry became non-present without an event (up to v6.9)"
    FAST_PAGE_FAULT = "fast_page_fault changed an entry, and its own event says so"
    SPLIT_CHILDREN = "entries of a table that replaced a huge page, filled without events"
    SPLIT_EXECUTABLE = "such entries were made executable besides (NX huge pages)"
    SWAPPED = "two CPUs' events appear in the wrong order"
    ROOTS = "several tables fitted, and the task told which one is meant"
    LOST_RACE = "a table was allocated and lost the race to be linked"
    UNSEEN = "the entry was made before the trace began, or while events were lost"


class Applied(NamedTuple):
    """A change of an entry, put in its place."""

    event: Event
    table: Table
    position: int
    """Index of the entry in the table."""
    old: int
    new: int
    change: Change
    doing: Doing
    """What the task was doing that made it."""
    invalid: bool
    """Under a root that is invalid."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """An event that cannot be, after all that came before."""

    event: Event
    text: str

    def __str__(self) -> str:
        return f"line {self.event.line}: {self.text}"


class Wanted(NamedTuple):
    """A change whose table is sought."""

    event: Event
    as_id: int | None
    gfn: int
    level: int | None
    """None: fast_page_fault does not say."""
    old: int
    new: int
    doing: Doing
