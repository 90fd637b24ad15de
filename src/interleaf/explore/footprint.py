"""What a step touched, and when two steps depend on each other although locks are taken lazily.

A critical section that begins and ends within one step leaves its lock as it was. So two such sections of one
lock depend on each other only if the data that they touch does: nothing is gained by exploring the orders of
independent sections (the idea of lazy happens-before, Thomson & Donaldson, PPoPP 2015, and of LAPOR, Kokologiannakis,
Raad & Vafeiadis, OOPSLA 2019). A lock that is held when a step ends keeps others out, and so orders. Per lock,
a step has some of four modes:

* a section inside the step, for reading or writing (`INSIDE_READ`, `INSIDE_WRITE`);
* one end of a section that spans steps, for reading or writing (`SPAN_READ`, `SPAN_WRITE`).

A write that spans depends on all four, a read that spans on both kinds of writing, and nothing else on anything.

Whether a section is inside a step may depend on where the other tasks are, since scheduling points do (`points.py`):
the same section is split in one state, and whole in another where nobody can notice. Then two of its orders with
another section are different after all, as they are wherever it is split. So a section counts as inside only for tasks
that were never seen to hold the lock when a step ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from interleaf.runtime.cells import Cell
from interleaf.runtime.memory import Held, Memory
from interleaf.runtime.values import Value

INSIDE_READ, INSIDE_WRITE, SPAN_READ, SPAN_WRITE = 1, 2, 4, 8

DEPENDS = {
    INSIDE_READ: SPAN_WRITE,
    INSIDE_WRITE: SPAN_READ | SPAN_WRITE,
    SPAN_READ: INSIDE_WRITE | SPAN_WRITE,
    SPAN_WRITE: INSIDE_READ | INSIDE_WRITE | SPAN_READ | SPAN_WRITE,
}
"""Mode -> the modes that depend on it."""

MODE_BITS = 4


class Footprint(NamedTuple):
    """What one or more steps touched, as bit sets.

    `touched` and `writes` are cells, without the states of lazy locks. `modes` are the lock modes, `against` the
    modes of others that depend on these.
    """

    touched: int
    writes: int
    modes: int = 0
    against: int = 0

    def conflicts(self, other: Footprint) -> bool:
        """Do the two depend on each other?"""
        return bool(self.writes & other.touched or other.writes & self.touched or self.modes & other.against)

    def union(self, other: Footprint) -> Footprint:
        return Footprint(
            self.touched | other.touched,
            self.writes | other.writes,
            self.modes | other.modes,
            self.against | other.against,
        )


NOTHING = Footprint(0, 0)


class Turn(NamedTuple):
    """A lock that a step took or gave back."""

    cell: Cell
    exclusive: bool
    taken: bool


class LockModes:
    """Tells locks and data apart in the footprints of one search.

    A lock whose state somebody looks at without taking it (`Memory.observe`, or a bare access to its cell) is not
    lazy: its cell is data too. `watched` are the cells that were accessed so.
    """

    def __init__(self) -> None:
        self.watched = 0
        self.lazy = 0
        """Cells of the locks known so far that are lazy."""
        self.split: dict[int, int] = {}
        """For each task, the locks that it was seen to hold when a step ended, as a bit set of cells."""
        self._numbers: dict[Cell, int] = {}

    def restart(self) -> None:
        """A lock has come to be watched: which ones are lazy is found out again."""
        self.lazy = 0
        for cell in self._numbers:
            self._classify(cell)

    def mode(self, cell: Cell, mode: int) -> tuple[int, int]:
        """The bits of one mode of one lock, and of those that depend on it."""
        number = self._numbers.get(cell)
        if number is None:
            number = self._numbers[cell] = len(self._numbers)
            self._classify(cell)
        shift = MODE_BITS * number
        return mode << shift, DEPENDS[mode] << shift

    def footprint(self, memory: Memory, turns: Sequence[Turn], fatal: bool) -> Footprint:
        """The footprint of the step that `memory` has just seen, which took and gave back locks in these turns.

        Raises Watched if it looked at a lazy lock otherwise. A `fatal` step may have: it was stopped on the way.
        """
        modes = against = 0
        turned = exclusively = 0
        task = memory.task
        split = self.split.get(task, 0)
        for cell, inside, exclusive in _sections(turns):
            if not inside:
                self.split[task] = self.split.get(task, 0) | cell.bit
            spans = not inside or split & cell.bit
            if exclusive:
                bits, depending = self.mode(cell, SPAN_WRITE if spans else INSIDE_WRITE)
            else:
                bits, depending = self.mode(cell, SPAN_READ if spans else INSIDE_READ)
            modes |= bits
            against |= depending
            turned |= cell.bit
            if exclusive:
                exclusively |= cell.bit
        touched, writes = memory.reads | memory.writes, memory.writes
        # Whoever shares a lock goes in and out with commuting writes; a plain store is somebody looking at it.
        bare = self.lazy & ((touched & ~turned) | (writes & ~exclusively))
        for cell in memory.world.cells_of(bare) if fatal else ():
            bits, depending = self.mode(cell, SPAN_WRITE)
            modes |= bits
            against |= depending
        if bare and not fatal:
            self.watched |= bare
            raise Watched
        return Footprint(touched & ~self.lazy, writes & ~self.lazy, modes, against)

    def changed(self, journal: Sequence[tuple[int, Value]]) -> int:
        """The cells that a step changed, from the part of the journal that it wrote; without lazy locks."""
        cells = 0
        for index, _ in journal:
            if index >= 0:
                cells |= 1 << index
        return cells & ~self.lazy

    def waiting(self, cell: Cell | None, exclusive: bool, looked: int) -> Footprint:
        """The footprint of a task that waits: for a lock, or for something in the cells it `looked` at.

        Were it to go on, its section might span steps, so it counts as one that does.
        """
        if cell is None:
            return Footprint(looked, 0)
        modes, against = self.mode(cell, SPAN_WRITE if exclusive else SPAN_READ)
        return Footprint(looked & ~self.lazy, 0, modes, against)

    def _classify(self, cell: Cell) -> None:
        if not cell.domain.observed and not cell.bit & self.watched:
            self.lazy |= cell.bit


class Watched(Exception):
    """A lock that was taken to be lazy is not."""


def turns(journal: Sequence[tuple[int, Value]], now: Held) -> list[Turn]:
    """The locks that a step took and gave back, in order, from the part of the journal that it wrote.

    `now` is what the task holds after the step.
    """
    states: list[Held] = [old for index, old in journal if index < 0]
    if not states:
        return []
    states.append(now)
    found = []
    for before, after in itertools.pairwise(states):
        if len(after.locks) > len(before.locks):
            found.append(Turn(*after.locks[-1], True))
        elif len(after.locks) < len(before.locks):
            position = next(
                place for place, held in enumerate(before.locks) if after.locks[place : place + 1] != (held,)
            )
            found.append(Turn(*before.locks[position], False))
    return found


def _sections(turns: Sequence[Turn]) -> list[tuple[Cell, bool, bool]]:
    """The sections of a step: (lock, did it begin and end there?, exclusive?)."""
    begun: list[Turn] = []
    found: list[tuple[Cell, bool, bool]] = []
    for turn in turns:
        if turn.taken:
            begun.append(turn)
            continue
        for position in range(len(begun) - 1, -1, -1):
            if begun[position].cell is turn.cell:
                del begun[position]
                found.append((turn.cell, True, turn.exclusive))
                break
        else:
            found.append((turn.cell, False, turn.exclusive))
    found.extend((turn.cell, False, turn.exclusive) for turn in begun)
    return found
