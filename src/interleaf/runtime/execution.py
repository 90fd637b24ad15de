"""One run of a model, step by step.

A *step* is what a task does between two scheduling points: its pending marked operation and the plain
operations and choices after it, up to just before the next marked one. A schedule is the list of steps: which
task, and the outcome of each choice it met. The same schedule gives the same run. A step may also be cut
short before a plain operation, which shows what a data race does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from .carrier import CHOICE, END, Carrier, Note, Op
from .cells import SETUP, World
from .findings import ModelError, Violation, ViolationRaised
from .memory import BLOCK, NOTHING_HELD, Memory, Observer
from .operations import Choose, Task, end_task, intern_task
from .values import Value


class Move(NamedTuple):
    """One step of a schedule."""

    task: str
    choices: tuple[int, ...] = ()
    """Outcomes of the choices on the way."""
    operations: int = 0
    """How many operations the step has; 0: all up to the next marked one."""


Schedule: TypeAlias = tuple[Move, ...]

Site: TypeAlias = tuple[str, int, str]
"""File, line and function."""

STEP_LIMIT = 100_000
"""Operations in one execution, unless the caller says otherwise."""


class StepLimit(Exception):
    """An execution was longer than its limit: what it would do further is unknown."""


@dataclass(frozen=True, slots=True)
class Event:
    """One operation that happened: who, what, where in the model, in words, and what the model said before."""

    task: str
    operation: str
    site: tuple[str, int, str]
    text: str
    notes: tuple[Note, ...] = ()


@dataclass(slots=True)
class Step:
    """One step that happened, with its footprint as bit sets of cells."""

    task: Task
    choices: tuple[int, ...] = ()
    operations: int = 0
    """As in `Move`."""
    reads: int = 0
    writes: int = 0
    plains: int = 0
    events: list[Event] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    """How many outcomes each of the choices had."""

    @property
    def fatal(self) -> bool:
        return any(violation.fatal for violation in self.violations)


class Execution:
    """A run of the program that `setup` makes: it builds the objects and spawns the tasks.

    `setup` runs alone, to its end, as the task "setup". After that `step` runs the task of the caller's choice.
    With `narrate`, the model's `say` lines and each operation's words are kept.
    """

    def __init__(
        self,
        world: World,
        setup: Callable[[], object],
        *,
        observer: Observer | None = None,
        narrate: bool = False,
        step_limit: int = STEP_LIMIT,
    ) -> None:
        self.world = world
        self.memory = Memory(world)
        self.memory.observer = observer
        self.narrate = narrate
        self.step_limit = step_limit
        self.operations = 0
        self.site: Site = ("", 0, "")
        """Where in the model the running operation was asked for."""
        self.carriers: dict[int, Carrier] = {}
        self.pending: dict[int, Op] = {}
        self.steps: list[Step] = []
        self.setup = intern_task(world, SETUP)
        self._begin(self.setup, setup, ())
        while self.setup.index in self.pending:
            if self.step(self.setup) is None:
                op = self.pending[self.setup.index]
                raise ModelError(
                    f"the set-up waits for ever in {op.name} at {op.site[0]}:{op.site[1]}: nothing else is running "
                    "yet. Move the waiting into a task."
                )
            if self.steps[-1].fatal:
                raise ModelError(f"the set-up itself violates a property: {self.steps[-1].violations[-1].message}")

    @property
    def unfinished(self) -> list[Task]:
        """Tasks that have not ended, by index; the ones that are blocked too."""
        return [self.world.tasks[index] for index in sorted(self.pending)]

    @property
    def schedule(self) -> Schedule:
        """The schedule so far, without the set-up."""
        return tuple(
            Move(step.task.name, step.choices, step.operations) for step in self.steps if step.task is not self.setup
        )

    def step(self, task: Task, choices: Iterable[int] = (), operations: int = 0) -> Step | None:
        """Run one step of `task`, or return None if its operation cannot happen now.

        `choices` are the outcomes of the choices on the way; beyond them every choice is 0. With `operations`,
        the step ends after so many of them at the latest.
        """
        index = task.index
        op = self.pending.get(index)
        if op is None:
            raise ModelError(f"task {task} cannot run: it has ended or was never started.")
        memory = self.memory
        memory.begin_step(index)
        memory.order(task, acquire=True)
        step = Step(task, operations=operations)
        outcomes = iter(choices)
        first = True
        while True:
            try:
                result = self._run(op, step, outcomes)
            except ViolationRaised as raised:
                step.violations.append(raised.violation)
                self._record(step, op, None, failed=True)
                break
            if result is BLOCK:
                if first:
                    return None
                break
            step.violations.extend(memory.warnings)
            memory.warnings.clear()
            self._record(step, op, result)
            if op.kind == END:
                del self.pending[index], self.carriers[index]
                break
            for started, function, arguments in memory.spawned:
                self._begin(started, function, arguments)
            memory.spawned.clear()
            self.operations += 1
            if self.operations > self.step_limit:
                raise StepLimit(f"{self.operations} operations without an end")
            op = self.pending[index] = self.carriers[index].resume(result)
            first = False
            operations -= 1
            if op.marked or operations == 0:
                break
        step.reads, step.writes, step.plains = memory.reads, memory.writes, memory.plains
        self.steps.append(step)
        return step

    def replay(self, schedule: Iterable[Move]) -> Iterator[Step]:
        """Run the steps of `schedule`; ModelError names the step where the model no longer follows it."""
        for position, (name, choices, operations) in enumerate(schedule):
            running = {task.name: task for task in self.unfinished}
            if name not in running:
                raise ModelError(
                    f"the replay diverges at step {position}: task {name} should run, but the tasks that have not "
                    f"ended are {', '.join(running) or 'none'}. The model or the design has changed."
                )
            step = self.step(running[name], choices, operations)
            if step is None:
                op = self.pending[running[name].index]
                raise ModelError(
                    f"the replay diverges at step {position}: task {name} should run, but it waits in {op.name} at "
                    f"{op.site[0]}:{op.site[1]}. The model or the design has changed."
                )
            yield step

    def close(self) -> None:
        """End all greenlets and leave the world."""
        for carrier in self.carriers.values():
            carrier.kill()
        self.carriers.clear()
        self.memory.detach()

    def _run(self, op: Op, step: Step, outcomes: Iterator[int]) -> Value:
        memory = self.memory
        self.site = op.site
        if op.kind == CHOICE:
            assert isinstance(op, Choose)
            outcome = next(outcomes, 0)
            if not 0 <= outcome < op.outcomes:
                raise ModelError(f"the schedule chooses {outcome} where {op.what} has {op.outcomes} outcomes.")
            step.choices += (outcome,)
            step.branches.append(op.outcomes)
            return outcome
        if op.kind == END:
            end_task(memory, step.task)
            return None
        memory.plainly = not op.marked
        return op.run(memory)

    def _record(self, step: Step, op: Op, result: Value, failed: bool = False) -> None:
        if not self.narrate:
            return
        notes = self.carriers[step.task.index].notes or []
        text = op.attempted() if failed else op.text(result)
        step.events.append(Event(step.task.name, op.name, op.site, text, tuple(notes)))
        notes.clear()

    def _begin(self, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]) -> None:
        if task.index in self.carriers:
            raise ModelError(f"two tasks are called {task}; give each a name of its own.")
        while len(self.memory.held) <= task.index:
            self.memory.held.append(NOTHING_HELD)
        carrier = Carrier(self.world, task, function, arguments)
        if self.narrate:
            carrier.notes = []
        self.carriers[task.index] = carrier
        self.pending[task.index] = carrier.start()
