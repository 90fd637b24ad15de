"""The second engine: a stateless search over the orders of steps, with source sets, sleep sets and lazy locks.

It shares the machine with the search over states and none of the search: nothing is known of states, no two are
merged. Executions are taken one after the other, depth first; each is analysed for races, and a race says where
another order must be tried (dynamic partial-order reduction: Flanagan & Godefroid, POPL 2005; source sets:
Abdulla, Aronis, Jonsson & Sagonas, POPL 2014). A step that has been explored sleeps in the subtrees of
its siblings until something happens that it depends on (Godefroid, LNCS 1032). `footprint.py` says when two steps
depend on each other, `path.py` what the races of an execution are.

* **Tasks that wait at the end** take part in the analysis with the operation in which they wait, as a section
  that spans steps: what they would do further is unknown.
* **What can make a task wait** is found out on the way (`waits.py`).
* **Circles**: where an execution comes back to a state that it was in, it is not gone on with, and in all states
  of the circle every task is run: what would have followed cannot ask for that any more. (Retries without effect do
  not even get that far, see `path.py`.)
* **A fatal violation** ends its task, and each that then depends on it; the others go on, so that what
  they can still violate is found too. What happens in the past of a finding is free of such violations, so
  each finding is one of an execution that ends there.
* **Foresight**: a step that conflicts with nothing that others may still do has no scheduling point before it (see
  `points.py`), so the steps of one task are larger or smaller depending on where the others are. Each scheduling
  point that is left out is a persistent set of one task, in which no race is to be reversed; every race is one with
  the first operation of the earlier step. A sleeping task's step may be larger by the time that it wakes, which does
  not matter: what is added conflicts with nothing. But what a lazy lock hides must not depend on it: a section counts
  as one inside a step only if the task was never seen to hold that lock when a step ended (`footprint.py`).
* **Freeing** after a grace period is done as soon as it can be (`eager`): whatever uses the object afterwards is a
  use-after-free, and an execution in which it is used in time is left out only where there is also one in which it
  is not. From such a state nothing else is run, so it is no place to reverse a race at; and what comes later is not
  taken to be ordered after the freeing (unless it waits for its end), or a race with something that comes before the
  freeing would be hidden by one that is never reversed.
* **Memory** is that of one execution, and of the tasks' automata.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeAlias

from interleaf.runtime.cells import World
from interleaf.runtime.execution import Schedule, StepLimit
from interleaf.runtime.findings import ModelError, Violation

from .bounded import deadlock
from .branches import Frame, fraction
from .footprint import NOTHING, Footprint, LockModes, Watched, turns
from .livelock import alternatives, spinning
from .machine import Choices, Machine
from .outcome import LIVELOCK, Bounds, Found, Outcome, Progress, Stopped
from .path import Event, Path, PathMachine, Round
from .scout import scout
from .waits import NewWait, Wait, Waits

Final: TypeAlias = Callable[[Machine], list[Violation]]


LARGE = 500
"""Steps after which a search that has to begin again looks ahead first, see `scout.py`."""

PATIENCE = 200
"""Steps that a pass goes on at least after it has learned something, to learn more before the next one."""


class StepSearch:
    """One search of one program; `run` gives its `Outcome`.

    `final` looks at the states in which all tasks have ended and returns what it finds violated. Without
    `discipline`, the lock reduction of the machine is not used, and every marked or racy access is a scheduling
    point. `progress` is called now and then, and may raise to end the search. Honoured bounds: executions, seconds,
    and steps in one execution.
    """

    def __init__(
        self,
        setup: Callable[[], object],
        *,
        bounds: Bounds | None = None,
        final: Final | None = None,
        progress: Callable[[Progress], None] | None = None,
        discipline: bool = True,
        foresight: bool = True,
        eager: bool = True,
        stop_at_first: bool = False,
        seed: int = 1,
    ) -> None:
        self.bounds = bounds or Bounds()
        if self.bounds.states is not None or self.bounds.preemptions is not None:
            raise ModelError("the search over steps cannot honour a bound on states or preemptions: leave it out.")
        self.final = final
        self.progress = progress
        self.stop_at_first = stop_at_first
        self.world = World(seed)
        self.machine = PathMachine(self.world, setup, reduce=discipline, foresight=discipline and foresight)
        parts = {
            "source sets": True,
            "sleep sets": True,
            "lazy locks": True,
            "lock reduction": discipline,
            "foresight": discipline and foresight,
            "eager freeing": eager,
        }
        reductions = tuple(name for name, used in parts.items() if used)
        self.outcome = Outcome("steps", reductions=reductions)
        self.path = Path(self.world, eager)
        self.stack: list[Frame] = []
        self.on_path: dict[int, int] = {}
        """State -> position of its frame."""
        self.turning: set[int] = set()
        """Tasks whose steps were seen to lead round in a circle."""
        self.modes = LockModes()
        self.waits = Waits()
        self.executions = 0
        """Of the current pass."""
        self._rng = random.Random(seed)
        self._began = 0.0

    def run(self) -> Outcome:
        """Search to the end, or to a bound."""
        self._began = time.monotonic()
        outcome = self.outcome
        try:
            known = self._known()
            scouted = False
            while not self._pass():
                outcome.restarts += 1
                if not scouted and outcome.transitions > LARGE:
                    scouted = True
                    self.machine.passed = -1
                    scout(self.machine, self.modes, self.waits, self._rng, self.path.eager)
                before, known = known, self._known()
                if known == before:
                    raise ModelError("the search begins again without having learned anything: Interleaf has a defect.")
            outcome.exhaustive = True
        except (Stopped, StepLimit) as limit:
            outcome.stopped = str(limit)
        outcome.seconds = time.monotonic() - self._began
        outcome.exercised = dict(self.world.exercised)
        outcome.measured = dict(self.world.measured)
        return outcome

    def close(self) -> None:
        """Give back greenlets and memory."""
        self.machine.close()

    def _pass(self) -> bool:
        """Search from the initial state; False if something was learned and it must be done again."""
        machine = self.machine
        machine.begin_pass()
        self.modes.restart()
        self.executions = 0
        self.path.clear([held.locks for held in machine.memory.held])
        self.stack.clear()
        self.stack.append(Frame(machine.initial, machine.key(), -1, {}, 0))
        self.on_path = {machine.key(): 0}
        try:
            steps = patience = 0
            while self.stack and (not machine.surprised or steps <= patience):
                self._advance(self.stack[-1])
                steps += 1
                if machine.surprised and not patience:
                    patience = 2 * steps + PATIENCE
        except (Watched, NewWait):
            return False
        return not machine.surprised

    def _known(self) -> tuple[object, ...]:
        """All that has been learned by now."""
        world = self.world
        nodes = self.machine.automata.nodes.values()
        return (
            dict(world.clashes),
            dict(world.glimpses),
            sum(len(node.edges) + len(node.spawns) for node in nodes),
            sum(node.own.bit_count() + node.own_writes.bit_count() for node in nodes),
            sum(domain.observed for domain in world.domains.values()),
            self.modes.watched,
            dict(self.modes.split),
            self.waits.known(),
        )

    def _advance(self, frame: Frame) -> None:
        """Make the next step from the state on top of the stack, or leave that state."""
        if len(self.path.events) == len(self.stack):
            self.path.pop()
        self.machine.restore(frame.snapshot)
        if frame.todo:
            self._step(frame, frame.running, frame.todo.pop())
            return
        if frame.running >= 0:
            frame.sleep[frame.running] = frame.union
            frame.running, frame.union = -1, NOTHING
        task = self._next(frame)
        if task >= 0:
            self._step(frame, task, ())
            return
        if not frame.wanted:
            self._ended(frame)
        self.stack.pop()
        if self.on_path[frame.key] == len(self.stack):
            del self.on_path[frame.key]

    def _next(self, frame: Frame) -> int:
        """The next task to run here, or -1."""
        if frame.running < 0 and not frame.wanted:
            frame.eager = self._eager(frame)
        if frame.eager >= 0:
            return frame.eager if frame.eager not in frame.sleep else -1
        able = [task for task in frame.ready(self.machine.unfinished) if not self._spins(frame, task)]
        return self._first(frame, able) if able else -1

    def _first(self, frame: Frame, able: list[int]) -> int:
        """Which of the tasks is run first: what is found in the end does not depend on it."""
        return frame.last if frame.last in able else able[0]

    def _eager(self, frame: Frame) -> int:
        """A task whose step need not be put off, or -1."""
        machine = self.machine
        if self.path.eager:
            for task, node in enumerate(frame.snapshot.nodes):
                if node is not None and node.eager and task not in frame.waiting and not frame.spoilt >> task & 1:
                    if machine.able(task):
                        return task
                    self.waits.waits(node.op, machine.memory)
                    frame.waiting[task] = machine.memory.reads
        return -1

    def _spins(self, frame: Frame, task: int) -> bool:
        """Would `task` do here what it has just done, to no effect?"""
        if task not in frame.rounds:
            node = self.machine.nodes[task]
            assert node is not None
            once = self.path.round(node, self.machine.memory)
            frame.rounds[task] = once
            if once is not None and not self.path.again(once):
                frame.spinning |= 1 << task
        return bool(frame.spinning >> task & 1)

    def _step(self, frame: Frame, task: int, choices: Choices) -> None:
        machine, path = self.machine, self.path
        node = machine.nodes[task]
        assert node is not None
        op = node.op
        before = path.before(node)
        machine.passed = path.passed(before)
        if not machine.step(task, choices):
            self.waits.waits(op, machine.memory)
            frame.waiting[task] = machine.memory.reads
            frame.wanted &= ~(1 << task)
            return
        outcome, limit = self.outcome, self.bounds.executions
        if limit is not None and outcome.executions >= limit:
            raise Stopped(f"the bound of {limit} executions was reached")
        outcome.transitions += 1
        if outcome.transitions & 255 == 0:
            self._tick()
        frame.wanted |= 1 << task
        frame.todo.extend(alternatives(choices, machine.branches))
        journal = machine.memory.journal[frame.snapshot.mark :]
        taken = turns(journal, machine.memory.held[task])
        split = self.modes.split.get(task, 0)
        footprint = self.modes.footprint(machine.memory, taken, machine.dead)
        if self.modes.split.get(task, 0) != split:
            machine.points.surprised = True
        changed = self.modes.changed(journal)
        once = frame.rounds.get(task)
        if once is not None:
            footprint = footprint.union(once.footprint)
        frame.running = task
        frame.union = frame.union.union(footprint)
        dependent, freeing = path.dependent(footprint, before)
        self._turn(task, footprint, before, dependent, self.waits.of_step(op, taken), once)
        past = before
        for position in dependent:
            past |= path.events[position].past | 1 << position
        causes = path.causes(node, dependent, freeing)
        spoilt = frame.spoilt != 0 and any(
            event.spoilt and causes >> position & 1 for position, event in enumerate(path.events)
        )
        mark, ended, started = frame.snapshot.mark, spoilt or machine.dead, frame.started(machine)
        event = Event(node, mark, footprint, changed, past, causes, machine.basic, ended, started)
        path.push(event, taken)
        outcome.depth = max(outcome.depth, len(path.events))
        if machine.violations and not spoilt:
            self._report(machine.violations, self.path.schedule(event.causes | 1 << len(path.events) - 1))
        if len(path.events) > self.bounds.steps:
            raise Stopped(f"an execution is longer than {self.bounds.steps} steps")
        dead = frame.spoilt | 1 << task if event.spoilt else frame.spoilt
        key = machine.key() ^ dead
        below = Frame(machine.snapshot(), key, task, self._asleep(frame, task, footprint), dead)
        if key in self.on_path and (machine.nodes[task] is None or not self._spins(below, task)):
            self._circle(self.on_path[key])
            return
        self.on_path.setdefault(key, len(self.stack))
        self.stack.append(below)

    def _asleep(self, frame: Frame, task: int, footprint: Footprint) -> dict[int, Footprint]:
        """Who sleeps on after a step of `task`: those whose steps do not depend on it."""
        return {
            other: theirs for other, theirs in frame.sleep.items() if other != task and not theirs.conflicts(footprint)
        }

    def _turn(
        self,
        task: int,
        footprint: Footprint,
        before: int,
        dependent: list[int],
        wait: Wait | None,
        once: Round | None = None,
    ) -> None:
        """Plan the other orders of a step of `task` and the steps that it races with."""
        races = self.path.races(task, footprint, before, dependent, wait, once)
        for position, initials, first in races:
            frame = self.stack[position]
            if initials < 0:
                for other, node in enumerate(frame.snapshot.nodes):
                    if node is not None and other not in frame.waiting and not frame.spinning >> other & 1:
                        frame.wanted |= 1 << other
                continue
            if initials & frame.wanted or any(initials >> other & 1 for other in frame.sleep):
                continue
            if first not in frame.waiting and not frame.spinning >> first & 1:
                frame.wanted |= 1 << first

    def _circle(self, position: int) -> None:
        """The execution has come back to the state at `position`."""
        self.outcome.executions += 1
        self.executions += 1
        for frame in self.stack[position:]:
            for task in [task for task in frame.sleep if not frame.wanted >> task & 1]:
                del frame.sleep[task]
            for node in frame.snapshot.nodes:
                if node is not None and node.task.index not in frame.waiting:
                    frame.wanted |= node.task.bit & ~frame.spinning
        self.turning.update(frame.running for frame in self.stack[position:])
        self._stuck()
        machine = self.machine
        here = machine.snapshot()
        for node in here.nodes:
            if node is not None:
                machine.restore(here)
                if not machine.step(node.task.index):
                    self.waits.waits(node.op, machine.memory)
                    self._waits(node.task.index, machine.memory.reads)

    def _waits(self, task: int, looked: int) -> None:
        """`task` waits at the end of an execution: plan the orders in which it would not have to."""
        node = self.machine.nodes[task]
        assert node is not None
        before = self.path.before(node)
        for wait in self.waits.of_waiting(node.op):
            footprint = self.modes.waiting(wait.cell, wait.exclusive, looked)
            dependent, _freeing = self.path.dependent(footprint, before)
            self._turn(task, footprint, before, dependent, wait)

    def _stuck(self) -> None:
        """Look whether everything that can still happen leads round in circles."""
        stuck = spinning(self.machine)
        if stuck:
            self._report([Violation(LIVELOCK, stuck)], self.path.schedule())

    def _ended(self, frame: Frame) -> None:
        """No task can run, or only such as sleep."""
        machine, outcome = self.machine, self.outcome
        outcome.executions += 1
        self.executions += 1
        if not machine.unfinished:
            if self.final is not None:
                self._report(self.final(machine), self.path.schedule())
        elif not frame.sleep and not frame.spoilt:
            stuck = deadlock(machine)
            if frame.spinning:
                stuck = Violation(LIVELOCK, frame.resting())
            self._report([stuck], self.path.schedule())
        elif not frame.spoilt and not self.turning.isdisjoint(frame.sleep):
            self._stuck()  # those who go round would do so alone, but sleep
        for task, looked in frame.waiting.items():
            self._waits(task, looked)

    def _report(self, violations: list[Violation], schedule: Schedule) -> None:
        for violation in violations:
            new = self.outcome.add(Found(violation, schedule, self.outcome.executions + 1))
            if new and self.stop_at_first:
                raise Stopped("stopped at the first violation")

    def _tick(self) -> None:
        if self.bounds.seconds is not None and time.monotonic() - self._began > self.bounds.seconds:
            raise Stopped(f"the bound of {self.bounds.seconds:g} seconds was reached")
        if self.progress is not None:
            outcome = self.outcome
            self.progress(
                Progress(
                    0, outcome.transitions, outcome.executions, outcome.depth, len(outcome.found), fraction(self.stack)
                )
            )
