"""Hunting: random schedules that find violations fast, and prove nothing.

Four strategies, each one class:

* `RandomWalk`  any task that can run, with equal chances;
* `POS`         partial order sampling (Yuan, Yang & Gu, CAV 2018): a random priority for every pending
                operation, drawn anew when a step that it conflicts with has happened;
* `PCT`         probabilistic concurrency testing (Burckhardt et al., ASPLOS 2010): random task priorities and
                d-1 places where the running task's priority drops to the bottom; a bug of depth d in a run of n
                tasks and k steps is found with a chance of at least 1/(n·kᵈ⁻¹);
* `SURW`        selective uniform random walk (Zhao et al., ASPLOS 2025): uniform over the orders of the
                operations on one chosen object, by how many of them each task has left.

A hunt goes round its strategies, one execution each. The same seed gives the same executions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from interleaf.runtime.cells import World
from interleaf.runtime.execution import Move, StepLimit
from interleaf.runtime.findings import Violation

from .bounded import deadlock
from .machine import Machine
from .outcome import Bounds, Found, Outcome, Progress, Stopped

SPIN_LIMIT = 50
"""Steps that a task may take in a row while others wait, before a random scheduler lets it rest."""


class Strategy(Protocol):
    """Chooses the next task of an execution."""

    name: str

    def begin(self, machine: Machine, rng: random.Random) -> None:
        """A new execution begins."""

    def pick(self, machine: Machine, candidates: Sequence[int], rng: random.Random) -> int:
        """One of the tasks in `candidates`."""
        ...

    def stepped(self, machine: Machine, task: int, rng: random.Random) -> None:
        """`task` has made its step; the machine has its footprint."""


class RandomWalk:
    """Every task that can run has the same chance."""

    name = "random walk"

    def begin(self, machine: Machine, rng: random.Random) -> None:
        pass

    def pick(self, machine: Machine, candidates: Sequence[int], rng: random.Random) -> int:
        return rng.choice(candidates)

    def stepped(self, machine: Machine, task: int, rng: random.Random) -> None:
        pass


class POS:
    """Partial order sampling. Conflicts are seen by the main cell of the pending operations."""

    name = "POS"

    def __init__(self) -> None:
        self._priority: dict[int, float] = {}

    def begin(self, machine: Machine, rng: random.Random) -> None:
        self._priority.clear()

    def pick(self, machine: Machine, candidates: Sequence[int], rng: random.Random) -> int:
        for task in candidates:
            if task not in self._priority:
                self._priority[task] = rng.random()
        return max(candidates, key=lambda task: (self._priority[task], -task))

    def stepped(self, machine: Machine, task: int, rng: random.Random) -> None:
        touched = machine.memory.reads | machine.memory.writes
        self._priority.pop(task, None)
        for other in list(self._priority):
            node = machine.nodes[other]
            focus = node.op.focus if node is not None else None
            if focus is None or focus.bit & touched:
                del self._priority[other]


class PCT:
    """Probabilistic concurrency testing for bugs of `depth` ordering constraints."""

    def __init__(self, depth: int) -> None:
        self.name = f"PCT {depth}"
        self.depth = depth
        self._length = 50
        self._steps = 0
        self._priority: dict[int, float] = {}
        self._changes: dict[int, float] = {}

    def begin(self, machine: Machine, rng: random.Random) -> None:
        self._length = max(self._length, self._steps)
        self._steps = 0
        self._priority.clear()
        self._changes = {rng.randrange(self._length): -float(number) for number in range(1, self.depth)}

    def pick(self, machine: Machine, candidates: Sequence[int], rng: random.Random) -> int:
        for task in candidates:
            if task not in self._priority:
                self._priority[task] = rng.random()
        return max(candidates, key=lambda task: (self._priority[task], -task))

    def stepped(self, machine: Machine, task: int, rng: random.Random) -> None:
        lowered = self._changes.get(self._steps)
        if lowered is not None:
            self._priority[task] = lowered
        self._steps += 1


class SURW:
    """Selective uniform random walk over the operations on one object, another one in each execution."""

    name = "SURW"

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        """How many operations on each object each task did in an earlier execution."""
        self._now: dict[str, dict[str, int]] = {}
        self._left: dict[str, int] = {}
        self._object = ""
        self._intended = -1

    def begin(self, machine: Machine, rng: random.Random) -> None:
        for name, counts in self._now.items():
            self._counts[name] = counts
        self._now = {}
        shared = sorted(name for name, counts in self._counts.items() if len(counts) > 1)
        self._object = rng.choice(shared) if shared else ""
        self._left = dict(self._counts.get(self._object, {}))
        self._intended = -1

    def pick(self, machine: Machine, candidates: Sequence[int], rng: random.Random) -> int:
        if self._intended not in candidates:
            weights = [self._left.get(machine.task(task).name, 0) for task in candidates]
            self._intended = rng.choices(candidates, weights)[0] if sum(weights) else rng.choice(candidates)
        others = [task for task in candidates if task == self._intended or not self._interesting(machine, task)]
        return rng.choice(others)

    def stepped(self, machine: Machine, task: int, rng: random.Random) -> None:
        name = machine.task(task).name
        touched = machine.memory.reads | machine.memory.writes
        for owner in {cell.owner.root.name for cell in machine.world.cells_of(touched)}:
            counts = self._now.setdefault(owner, {})
            counts[name] = counts.get(name, 0) + 1
            if owner == self._object:
                # a count of an earlier execution: this one may have more
                self._left[name] = max(0, self._left.get(name, 1) - 1)
                if task == self._intended:
                    self._intended = -1

    def _interesting(self, machine: Machine, task: int) -> bool:
        node = machine.nodes[task]
        focus = node.op.focus if node is not None else None
        return focus is not None and focus.owner.root.name == self._object


def portfolio() -> list[Strategy]:
    """The strategies that a hunt goes round, the best first."""
    return [POS(), PCT(3), SURW(), PCT(5), RandomWalk()]


class Hunt:
    """Random executions of one program, until a bound; `run` gives an `Outcome` that is never exhaustive."""

    def __init__(
        self,
        setup: Callable[[], object],
        bounds: Bounds,
        seed: int,
        *,
        strategies: Sequence[Strategy] | None = None,
        inspect: Callable[[Machine], list[Violation]] | None = None,
        final: Callable[[Machine], list[Violation]] | None = None,
        stop_at_first: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        if bounds.executions is None and bounds.seconds is None:
            raise ValueError("a hunt has no end of its own: give a bound on executions or seconds")
        self.bounds = bounds
        self.rng = random.Random(seed)
        self.strategies = list(strategies) if strategies is not None else portfolio()
        self.inspect = inspect
        self.final = final
        self.stop_at_first = stop_at_first
        self.progress = progress
        self.machine = Machine(World(), setup, reduce=False, learn=False)
        self.outcome = Outcome("hunt", stopped=f"a hunt with seed {seed} tries random schedules only")

    def run(self) -> Outcome:
        """Hunt until a bound is met."""
        outcome, bounds = self.outcome, self.bounds
        began = time.monotonic()
        while not (self.stop_at_first and outcome.found):
            if bounds.executions is not None and outcome.executions >= bounds.executions:
                break
            if bounds.seconds is not None and time.monotonic() - began >= bounds.seconds:
                break
            strategy = self.strategies[outcome.executions % len(self.strategies)]
            try:
                self._execute(strategy)
                if self.progress is not None:
                    self.progress(self._progress(time.monotonic() - began))
            except (Stopped, StepLimit) as limit:
                outcome.stopped = str(limit)
                break
        outcome.seconds = time.monotonic() - began
        outcome.exercised = dict(self.machine.world.exercised)
        outcome.measured = dict(self.machine.world.measured)
        return outcome

    def close(self) -> None:
        self.machine.close()

    def _progress(self, seconds: float) -> Progress:
        """How much of what is bounded is used up."""
        outcome, bounds = self.outcome, self.bounds
        used = [outcome.executions / bounds.executions] if bounds.executions else []
        used += [seconds / bounds.seconds] if bounds.seconds else []
        found = len(outcome.found)
        return Progress(0, outcome.transitions, outcome.executions, outcome.depth, found, min(max(used), 1.0))

    def _execute(self, strategy: Strategy) -> None:
        machine, rng, outcome = self.machine, self.rng, self.outcome
        machine.restore(machine.initial)
        strategy.begin(machine, rng)
        steps: list[Move] = []
        last = task = -1
        streak = 0
        while len(steps) < self.bounds.steps:
            candidates = machine.unfinished
            if streak > SPIN_LIMIT and len(candidates) > 1 and last in candidates:
                candidates.remove(last)
                streak = 0
            moved = False
            while candidates and not moved:
                task = strategy.pick(machine, candidates, rng)
                moved = self._step(task)
                if not moved:
                    candidates.remove(task)
            if not moved:
                break
            outcome.transitions += 1
            strategy.stepped(machine, task, rng)
            steps.extend(Move(machine.task(task).name, *basic) for basic in machine.basic)
            streak = streak + 1 if task == last else 0
            last = task
            self._report(machine.violations, steps)
            if machine.dead:
                break
            if self.inspect is not None:
                self._report(self.inspect(machine), steps)
        outcome.executions += 1
        outcome.depth = max(outcome.depth, len(steps))
        if machine.dead or len(steps) >= self.bounds.steps:
            return
        if machine.unfinished:
            if not any(self._step(task) for task in machine.unfinished):
                self._report([deadlock(machine)], steps)
        elif self.final is not None:
            self._report(self.final(machine), steps)

    def _step(self, task: int) -> bool:
        """One step with random outcomes of its choices."""
        machine, rng = self.machine, self.rng
        before = machine.snapshot()
        if not machine.step(task):
            return False
        if machine.branches:
            taken: list[int] = []
            while len(taken) < len(machine.branches):
                taken.append(rng.randrange(machine.branches[len(taken)]))
                machine.restore(before)
                machine.step(task, tuple(taken))
        return True

    def _report(self, violations: list[Violation], steps: list[Move]) -> None:
        for violation in violations:
            self.outcome.add(Found(violation, tuple(steps), self.outcome.executions + 1))
