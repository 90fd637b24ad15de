"""One execution as a partial order of steps, and the races in it that are worth turning round.

Two steps are ordered if one comes before the other in their task, started the other's task, or depends on it
(`footprint.py`), and what follows from that. A *race* of step i is an earlier step j of another task that depends
on i, is ordered before i by that alone, and could have come after it. To explore the other order one goes
back to the state before j and takes a first step of the sequence "whatever came after j and is not ordered after
it, then i" (its *initials*; source sets, Abdulla, Aronis, Jonsson & Sagonas, POPL 2014).

**Waiting.** Step i could only have come before j if its task would not have had to wait. For locks this is known
exactly: sections that would be open there are left out of the sequence with all that is ordered after their
beginning, and if the lock was held already, the race is none. A race with a step inside somebody's critical
section thereby becomes one with the step that began the section. For other kinds of waiting (a task's end, a
grace period) it is not known; then no race hides an earlier one, and where several steps bear on the condition,
every task is to be tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from interleaf.runtime.cells import Cell

from .footprint import Footprint, Turn
from .machine import Basic


class Wait(NamedTuple):
    """What a step's first operation may have to wait for."""

    cell: Cell | None
    """The lock, or None for anything else."""
    exclusive: bool


@dataclass(slots=True, eq=False)
class Section:
    """A critical section that spans steps: the positions of the steps that begin and end it."""

    task: int
    exclusive: bool
    begun: int
    ended: int | None = None


@dataclass(slots=True)
class Event:
    """A step that happened."""

    task: int
    footprint: Footprint
    past: int
    """The steps ordered before it, as a bit set of positions."""
    moves: list[Basic]
    spoilt: bool
    """It ended its task by a fatal violation, or is ordered after such a step."""
    begun: list[tuple[Cell, Section]]
    ended: list[Section]


class Race(NamedTuple):
    """Go back to the state before step `position` and make sure that one of the tasks is run there."""

    position: int
    initials: int
    """Tasks, as a bit set; -1: each of them is to be run."""
    first: int
    """The one of them that is run if none is."""


class Path:
    """The steps from the initial state to the current one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._of: dict[int, list[int]] = {}
        """Positions of the steps of each task."""
        self._started: dict[int, int] = {}
        """Position of the step that started a task; absent for those that the set-up started."""
        self._sections: dict[Cell, list[Section]] = {}

    def clear(self, held: Sequence[Sequence[tuple[Cell, bool]]]) -> None:
        """Back to the initial state, in which each task holds these locks."""
        self.events.clear()
        self._of.clear()
        self._started.clear()
        self._sections.clear()
        for task, locks in enumerate(held):
            for cell, exclusive in locks:
                self._sections.setdefault(cell, []).append(Section(task, exclusive, -1))

    def before(self, task: int) -> int:
        """The steps ordered before whatever `task` does next, without what that will depend on."""
        positions = self._of.get(task)
        last = positions[-1] if positions else self._started.get(task)
        return 0 if last is None else self.events[last].past | 1 << last

    def dependent(self, footprint: Footprint, before: int) -> list[int]:
        """Positions of the steps that conflict with `footprint`, not counting those of `before`; the latest first."""
        events = self.events
        touched, writes, _, against = footprint
        rest = ((1 << len(events)) - 1) & ~before
        found = []
        while rest:
            position = rest.bit_length() - 1
            rest ^= 1 << position
            theirs = events[position].footprint
            if theirs.writes & touched or writes & theirs.touched or theirs.modes & against:
                found.append(position)
        return found

    def push(
        self,
        task: int,
        footprint: Footprint,
        past: int,
        moves: list[Basic],
        spoilt: bool,
        turns: Sequence[Turn],
        started: Sequence[int],
    ) -> Event:
        """A step has happened."""
        position = len(self.events)
        event = Event(task, footprint, past, moves, spoilt, [], [])
        for turn in turns:
            sections = self._sections.setdefault(turn.cell, [])
            if turn.taken:
                section = Section(task, turn.exclusive, position)
                sections.append(section)
                event.begun.append((turn.cell, section))
                continue
            for section in reversed(sections):
                if section.task == task and section.ended is None:
                    section.ended = position
                    event.ended.append(section)
                    break
        self.events.append(event)
        self._of.setdefault(task, []).append(position)
        for child in started:
            self._started[child] = position
        return event

    def pop(self) -> None:
        """Forget the latest step."""
        event = self.events.pop()
        self._of[event.task].pop()
        for section in event.ended:
            section.ended = None
        for cell, section in reversed(event.begun):
            self._sections[cell].remove(section)

    def races(
        self, task: int, footprint: Footprint, before: int, dependent: Sequence[int], wait: Wait | None, ends: int
    ) -> Iterator[Race]:
        """The races of a step that `task` makes next, or would make if it need not wait.

        `before` and `dependent` are what the methods of these names say of it; `ends` are the cells that tell
        that a task has ended.
        """
        events = self.events
        direct = before
        for position in dependent:
            direct |= 1 << position
        hidden = 0
        for position in dependent:
            if hidden >> position & 1:
                continue
            after = self._unordered(position)
            everybody = False
            if wait is not None and wait.cell is None:
                theirs = events[position].footprint
                cells = (theirs.writes & footprint.touched) | (footprint.writes & theirs.touched)
                if not cells & ~ends and not theirs.modes & footprint.against:
                    continue  # an end only lets others go on: it cannot come after what waited for it
                condition = footprint.touched & ~ends
                everybody = any(events[other].footprint.writes & condition for other in _positions(after))
            else:
                if wait is not None and wait.cell is not None:
                    allowed = self._without_waiting(task, wait.cell, wait.exclusive, position, after)
                    if allowed is None:
                        continue
                    after = allowed
                hidden |= events[position].past
            if everybody:
                yield Race(position, -1, task)
                continue
            initials, first = 0, task
            for other in reversed(_positions(after)):
                if not events[other].past & after:
                    first = events[other].task
                    initials |= 1 << first
            if not direct & after:
                first = task
                initials |= 1 << task
            yield Race(position, initials, first)

    def _unordered(self, position: int) -> int:
        """The steps after the one at `position` that are not ordered after it."""
        found = 0
        for other in range(position + 1, len(self.events)):
            if not self.events[other].past >> position & 1:
                found |= 1 << other
        return found

    def _without_waiting(self, task: int, cell: Cell, exclusive: bool, position: int, after: int) -> int | None:
        """The largest part of `after` that, following the steps before `position`, leaves the lock free for `task`.

        None if there is none.
        """
        earlier = (1 << position) - 1
        sections = [
            section
            for section in self._sections.get(cell, ())
            if section.task != task and (exclusive or section.exclusive)
        ]
        again = True
        while again:
            again = False
            for section in sections:
                happened = earlier | after
                if section.ended is not None and happened >> section.ended & 1:
                    continue
                if section.begun < position:
                    return None
                if after >> section.begun & 1:
                    after &= ~(1 << section.begun)
                    for other in _positions(after):
                        if self.events[other].past >> section.begun & 1:
                            after &= ~(1 << other)
                    again = True
        return after


def _positions(mask: int) -> list[int]:
    """The positions of the bits that are set, in order."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
