"""What a comparison of a trace with the model has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from . import records
from .matching import Rule


@dataclass(frozen=True, slots=True)
class Divergence:
    """An event that the model does not explain, or a reaction that the kernel did not show."""

    line: int
    event: str
    reason: str
    before: tuple[str, ...]
    """The lines of the trace up to there."""
    doing: str
    """What the model was doing: the operation, and the kernel function that it was in."""
    rules: tuple[str, ...]
    """The rules of the design that the model asked for last, latest first; "not" before those it does not follow."""
    tables: tuple[str, ...]
    """The entry of the event in each of the model's page tables that has it."""


@dataclass(slots=True)
class SnapshotResult:
    """A snapshot beside the model's tables."""

    number: int
    label: str
    entries: int = 0
    differences: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """What the comparison has found."""

    design: str
    gaps: list[str] = field(default_factory=list)
    """What was not compared, and why: with any, that nothing diverges proves little."""
    events: int = 0
    """Reactions of the kernel in the trace."""
    matched: int = 0
    explained: Counter[Rule] = field(default_factory=Counter)
    divergent: int = 0
    orders: int = 0
    """How often another order of the threads' steps than that of their events was looked for, and found."""
    resynchronised: int = 0
    """Entries of the model that were set to the trace's after a divergence."""
    divergences: list[Divergence] = field(default_factory=list)
    """The first few."""
    snapshots: list[SnapshotResult] = field(default_factory=list)

    def keep(self) -> Callable[[], None]:
        """What has been found so far; to call the answer brings it back."""
        counts = self.events, self.matched, self.divergent, self.resynchronised
        explained, told, compared = self.explained.copy(), len(self.divergences), len(self.snapshots)

        def bring_back() -> None:
            self.events, self.matched, self.divergent, self.resynchronised = counts
            self.explained = explained.copy()
            del self.divergences[told:], self.snapshots[compared:]

        return bring_back

    @property
    def snapshots_equal(self) -> int:
        return sum(not snapshot.differences for snapshot in self.snapshots)

    @property
    def snapshots_different(self) -> int:
        return sum(bool(snapshot.differences) for snapshot in self.snapshots)

    @property
    def equal(self) -> bool:
        return not self.divergent and not self.snapshots_different


def text_of(event: records.Event) -> str:
    record = event.record
    if isinstance(record, records.Mark):
        return record.text
    if isinstance(record, records.Unknown):
        return record.text.decode("utf-8", "replace")
    if isinstance(record, records.Kprobe):
        return f"({record.symbol}) {record.arguments.decode('utf-8', 'replace')}"
    pairs = zip(getattr(record, "_fields", ()), record, strict=False)
    return " ".join(f"{name} {_value(value)}" for name, value in pairs)


def _value(value: object) -> str:
    return f"{value:x}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
