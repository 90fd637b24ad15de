"""Where the model and a trace differ: what is told of it, and how the comparison goes on afterwards."""

from __future__ import annotations

from collections.abc import Callable

from interleaf.hw.page_table import index_of

from . import records
from .drive import Driver, Thread
from .matching import Frames
from .outcome import Divergence, Result, text_of
from .spte import points_to_table

BEFORE = 12
"""Events that are kept to show what came before a divergence."""

TOLD = 20
"""Divergences that are told; all are counted."""

RULES = 8
"""Rules that the model asked for last, of which a divergence tells."""


class Divergences:
    """Adds to the divergences of a result."""

    def __init__(self, driver: Driver, frames: Frames, result: Result) -> None:
        self.driver = driver
        self.frames = frames
        self.result = result
        self._before: tuple[records.Event, ...] = ()

    def keep(self) -> Callable[[], None]:
        """The events that are kept so far; to call the answer brings them back."""
        before = self._before

        def bring_back() -> None:
            self._before = before

        return bring_back

    def note(self, event: records.Event) -> None:
        """An event of the trace is about to be compared."""
        self._before = (*self._before[1 - BEFORE :], event)

    def add(self, event: records.Event, reason: str, thread: Thread | None) -> None:
        """The model differs at this event, in `thread` if that is known."""
        self.result.divergent += 1
        if len(self.result.divergences) >= TOLD:
            return
        command = self.driver.command(thread) if thread is not None else None
        doing = f"{command[0]}, in {self.driver.site(thread)}" if thread is not None and command else ""
        self.result.divergences.append(
            Divergence(
                event.line,
                f"{event.name}: {text_of(event)}",
                reason,
                tuple(f"{e.line}: {e.task.comm}-{e.task.pid} {e.name}: {text_of(e)}" for e in self._before),
                doing or "nothing",
                self.driver.rules()[:RULES],
                self._entries(event),
            )
        )

    def follow(self, event: records.Event) -> None:
        """Make the model's entry what the trace says, so that what comes later can still be compared."""
        record = event.record
        if not isinstance(record, records.KvmTdpMmuSpteChanged) or points_to_table(record.new_spte, record.level):
            return
        index = index_of(record.gfn, record.level)
        for sp in self.driver.tables_at(record.level, record.gfn):
            entry = self.driver.entry(sp, index)
            if not points_to_table(entry, record.level) and entry == record.old_spte:
                self.driver.set_entry(sp, index, record.new_spte)
                self.result.resynchronised += 1

    def _entries(self, event: records.Event) -> tuple[str, ...]:
        record = event.record
        if not isinstance(record, records.KvmTdpMmuSpteChanged):
            return ()
        return tuple(
            f"{sp.name}: {self.frames.spte(self.driver.entry(sp, index_of(record.gfn, record.level)), record.level):x}"
            for sp in self.driver.tables_at(record.level, record.gfn)
        )
