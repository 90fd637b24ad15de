"""Data races in one execution, by happens-before.

Two accesses of different tasks to one field race if at least one writes, at least one is plain, and nothing
orders them: no lock, no grace period, no release that the other one acquired. Each task has a vector clock
(Fidge; Mattern), as in FastTrack (Flanagan & Freund, PLDI 2009) without its compression. As in the kernel's
memory model, READ_ONCE and WRITE_ONCE are not races with each other, and order nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cells import Cell
from .findings import Violation
from .values import Value

if TYPE_CHECKING:
    from .objects import Object

Site = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class _Access:
    task: int
    clock: int
    write: bool
    plain: bool
    site: Site


class RaceDetector:
    """An observer of a `Memory` that gathers `races`.

    `site` tells where the running operation was asked for. With `only`, other cells are not looked at.
    """

    def __init__(self, site: Callable[[], Site], only: Cell | None = None) -> None:
        self.races: list[Violation] = []
        self._site = site
        self._only = only
        self._clocks: dict[int, dict[int, int]] = {}
        self._tokens: dict[Value, dict[int, int]] = {}
        self._last: dict[int, dict[tuple[int, bool, bool], _Access]] = {}

    def access(self, task: int, cell: Cell, write: bool, plain: bool) -> None:
        """`task` reads or writes `cell`."""
        if self._only is not None and cell is not self._only:
            return
        clock = self._clocks.setdefault(task, {task: 1})
        mine = _Access(task, clock[task], write, plain, self._site())
        known = self._last.setdefault(cell.index, {})
        for theirs in known.values():
            unordered = theirs.task != task and clock.get(theirs.task, 0) < theirs.clock
            if unordered and (theirs.write or write) and (theirs.plain or plain):
                self.races.append(self._violation(cell, theirs, mine))
        known[task, write, plain] = mine

    def order(self, task: int, token: Value, acquire: bool, release: bool) -> None:
        """`task` acquires what was released into `token`, releases into it, or both."""
        clock = self._clocks.setdefault(task, {task: 1})
        if acquire:
            for other, time in self._tokens.get(token, {}).items():
                clock[other] = max(clock.get(other, 0), time)
        if release:
            kept = self._tokens.setdefault(token, {})
            for other, time in clock.items():
                kept[other] = max(kept.get(other, 0), time)
            clock[task] += 1

    def life(self, task: int, owner: Object, state: int) -> None:
        """An object was allocated or freed: told by the access to its life cell."""

    def _violation(self, cell: Cell, first: _Access, second: _Access) -> Violation:
        pair = sorted((self._describe(first), self._describe(second)))
        if cell is cell.owner.life:
            return Violation(
                "use-after-free",
                f"nothing orders the freeing of {cell.owner} and the use of it: {pair[0]} and {pair[1]}",
                True,
                cell.owner.name,
            )
        message = f"{cell.domain.name}: {pair[0]} and {pair[1]} are not ordered"
        return Violation("data-race", message, False, cell.owner.name)

    def _describe(self, access: _Access) -> str:
        kind = ("plain " if access.plain else "marked ") + ("write" if access.write else "read")
        return f"{kind} in {access.site[2]}"
