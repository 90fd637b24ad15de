"""Brute force: every interleaving, one after the other, with no reduction at all.

For small programs, to compare the real engines with. Tasks are switched before every access to shared state, plain
ones too. Nothing is merged, and nothing is left out but to go on from a state in which the same execution has been
before, so there is little here that could be wrong. `live` runs each interleaving from the start in greenlets
(stateless search in the manner of VeriSoft, Godefroid, POPL 1997); otherwise a `Machine` without reductions returns to
earlier states, which is faster and trusts its automata and its undo journal. With `merge`, a state that any execution
has been in is not gone on from: for programs with too many interleavings, and it trusts the hash of states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from interleaf.runtime.carrier import Op
from interleaf.runtime.cells import World
from interleaf.runtime.execution import Execution, Move, Schedule, StepLimit
from interleaf.runtime.findings import ModelError, Violation
from interleaf.runtime.memory import Memory
from interleaf.runtime.operations import Report, Task
from interleaf.runtime.values import Value

from .automaton import Node
from .livelock import alternatives
from .machine import Choices, Machine, Snapshot
from .outcome import DEADLOCK, Bounds, Found, Outcome
from .points import Points

Final: TypeAlias = frozenset[tuple[str, str]]
"""The cells that do not have their default value, by label."""


def final_state(memory: Memory) -> Final:
    """What an execution leaves behind, in a form that is the same in every world."""
    values = memory.values
    return frozenset(
        (cell.label, _shown(values[cell.index])) for cell in memory.world.cells if values[cell.index] != cell.default
    )


def _shown(value: Value) -> str:
    """The value in a form that is the same in every world: the order of a set is not."""
    return str(sorted(map(_shown, value))) if isinstance(value, frozenset) else repr(value)


class Driver(Protocol):
    """A program at one of its states, as brute force sees it."""

    @property
    def memory(self) -> Memory: ...

    @property
    def branches(self) -> list[int]:
        """Outcomes of each choice in the latest step."""
        ...

    @property
    def violations(self) -> list[Violation]:
        """Of the latest step."""
        ...

    @property
    def fatal(self) -> bool:
        """Has the latest step ended the execution?"""
        ...

    def unfinished(self) -> list[int]:
        """Tasks that have not ended."""
        ...

    def step(self, task: int, choices: Choices) -> bool:
        """Run a task up to its next operation that others could notice; False if it waits."""
        ...

    def back(self, depth: int) -> None:
        """Return to the state after the first `depth` steps of the current path."""
        ...

    def schedule(self) -> Schedule:
        """The current path."""
        ...

    def state(self) -> Hashable:
        """Equal for equal states."""
        ...

    def waiting(self) -> str:
        """Who waits in what, in words."""
        ...

    def close(self) -> None: ...


class Live:
    """Drives an `Execution`; to go back is to run the model again from the start."""

    def __init__(self, world: World, setup: Callable[[], object]) -> None:
        self.world = world
        self.setup = setup
        self.branches: list[int] = []
        self.violations: list[Violation] = []
        self.fatal = False
        self._path: list[list[Move]] = []
        self._run = Execution(world, setup)

    @property
    def memory(self) -> Memory:
        return self._run.memory

    def unfinished(self) -> list[int]:
        return [task.index for task in self._run.unfinished]

    def step(self, task: int, choices: Choices) -> bool:
        run = self._run
        handle: Task = self.world.tasks[task]
        moves: list[Move] = []
        self.branches, self.violations, self.fatal = [], [], False
        while not self.fatal and task in run.pending and (not moves or _local(run.pending[task])):
            step = run.step(handle, choices[len(self.branches) :], 1)
            if step is None:
                return False
            moves.append(Move(handle.name, step.choices, 1))
            self.branches += step.branches
            self.violations += step.violations
            self.fatal = step.fatal
        self._path.append(moves)
        return True

    def back(self, depth: int) -> None:
        if depth == len(self._path):
            return
        del self._path[depth:]
        self._run.close()
        self._run = Execution(self.world, self.setup)
        for _ in self._run.replay(self.schedule()):
            pass

    def schedule(self) -> Schedule:
        return tuple(move for moves in self._path for move in moves)

    def state(self) -> Hashable:
        return (self.memory.zobrist, tuple((task, carrier.state) for task, carrier in self._run.carriers.items()))

    def waiting(self) -> str:
        pending = self._run.pending
        return _waiting([(self.world.tasks[task].name, op.name, op.site[2]) for task, op in sorted(pending.items())])

    def close(self) -> None:
        self._run.close()


def _local(op: Op) -> bool:
    """Can others not notice when it happens? A fatal report they can: nothing happens after it."""
    return op.local and not isinstance(op, Report)


class _Everywhere(Points):
    """Every operation that another task could notice needs a scheduling point, so nothing is to be learned."""

    def needed(self, node: Node) -> bool:
        return True

    def learn(self, node: Node, memory: Memory, write: bool) -> None:
        node.learned, node.beside = memory.held[memory.task], -1


class Unreduced(Machine):
    """A machine that stops before every operation that another task could notice."""

    def __init__(self, world: World, setup: Callable[[], object]) -> None:
        super().__init__(world, setup, reduce=False)
        self.memory.learning = False
        self.points = _Everywhere(world, self.automata, foresight=False)


class Remembered:
    """Drives a `Machine` that leaves no scheduling point out."""

    def __init__(self, world: World, setup: Callable[[], object]) -> None:
        self.machine = Unreduced(world, setup)
        self._path: list[tuple[Snapshot, list[Move]]] = [(self.machine.initial, [])]

    @property
    def memory(self) -> Memory:
        return self.machine.memory

    @property
    def branches(self) -> list[int]:
        return self.machine.branches

    @property
    def violations(self) -> list[Violation]:
        return self.machine.violations

    @property
    def fatal(self) -> bool:
        return self.machine.dead

    def unfinished(self) -> list[int]:
        return self.machine.unfinished

    def step(self, task: int, choices: Choices) -> bool:
        machine = self.machine
        if not machine.step(task, choices):
            return False
        name = machine.task(task).name
        self._path.append((machine.snapshot(), [Move(name, *basic) for basic in machine.basic]))
        return True

    def back(self, depth: int) -> None:
        if depth + 1 < len(self._path):
            del self._path[depth + 1 :]
            self.machine.restore(self._path[depth][0])

    def schedule(self) -> Schedule:
        return tuple(move for _, moves in self._path for move in moves)

    def state(self) -> Hashable:
        return self.machine.key()

    def waiting(self) -> str:
        nodes = [node for node in self.machine.nodes if node is not None]
        return _waiting([(node.task.name, node.op.name, node.op.site[2]) for node in nodes])

    def close(self) -> None:
        self.machine.close()


def _waiting(places: Sequence[tuple[str, str, str]]) -> str:
    return "; ".join(f"{task} waits in {operation} ({function})" for task, operation, function in places)


@dataclass(slots=True)
class _State:
    """A state on the current path."""

    state: Hashable
    todo: list[tuple[int, Choices]]
    """Steps that are still to be tried here."""
    awake: bool = False
    """Could any task run here?"""


class BruteForce:
    """All interleavings of one program; `run` gives the `Outcome`, `finals` the states in which executions end.

    Honoured bounds: executions, seconds, and steps in one execution. Each of them makes the search incomplete.
    """

    def __init__(
        self, setup: Callable[[], object], *, bounds: Bounds | None = None, live: bool = True, merge: bool = False
    ) -> None:
        self.bounds = bounds or Bounds()
        if self.bounds.states is not None or self.bounds.preemptions is not None:
            raise ModelError("brute force cannot honour a bound on states or preemptions: leave it out.")
        self.merge = merge
        self.world = World()
        self.driver: Driver = Live(self.world, setup) if live else Remembered(self.world, setup)
        self.outcome = Outcome("brute force")
        self.finals: set[Final] = set()
        self._path: list[_State] = []
        self._seen: set[Hashable] = set()
        """The states of the path; with `merge`, all."""
        self._began = 0.0

    def run(self) -> Outcome:
        """Try everything, or stop at a bound."""
        self._began = time.monotonic()
        outcome = self.outcome
        try:
            self._arrive()
            while self._path and not outcome.stopped:
                self._advance(self._path[-1])
            outcome.exhaustive = not outcome.stopped
        except StepLimit as limit:
            outcome.stopped = str(limit)
        outcome.states = len(self._seen)
        outcome.seconds = time.monotonic() - self._began
        outcome.exercised = dict(self.world.exercised)
        outcome.measured = dict(self.world.measured)
        return outcome

    def close(self) -> None:
        """Give back greenlets and memory."""
        self.driver.close()

    def _arrive(self) -> None:
        """A new state is reached: every task is to be tried there."""
        if len(self._path) > self.bounds.steps:
            raise StepLimit(f"an execution is longer than {self.bounds.steps} steps")
        state = self.driver.state()
        if state in self._seen:
            if not self.merge:
                self._count()  # it has come round to where it was
            return
        self._seen.add(state)
        self._path.append(_State(state, [(task, ()) for task in reversed(self.driver.unfinished())]))

    def _advance(self, state: _State) -> None:
        """Try the next step from the state at the end of the path, or leave that state."""
        driver, outcome = self.driver, self.outcome
        if not state.todo:
            if not state.awake:
                self._ended()
            self._path.pop()
            if not self.merge:
                self._seen.remove(state.state)
            return
        task, choices = state.todo.pop()
        driver.back(len(self._path) - 1)
        if not driver.step(task, choices):
            return
        state.awake = True
        outcome.transitions += 1
        state.todo.extend((task, other) for other in alternatives(choices, driver.branches))
        outcome.depth = max(outcome.depth, len(self._path))
        for violation in driver.violations:
            outcome.add(Found(violation, driver.schedule(), outcome.executions + 1))
        if driver.fatal:
            self._count()
        else:
            self._arrive()

    def _ended(self) -> None:
        """No task can run."""
        driver = self.driver
        driver.back(len(self._path) - 1)
        if driver.unfinished():
            self.outcome.add(
                Found(Violation(DEADLOCK, driver.waiting()), driver.schedule(), self.outcome.executions + 1)
            )
        else:
            self.finals.add(final_state(driver.memory))
        self._count()

    def _count(self) -> None:
        outcome, bounds = self.outcome, self.bounds
        outcome.executions += 1
        if bounds.executions is not None and outcome.executions >= bounds.executions:
            outcome.stopped = f"the bound of {bounds.executions} executions was reached"
        elif bounds.seconds is not None and time.monotonic() - self._began > bounds.seconds:
            outcome.stopped = f"the bound of {bounds.seconds:g} seconds was reached"
