"""Search with a bound on preemptions, and the shortest story of a violation.

A preemption is a switch away from a task that could go on. Most concurrency bugs need only one or two of them
(Musuvathi & Qadeer, PLDI 2007), and a schedule without needless switches is one that a person can follow. So
`shortest` searches for a violation again with no preemption, then with one, and so on.

The budget that is left and the task that ran last are part of what is known of a state, and sleep sets are not
used: a bounded search that prunes with the knowledge of an unbounded one misses violations. A bound is never a
proof: an `Outcome` from here is not exhaustive, whatever was found.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

from interleaf.runtime.cells import World
from interleaf.runtime.execution import Move, Schedule, StepLimit
from interleaf.runtime.findings import Violation

from .livelock import alternatives
from .machine import Basic, Choices, Machine, Snapshot
from .outcome import DEADLOCK, Bounds, Found, Outcome, Progress, Stopped, finished

PATIENCE = 500
"""Steps that the first pass has, at least, before it is left for what it did not know; each further one has twice as
many."""

Signature: TypeAlias = tuple[str, str]
Inspect = Callable[[Machine], list[Violation]]


@dataclass(slots=True)
class _Frame:
    snapshot: Snapshot
    budget: int
    arrived: tuple[str, list[Basic]]
    todo: list[tuple[int, Choices, int]]
    """(task, choices, preemptions that it costs)."""
    awake: bool
    """Could any task run here?"""
    size: int
    """How many branches there are."""


class BoundedSearch:
    """All executions with at most `bounds.preemptions` preemptions.

    `inspect` looks at every state, `final` at those in which all tasks have ended. With `wanted` (signatures of
    violations), others are passed over, and the search ends when all of these are found. A `machine` that has learned
    in another search of the same program (with lock reduction) knows already what this one would have to find out.
    """

    def __init__(
        self,
        setup: Callable[[], object],
        bounds: Bounds,
        *,
        wanted: Collection[Signature] | None = None,
        inspect: Inspect | None = None,
        final: Inspect | None = None,
        progress: Callable[[Progress], None] | None = None,
        machine: Machine | None = None,
    ) -> None:
        if bounds.preemptions is None:
            raise ValueError("a bounded search needs a bound on preemptions")
        self.bounds = bounds
        self.budget = bounds.preemptions
        self.wanted = set(wanted) if wanted is not None else None
        self.inspect = inspect
        self.final = final
        self.progress = progress
        self.machine = machine or Machine(World(), setup)
        self.world = self.machine.world
        self.outcome = Outcome("bounded", reductions=("call frames", "lock reduction"))
        self.visited: dict[tuple[int, int], int] = {}
        """The largest budget with which a (state, last task) was explored."""
        self._stack: list[_Frame] = []
        self._began = 0.0

    def run(self) -> Outcome:
        """Search to the end or to a bound."""
        self._began = time.monotonic()
        outcome = self.outcome
        outcome.stopped = f"at most {self.budget} preemption{'' if self.budget == 1 else 's'} were tried"
        try:
            while not self._pass():
                outcome.restarts += 1
        except (Stopped, StepLimit) as end:
            outcome.stopped = str(end)
        outcome.states = len(self.visited)
        outcome.seconds = time.monotonic() - self._began
        outcome.exercised = dict(self.world.exercised)
        outcome.measured = dict(self.world.measured)
        return outcome

    def close(self) -> None:
        self.machine.close()

    def _pass(self) -> bool:
        machine, stack = self.machine, self._stack
        machine.begin_pass()
        self.visited.clear()
        stack.clear()
        self._push(-1, self.budget, ("", []))
        transitions = self.outcome.transitions
        patience = PATIENCE << self.outcome.restarts
        while stack:
            self._advance(stack[-1])
            if machine.surprised and self.outcome.transitions > transitions + patience:
                return False
        return machine.points.stand()

    def _advance(self, frame: _Frame) -> None:
        machine = self.machine
        if not frame.todo:
            if not frame.awake and frame.snapshot.nodes.count(None) < len(frame.snapshot.nodes):
                machine.restore(frame.snapshot)
                self._report([deadlock(machine)], ())
            self._stack.pop()
            return
        task, choices, cost = frame.todo.pop()
        machine.restore(frame.snapshot)
        if not machine.step(task, choices):
            return
        limit = self.bounds.executions
        if limit is not None and self.outcome.executions >= limit:
            raise Stopped(f"the bound of {limit} executions was reached")
        frame.awake = True
        outcome = self.outcome
        outcome.transitions += 1
        if outcome.transitions & 255 == 0:
            self._tick()
        others = alternatives(choices, machine.branches)
        frame.todo.extend((task, other, cost) for other in others)
        frame.size += len(others)
        name = machine.task(task).name
        steps = tuple(Move(name, *basic) for basic in machine.basic)
        self._report(machine.violations, steps)
        if machine.dead:
            self._executed()
            return
        if self.inspect is not None:
            self._report(self.inspect(machine), steps)
        if self.final is not None and not machine.unfinished:
            self._report(self.final(machine), steps)
        self._push(task, frame.budget - cost, (name, machine.basic))

    def _push(self, last: int, budget: int, arrived: tuple[str, list[Basic]]) -> None:
        machine = self.machine
        key = (machine.key(), last)
        if self.visited.get(key, -1) >= budget:
            self._executed()
            return
        if self.bounds.states is not None and len(self.visited) >= self.bounds.states:
            raise Stopped(f"the bound of {self.bounds.states} states was reached")
        if len(self._stack) > self.bounds.steps:
            raise Stopped(f"an execution is longer than {self.bounds.steps} steps")
        self.visited[key] = budget
        snapshot = machine.snapshot()
        unfinished = machine.unfinished
        cost = 0
        if last in unfinished:
            # leaving the last task is a preemption only if it could have gone on
            cost = 1 if machine.step(last) else 0
            machine.restore(snapshot)
        todo: list[tuple[int, Choices, int]] = []
        if cost <= budget:
            todo = [(task, (), cost) for task in reversed(unfinished) if task != last]
        if last in unfinished:
            todo.append((last, (), 0))
        self._stack.append(_Frame(snapshot, budget, arrived, todo, awake=cost > 0, size=len(todo)))
        self.outcome.depth = max(self.outcome.depth, len(self._stack))
        if not unfinished:
            self._executed()

    def _tick(self) -> None:
        limit = self.bounds.seconds
        if limit is not None and time.monotonic() - self._began > limit:
            raise Stopped(f"the bound of {limit:g} seconds was reached")
        if self.progress is not None:
            outcome = self.outcome
            fraction = finished((frame.size, len(frame.todo)) for frame in self._stack)
            states, found = len(self.visited), len(outcome.found)
            self.progress(Progress(states, outcome.transitions, outcome.executions, outcome.depth, found, fraction))

    def _executed(self) -> None:
        self.outcome.executions += 1

    def _report(self, violations: list[Violation], steps: Schedule) -> None:
        for violation in violations:
            if self.wanted is not None and violation.signature not in self.wanted:
                continue
            before = (Move(frame.arrived[0], *basic) for frame in self._stack[1:] for basic in frame.arrived[1])
            self.outcome.add(Found(violation, (*before, *steps), self.outcome.executions + 1))
            if self.wanted is not None:
                self.wanted.discard(violation.signature)
                if not self.wanted:
                    raise Stopped("all that was wanted is found")


def deadlock(machine: Machine) -> Violation:
    """The violation that nobody can run in the machine's state."""
    waiting = [node for node in machine.nodes if node is not None]
    places = "; ".join(f"{node.task} waits in {node.op.name} ({node.op.site[2]})" for node in waiting)
    return Violation(DEADLOCK, places)


def shortest(
    setup: Callable[[], object],
    wanted: Collection[Signature],
    *,
    preemptions: int,
    states: int,
    inspect: Inspect | None = None,
    final: Inspect | None = None,
    machine: Machine | None = None,
) -> dict[Signature, tuple[Found, int]]:
    """For each wanted violation that is found: the schedule with the fewest preemptions, and how many.

    At most `preemptions` are tried, and at most `states` states are visited for each number of them. For `machine` see
    `BoundedSearch`.
    """
    stories: dict[Signature, tuple[Found, int]] = {}
    with contextlib.ExitStack() as cleanup:
        if machine is None:
            machine = Machine(World(), setup)
            cleanup.callback(machine.close)
        for budget in range(preemptions + 1):
            left = [signature for signature in wanted if signature not in stories]
            if not left:
                break
            bounds = Bounds(states=states, preemptions=budget)
            search = BoundedSearch(setup, bounds, wanted=left, inspect=inspect, final=final, machine=machine)
            for found in search.run().found:
                stories[found.signature] = (found, budget)
            if len(search.visited) >= states:
                break
    return stories
