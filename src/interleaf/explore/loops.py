"""Livelock and starvation: fair loops of a program, found beside the search over states.

All tasks are to end. A *livelock* is a loop that a fair scheduler can go round for ever (`fairness.py` says what is
fair), with a task in it that has not ended. It is *starvation* if others make progress in it: they complete rounds of
what they do for as long as they are asked to (`runtime.again`). A loop in which each task that has not ended makes
progress is neither.

Where to look. A task that takes steps in a loop comes back to the same nodes of its automaton, and one that takes
none is not able to run anywhere in the loop. So all states of a fair loop are such that each task is at a node that
can be come back to, or waits. The search visits all states; from each that is such, all steps to others of that
kind are taken here, without sleep sets, so that none of the loop's steps is left out (the search over states leaves
out those that are asleep).

What is not seen. A loop leads back to an equal state. If something grows each time (a counter, a list, new objects),
no state comes again, and the search does not end: it stops at its bound, and says so. What a loop must forget between
two rounds (see `runtime.checkpoint`) the model has to forget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from interleaf.runtime.execution import Move, Schedule
from interleaf.runtime.findings import Violation

from .automaton import Node
from .fairness import State, Step, components, fair_loops, tour
from .livelock import alternatives
from .machine import Basic, Choices, Machine, Snapshot
from .outcome import LIVELOCK, STARVATION
from .waits import kind_of


class Loop(NamedTuple):
    """A fair loop: what it violates, and the steps from where it was looked for into it and once round."""

    violation: Violation
    schedule: Schedule


class Loops:
    """The states of one program in which it may go round, as far as the present pass has seen them, and what any pass
    has found."""

    def __init__(self, machine: Machine, tick: Callable[[], None]) -> None:
        self.machine = machine
        self.states: dict[int, State] = {}
        self._tick = tick
        """Called for each step; may raise to end the search."""
        self._nodes: dict[int, tuple[Node | None, ...]] = {}
        self._basic: dict[tuple[int, int], list[Basic]] = {}
        """The steps in full, by state and position."""
        self._came: dict[int, tuple[int, int]] = {}
        """How each state was first reached, as such a step."""
        self._turning: set[Node] = set()
        """Nodes to which their tasks may come back, as far as was known when the pass began."""
        self._waits: set[object] = set()
        """Kinds of operations that may wait, as far as was known then."""
        self._told: set[tuple[str, int, int]] = set()

    def begin_pass(self) -> None:
        """A search begins, or begins again: use all that is known of the automata."""
        self.states.clear()
        self._nodes.clear()
        self._basic.clear()
        self._came.clear()
        self._turning = self._find_turning()
        self._waits = set(self.machine.waits)

    def stand(self) -> bool:
        """Has the pass shown no more ways round, and nobody waiting where nobody was known to wait?"""
        return self.machine.waits <= self._waits and self._find_turning() <= self._turning

    def look(self) -> list[Loop]:
        """The fair loops that can be entered where the machine is, but for those that were found from elsewhere.

        The machine is left in the state that it was in.
        """
        if not self._turning or not self._may_turn():
            return []
        machine = self.machine
        first = machine.key()
        if first in self.states:
            return []
        start = machine.snapshot()
        new = self._expand(first, start)
        machine.restore(start)
        return self._judge(first, new)

    def _find_turning(self) -> set[Node]:
        found: set[Node] = set()
        for nodes in components(self.machine.automata.nodes.values(), lambda node: node.edges.values()):
            if len(nodes) > 1 or nodes[0] in nodes[0].edges.values():
                found.update(nodes)
        return found

    def _may_turn(self) -> bool:
        """Can the machine's state be in a fair loop, by where the tasks are?"""
        machine, turning, waits = self.machine, self._turning, self._waits
        moving = False
        still = []
        for index, node in enumerate(machine.nodes):
            if node is None:
                continue
            if node in turning:
                moving = True
            elif kind_of(node.op) in waits:
                still.append(index)
            else:
                return False
        return moving and not any(machine.able(index) for index in still)

    def _expand(self, first: int, start: Snapshot) -> list[int]:
        """All steps from the state `first`, where the machine is, and from those to which they lead."""
        machine = self.machine
        new = [first]
        stack = [(first, start, self._enter(first))]
        while stack:
            key, snapshot, todo = stack[-1]
            if not todo:
                stack.pop()
                continue
            task, choices = todo.pop()
            machine.restore(snapshot)
            if not machine.step(task, choices):
                continue
            self._tick()
            state = self.states[key]
            state.enabled |= 1 << task
            todo.extend((task, other) for other in alternatives(choices, machine.branches))
            if machine.dead or machine.nodes[task] is None:
                state.steps.append(Step(task, -1, False))
                continue
            basic, progress = machine.basic, machine.progress
            target = machine.key()
            step = (key, len(state.steps))
            if target not in self.states:
                if not self._may_turn():
                    state.steps.append(Step(task, -1, False))
                    continue
                new.append(target)
                self._came[target] = step
                stack.append((target, machine.snapshot(), self._enter(target)))
            state.steps.append(Step(task, target, progress))
            self._basic[step] = basic
        return new

    def _enter(self, key: int) -> list[tuple[int, Choices]]:
        self.states[key] = State()
        self._nodes[key] = tuple(self.machine.nodes)
        return [(task, ()) for task in reversed(self.machine.unfinished)]

    def _judge(self, first: int, new: list[int]) -> list[Loop]:
        """The fair loops among the states `new`, in which all steps lead to one of them or to where none leads back."""
        found = []
        stuck: list[int | None] = [None]
        if any(step.progress for key in new for step in self.states[key].steps):
            stuck = [task for task, node in enumerate(self._nodes[first]) if node is not None]
        order = {key: position for position, key in enumerate(new)}
        for task in stuck:
            for loop in fair_loops(self.states, new, task):
                entry = min(loop, key=order.__getitem__)
                violation = self._violation(loop, entry, task)
                if violation is not None:
                    way = [*self._way(first, entry), *tour(self.states, loop, entry, task)]
                    found.append(Loop(violation, self._schedule(way)))
        return found

    def _violation(self, loop: set[int], entry: int, stuck: int | None) -> Violation | None:
        """What the loop violates; None if the same was found elsewhere."""
        moving = going = unfinished = 0
        for key in loop:
            for step in self.states[key].steps:
                if step.target in loop and not (step.progress and step.task == stuck):
                    moving |= 1 << step.task
                    going |= step.progress << step.task
        words = []
        for task, node in enumerate(self._nodes[entry]):
            if node is None:
                continue
            unfinished |= 1 << task
            if going >> task & 1:
                words.append(f"{node.task} goes on and on")
            elif moving >> task & 1:
                words.append(f"{node.task} retries for ever ({node.op.site[2]})")
            else:
                words.append(f"{node.task} waits in {node.op.name} ({node.op.site[2]})")
        rule = STARVATION if going else LIVELOCK
        if (rule, moving, unfinished) in self._told:
            return None
        self._told.add((rule, moving, unfinished))
        return Violation(rule, "; ".join(words))

    def _way(self, first: int, entry: int) -> list[tuple[int, int]]:
        way = []
        while entry != first:
            way.append(self._came[entry])
            entry = way[-1][0]
        way.reverse()
        return way

    def _schedule(self, way: list[tuple[int, int]]) -> Schedule:
        moves = []
        for key, position in way:
            name = self.machine.task(self.states[key].steps[position].task).name
            moves += [Move(name, *basic) for basic in self._basic[key, position]]
        return tuple(moves)
