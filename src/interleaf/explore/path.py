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

**Spinning.** A task that has come round to where it was, and has left everything as it was, does the same again
unless somebody changes what it saw, or has to do with what it changed for a while: until then it is not run. An
execution in which it goes round once more has the same outcomes as the one without that round. (Loops without effect
as in Jonsson, Lång & Sagonas, FMSD 2025.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from interleaf.runtime.cells import Cell, World
from interleaf.runtime.execution import Move, Schedule
from interleaf.runtime.memory import Memory
from interleaf.runtime.operations import Task
from interleaf.runtime.values import Value

from .automaton import Node
from .footprint import NOTHING, Footprint, Turn
from .machine import Basic, Machine
from .waits import Wait


@dataclass(slots=True, eq=False)
class Section:
    """A critical section that spans steps: the positions of the steps that begin and end it."""

    task: int
    exclusive: bool
    begun: int
    ended: int | None = None


class Round(NamedTuple):
    """Steps by which a task came back to where it was without leaving a trace."""

    positions: tuple[int, ...]
    footprint: Footprint
    """The data that they touched."""


@dataclass(slots=True)
class Event:
    """A step that happened."""

    node: Node
    """Where the task was before."""
    mark: int
    """Length of the memory's journal before."""
    footprint: Footprint
    changed: int
    """The cells whose values it changed, if only for a while; lazy locks are none."""
    past: int
    """The steps ordered before it, as a bit set of positions."""
    causes: int
    """The same with the freeing that it comes after, and all that this rests on: without these it would be another."""
    moves: list[Basic]
    spoilt: bool
    """It ended its task by a fatal violation, or is ordered after such a step."""
    started: Sequence[int]
    """The tasks that it started."""
    begun: list[tuple[Cell, Section]] = field(default_factory=list)
    ended: list[Section] = field(default_factory=list)

    @property
    def task(self) -> int:
        return self.node.task.index


class Race(NamedTuple):
    """Go back to the state before step `position` and make sure that one of the tasks is run there."""

    position: int
    initials: int
    """Tasks, as a bit set; -1: each of them is to be run."""
    first: int
    """The one of them that is run if none is."""


class PathMachine(Machine):
    """A machine that knows which tasks have ended only in this execution.

    In another one with the same partial order a task may still run beside the next step, unless all that it has done
    is ordered before that: those are the tasks in `passed`, a bit set.
    """

    passed = 0

    def _beside(self, index: int) -> int:
        super()._beside(index)
        beside = 0
        for other, node in enumerate(self.nodes):
            over = node is None or node.joins >> index & 1
            if other != index and not (over and self.passed >> other & 1):
                beside |= 1 << other
        return beside


class Path:
    """The steps from the initial state to the current one."""

    def __init__(self, world: World, eager: bool) -> None:
        self.eager = eager
        """Is freeing after a grace period done as soon as it can be?"""
        self.events: list[Event] = []
        self._world = world
        self._end_cells = 0
        self._tasks = 0
        """How many tasks have their cells among these."""
        self._of: dict[int, list[int]] = {}
        """Positions of the steps of each task."""
        self._at: dict[Node, list[int]] = {}
        """Positions of the steps from each node."""
        self._started: dict[int, int] = {}
        """Position of the step that started a task; absent for those that the set-up started."""
        self._sections: dict[Cell, list[Section]] = {}

    def clear(self, held: Sequence[Sequence[tuple[Cell, bool]]]) -> None:
        """Back to the initial state, in which each task holds these locks."""
        self.events.clear()
        self._of.clear()
        self._at.clear()
        self._started.clear()
        self._sections.clear()
        for task, locks in enumerate(held):
            for cell, exclusive in locks:
                self._sections.setdefault(cell, []).append(Section(task, exclusive, -1))

    def schedule(self, positions: int = -1) -> Schedule:
        """The schedule of the steps, or of those at some positions (with what is ordered before them)."""
        return tuple(
            Move(event.node.task.name, *basic)
            for position, event in enumerate(self.events)
            if positions >> position & 1
            for basic in event.moves
        )

    def before(self, node: Node) -> int:
        """The steps ordered before the one from `node`, without what that will depend on.

        They are what its task has done before, or what started that; and of a join, all that the tasks for which it
        waits have done: it cannot come before any of that.
        """
        found = 0
        for position in self._latest(node):
            found |= self.events[position].past | 1 << position
        return found

    def causes(self, node: Node, dependent: Sequence[int], freeing: Sequence[int]) -> int:
        """The steps without which the one from `node` would be another, given those on which it depends."""
        found = 0
        for position in (*self._latest(node), *dependent, *freeing):
            found |= self.events[position].causes | 1 << position
        return found

    def _latest(self, node: Node) -> list[int]:
        """Positions of the latest steps of a task and of those for whose end it waits, or of what started them."""
        found = []
        for task in (node.task.index, *_positions(node.joins)):
            positions = self._of.get(task)
            last = positions[-1] if positions else self._started.get(task)
            if last is not None:
                found.append(last)
        return found

    def passed(self, before: int) -> int:
        """The tasks that have done nothing but what is among the steps `before`, as a bit set."""
        found = 0
        for task in range(len(self._world.tasks)):
            positions = self._of.get(task)
            if not positions or before >> positions[-1] & 1:
                found |= 1 << task
        return found

    def dependent(self, footprint: Footprint, before: int) -> tuple[list[int], list[int]]:
        """Positions of the steps that conflict with `footprint`, not counting those of `before`; the latest first.

        The second list has those that are freeing, which order nothing but what waits for their end.
        """
        ends = self._ends()
        events = self.events
        touched, writes, _, against = footprint
        rest = ((1 << len(events)) - 1) & ~before
        found: list[int] = []
        freeing: list[int] = []
        while rest:
            position = rest.bit_length() - 1
            rest ^= 1 << position
            theirs = events[position].footprint
            if theirs.writes & touched or writes & theirs.touched or theirs.modes & against:
                eager = self.eager and events[position].node.eager and not theirs.writes & touched & ends
                (freeing if eager else found).append(position)
        return found, freeing

    def push(self, event: Event, turns: Sequence[Turn]) -> None:
        """A step has happened, in which locks were taken and given back in these turns."""
        position = len(self.events)
        task = event.task
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
        self._at.setdefault(event.node, []).append(position)
        for child in event.started:
            self._started[child] = position

    def pop(self) -> None:
        """Forget the latest step."""
        event = self.events.pop()
        self._of[event.task].pop()
        self._at[event.node].pop()
        for section in event.ended:
            section.ended = None
        for cell, section in reversed(event.begun):
            self._sections[cell].remove(section)

    def round(self, node: Node, memory: Memory) -> Round | None:
        """The latest steps by which the task at `node` came back there, if they left `memory` as it was."""
        here = self._at.get(node)
        if not here:
            return None
        task = node.task.index
        events = self.events
        positions = tuple(position for position in self._of[task] if position >= here[-1])
        old: dict[int, Value] = {}
        footprint = NOTHING
        for position in positions:
            event = events[position]
            if event.started:
                return None
            footprint = footprint.union(event.footprint)
            end = events[position + 1].mark if position + 1 < len(events) else len(memory.journal)
            for index, value in memory.journal[event.mark : end]:
                old.setdefault(index, value)
        for index, value in old.items():
            now = memory.values[index] if index >= 0 else memory.held[~index]
            if now != value:
                return None
        return Round(positions, Footprint(footprint.touched, footprint.writes))

    def again(self, once: Round, happened: int = -1) -> bool:
        """Is there among the steps that `happened` one that makes another round worth while?"""
        events = self.events
        for position in range(once.positions[0] + 1, len(events)):
            if happened >> position & 1 and position not in once.positions:
                theirs = events[position]
                for mine in once.positions:
                    own = events[mine]
                    if mine < position and (
                        theirs.changed & own.footprint.touched or own.changed & theirs.footprint.touched
                    ):
                        return True
        return False

    def races(
        self,
        task: int,
        footprint: Footprint,
        before: int,
        dependent: Sequence[int],
        wait: Wait | None,
        once: Round | None,
    ) -> Iterator[Race]:
        """The races of a step that `task` makes next, or would make if it need not wait.

        `before` and `dependent` are what the methods of these names say of it, `once` is the round that the step
        begins again.
        """
        events = self.events
        ends = self._ends()
        direct = before
        for position in dependent:
            direct |= 1 << position
        hidden = 0
        for position in dependent:
            if hidden >> position & 1 or (self.eager and events[position].node.eager):
                continue
            after = self._unordered(position)
            if once is not None and not self.again(once, (1 << position) - 1 | after):
                continue
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

    def _ends(self) -> int:
        """The cells that tell that a task has ended."""
        tasks = self._world.tasks
        while self._tasks < len(tasks):
            self._end_cells |= Task.done.cell(tasks[self._tasks]).bit
            self._tasks += 1
        return self._end_cells

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
