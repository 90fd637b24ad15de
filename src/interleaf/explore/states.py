"""The proof engine: depth-first search over states.

A state is the shared memory with each task's state (its call frames). Kernel code is lock-heavy: conflicting
critical sections can be ordered in very many ways, but the orders meet again in few states. So states that
were seen are not searched again. Three more things keep the search small:

* **Sleep sets** (Godefroid, LNCS 1032): after task u has been explored from a state, it need not be run in
  the subtrees of its siblings until something dependent on its step happens there. With merged states the
  stored sleep set is part of what is known: a state met again with a smaller sleep set is explored for the
  tasks that slept then and are awake now (Godefroid, Holzmann & Pirottin, FMSD 1995).
* **Lock reduction**: see `machine.py`. When the discipline that it assumes breaks, the search starts again.
* **Cheap return**: the memory has an undo journal, and a task's state is a node of its automaton.

Why it is sound. Every state that is reachable between scheduling points is visited: a step is left out only if
it is asleep, and then an equivalent sequence has been explored from an ancestor, or was known at an earlier
visit of an equal state. All enabled tasks are explored at every stored state, so nothing is put off for ever
on a cycle. States are equal when their hashes are: with n states the chance of any collision is n²/2⁶⁵.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from interleaf.runtime.cells import World
from interleaf.runtime.execution import Move, Schedule, StepLimit
from interleaf.runtime.findings import Violation

from .audit import Auditor
from .bounded import deadlock
from .frame import Arrival, Footprint, Frame
from .livelock import alternatives
from .loops import Loops
from .machine import Choices, Machine
from .outcome import Bounds, Found, Outcome, Progress, Stopped, finished
from .window import race_between

Inspect: TypeAlias = Callable[[Machine], list[Violation]]


@dataclass(frozen=True, slots=True)
class Options:
    """Which ingredients of the search are used; all of them, but for measurements and tests."""

    frames: bool = True
    sleep: bool = True
    locks: bool = True
    journal: bool = True
    foresight: bool = True
    eager: bool = True
    known: bool = True
    audit: bool = True

    def names(self) -> tuple[str, ...]:
        parts = {
            "call frames": self.frames,
            "sleep sets": self.sleep,
            "lock reduction": self.locks,
            "foresight": self.locks and self.foresight,
            "eager freeing": self.eager,
            "known steps": self.known,
        }
        return tuple(name for name, used in parts.items() if used)


class StateSearch:
    """One search of one program; `run` gives its `Outcome`.

    `inspect` looks at every new state (with `Machine.memory.peek`), `final` at every state in which all tasks
    have ended; both return what they find violated. `progress` is called a few times a second and may raise
    to end the search.
    """

    def __init__(
        self,
        setup: Callable[[], object],
        *,
        bounds: Bounds | None = None,
        options: Options | None = None,
        inspect: Inspect | None = None,
        final: Inspect | None = None,
        progress: Callable[[Progress], None] | None = None,
        stop_at_first: bool = False,
        seed: int = 1,
    ) -> None:
        self.options = options or Options()
        self.bounds = bounds or Bounds()
        self.setup = setup
        self.inspect = inspect
        self.final = final
        self.progress = progress
        self.stop_at_first = stop_at_first
        self.world = World(seed)
        self.outcome = Outcome("states", reductions=self.options.names())
        self.visited: dict[int, int] = {}
        self.stack: list[Frame] = []
        self.machine = Machine(
            self.world,
            setup,
            reduce=self.options.locks,
            foresight=self.options.foresight,
            flat=not self.options.frames,
            remember=self.options.known,
        )
        self.loops = Loops(self.machine, self._tick)
        self.auditor = Auditor(self.world, setup, random.Random(seed)) if self.options.audit else None
        self._races: set[tuple[object, ...]] = set()
        self._masks: dict[int, int] = {}
        self._began = 0.0
        self._steps = 0
        """Steps of the current pass."""

    def run(self) -> Outcome:
        """Search to the end, or to a bound."""
        self._began = time.monotonic()
        outcome = self.outcome
        try:
            while not self._pass():
                outcome.restarts += 1
            if not outcome.stopped:
                outcome.exhaustive = True
        except (Stopped, StepLimit) as stop:
            outcome.stopped = str(stop)
        finally:
            outcome.states = len(self.visited)
            outcome.seconds = time.monotonic() - self._began
            outcome.exercised = dict(self.world.exercised)
            outcome.measured = dict(self.world.measured)
            if self.auditor is not None:
                outcome.audits = self.auditor.audits
        return outcome

    def close(self) -> None:
        """Give back greenlets and memory."""
        self.machine.close()

    def schedule(self, latest: Arrival | None = None) -> Schedule:
        """The schedule of the current path, and then the step `latest` of which there is no state yet."""
        passed = [frame.arrived for frame in self.stack[1:]]
        if latest is not None:
            passed.append(latest)
        return tuple(Move(self.machine.task(task).name, *basic) for task, steps, _ in passed for basic in steps)

    def _pass(self) -> bool:
        """Search from the initial state; False if an assumption broke and it must be done again."""
        machine = self.machine
        machine.begin_pass()
        self.loops.begin_pass()
        self.visited.clear()
        self.stack.clear()
        self._steps = 0
        if self.auditor is not None:
            self.auditor.begin_pass()
        self._arrive({}, {}, -1, (-1, [], 0))
        while self.stack:
            # A pass that was surprised goes on to its end: what it learns saves further passes, and it may turn out
            # to have left out nothing, so that it was the last one.
            self._advance()
        return machine.points.stand() and self.loops.stand()

    def _advance(self) -> None:
        """Take the next step from the state on top of the stack, or leave that state."""
        frame = self.stack[-1]
        if not frame.todo:
            self._leave(frame)
            return
        task, choices = frame.todo.pop()
        if task != frame.running:
            self._finish(frame)
            frame.running, frame.union = task, (0, 0, 0)
        machine = self.machine
        self._return_to(frame)
        if not machine.step(task, choices):
            frame.running = -1
            frame.waiting[task] = machine.memory.reads
            return
        self._bound_executions()
        frame.awake = True
        outcome = self.outcome
        outcome.transitions += 1
        self._tick()
        memory = machine.memory
        footprint = (memory.reads, memory.writes, memory.plains)
        union = frame.union
        frame.union = (union[0] | footprint[0], union[1] | footprint[1], union[2] | footprint[2])
        if len(machine.branches) > len(choices):
            for other_choices in alternatives(choices, machine.branches):
                frame.todo.append((task, other_choices))
                frame.size += 1
        if machine.violations:
            self._report(machine.violations, (task, machine.basic, machine.length))
        if machine.dead:
            outcome.executions += 1
            return
        sleep: dict[int, Footprint] = {}
        reads, writes, _ = footprint
        touched = reads | writes
        for known in (frame.sleep, frame.done):
            for other, theirs in known.items():
                if writes & (theirs[0] | theirs[1]) or theirs[1] & touched:
                    self._suspect(frame, task, choices, footprint, other, theirs)
                elif other != task and self.options.sleep:
                    sleep[other] = theirs
        waiting = {other: cells for other, cells in frame.waiting.items() if not cells & touched}
        self._arrive(sleep, waiting, task, (task, machine.basic, machine.length))

    def _finish(self, frame: Frame) -> None:
        """All outcomes of the running task's choices are explored: it is done here."""
        if frame.running >= 0:
            frame.done[frame.running] = frame.union
            frame.running = -1

    def _arrive(
        self,
        sleep: dict[int, Footprint],
        waiting: dict[int, int],
        last: int,
        arrived: Arrival,
    ) -> None:
        """The machine is in a state: push it if anything is to be explored from it.

        The tasks in `waiting` could not run before, and nothing that they wait for has been touched.
        """
        machine = self.machine
        outcome = self.outcome
        unfinished = machine.unfinished
        key = machine.key()
        mask = 0
        for task in sleep:
            mask |= 1 << task
        stored = self.visited.get(key)
        new = stored is None
        if stored is None:
            self._bound_states()
            self.visited[key] = self._masks.setdefault(mask, mask)
            eager = self._eager(unfinished, waiting)
            explore = (1 << eager if eager else -1) & ~mask
        else:
            explore = stored & ~mask
            if not explore:
                outcome.executions += 1
                if self.auditor is not None:
                    self.auditor.merged(key, self, arrived)
                return
            mask &= stored
            self.visited[key] = self._masks.setdefault(mask, mask)
            sleep = {task: footprint for task, footprint in sleep.items() if mask >> task & 1}
        depth = len(self.stack)
        outcome.depth = max(outcome.depth, depth)
        if depth > self.bounds.steps:
            raise Stopped(f"an execution is longer than {self.bounds.steps} steps")
        frame = Frame(machine.snapshot(), last, arrived)
        frame.sleep = sleep
        frame.waiting = waiting
        self.stack.append(frame)
        if new:
            self._look(unfinished)
        if self.stop_at_first and outcome.found:
            raise Stopped("stopped at the first violation")
        frame.todo = [
            (task, ()) for task in reversed(unfinished) if explore >> task & 1 and task != last and task not in waiting
        ]
        if last >= 0 and explore >> last & 1 and machine.nodes[last] is not None:
            frame.todo.append((last, ()))
        frame.size = len(frame.todo)
        if not unfinished:
            outcome.executions += 1
            if self.auditor is not None:
                for violation in self.auditor.completed(self):
                    self._add(Found(violation, self.schedule(), outcome.executions, race=True))

    def _eager(self, unfinished: list[int], waiting: dict[int, int]) -> int:
        """A task whose step need not be put off, because it only frees what nobody may use any more; 0 if none."""
        machine = self.machine
        if not self.options.eager:
            return 0
        for task in unfinished:
            node = machine.nodes[task]
            if node is not None and node.eager and task not in waiting:
                if machine.able(task):
                    return task
                waiting[task] = machine.memory.reads
        return 0

    def _look(self, unfinished: list[int]) -> None:
        """Check a new state."""
        if self.inspect is not None:
            self._report(self.inspect(self.machine))
        if not unfinished and self.final is not None:
            self._report(self.final(self.machine))
        for loop in self.loops.look():
            self._add(Found(loop.violation, (*self.schedule(), *loop.schedule), self.outcome.executions + 1))

    def _leave(self, frame: Frame) -> None:
        """Everything from this state is explored."""
        self._finish(frame)
        self._settle_suspects(frame)
        machine = self.machine
        if not frame.awake and not frame.sleep and frame.snapshot.nodes.count(None) < len(frame.snapshot.nodes):
            self._return_to(frame)
            self.outcome.executions += 1
            self._report([deadlock(machine)])
        self.stack.pop()

    def _return_to(self, frame: Frame) -> None:
        if self.options.journal:
            self.machine.restore(frame.snapshot)
            return
        self.machine.restore(self.machine.initial)
        for passed in self.stack[1:]:
            task, basic, length = passed.arrived
            self.machine.step(task, tuple(outcome for choices, _ in basic for outcome in choices), length)

    def _suspect(self, frame: Frame, task: int, choices: Choices, one: Footprint, other: int, two: Footprint) -> None:
        """Two tasks can both take their next step here, and the steps conflict: it may be a data race."""
        conflict = one[1] & (two[0] | two[1]) | two[1] & one[0]
        racing = conflict & (one[2] | two[2])
        if not racing or other == task:
            return
        nodes = frame.snapshot.nodes
        for cell in self.world.cells_of(racing):
            question = (nodes[task], nodes[other], one, two, cell.index)
            if cell.bit & self.world.clashes.get((task, other), 0) and question not in self._races:
                self._races.add(question)
                frame.suspects.append((task, choices, other, cell))

    def _settle_suspects(self, frame: Frame) -> None:
        """Run the pairs of steps that may race."""
        for task, choices, other, cell in frame.suspects:
            race = race_between(self.machine, frame.snapshot, (task, choices), other, cell)
            if race is not None:
                violation, steps = race
                self._add(Found(violation, (*self.schedule(), *steps), self.outcome.executions + 1, race=True))

    def _report(self, violations: list[Violation], latest: Arrival | None = None) -> None:
        for violation in violations:
            self._add(Found(violation, self.schedule(latest), self.outcome.executions + 1))

    def _add(self, found: Found) -> None:
        if self.outcome.add(found) and self.stop_at_first:
            raise Stopped("stopped at the first violation")

    def _bound_states(self) -> None:
        if self.bounds.states is not None and len(self.visited) >= self.bounds.states:
            raise Stopped(f"the bound of {self.bounds.states} states was reached")

    def _bound_executions(self) -> None:
        if self.bounds.executions is not None and self.outcome.executions >= self.bounds.executions:
            raise Stopped(f"the bound of {self.bounds.executions} executions was reached")

    def _tick(self) -> None:
        self._steps += 1
        if self._steps & 255:
            return
        if self.bounds.seconds is not None and time.monotonic() - self._began > self.bounds.seconds:
            raise Stopped(f"the bound of {self.bounds.seconds:g} seconds was reached")
        if self.progress is not None:
            outcome = self.outcome
            self.progress(
                Progress(
                    len(self.visited),
                    outcome.transitions,
                    outcome.executions,
                    outcome.depth,
                    len(outcome.found),
                    self.fraction(),
                )
            )

    def fraction(self) -> float:
        """Estimated share of the pass that is done."""
        return finished((frame.size, len(frame.todo)) for frame in self.stack)
