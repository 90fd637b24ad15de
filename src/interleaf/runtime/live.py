"""A run that is followed and not searched: each operation happens where the model asks for it.

A search must be able to stop before any operation, to come back to any state and to know what each step touched. A run
that happens once needs none of that. Here a task performs its operations itself, with a memory that keeps neither
journal nor footprint, and gives way only when

* its operation has to wait (a lock is held, a grace period is not over);
* somebody who follows the run wants to look (`stop`, from a `World.listener`);
* it has performed as many operations as it was allowed.

The operations and the model's code are those of an ordinary execution, so what follows from a schedule is the same. A
fatal violation ends the task that made it, and the others go on. All choices are 0.

A live run may be as long as it likes: an object that nobody refers to any more is forgotten, with its cells, and the
index of a task that has ended is given to another. Whoever keeps a number of a task (its bit in a set, its element of
an array) must be done with it when the task ends.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeVar

from greenlet import getcurrent

from .carrier import Carrier, Op, TaskGreenlet
from .cells import SETUP, Cell, World
from .findings import ModelError, Violation, ViolationRaised
from .memory import ALIVE, BLOCK, NOTHING_HELD, Memory, held_locks
from .objects import Object
from .operations import Task, end_task, intern_task
from .values import Value

R = TypeVar("R")

FOREVER = 1 << 62
"""Operations that a task may perform, unless the caller says otherwise."""

QUARANTINE = 256
"""Freed objects that are still found by their serial number, so that a use after the freeing is told as such."""

HOLDS = 64
"""Sets of held locks that are remembered, so as not to make each of them anew."""

CROWDED = 4096
"""Cells of an object from which on those are looked for that need not be kept."""


class LiveCell(Cell):
    """A cell that holds its value itself. Its number and its words are made when somebody asks for them."""

    __slots__ = ("_bit", "name", "place", "value")

    def __init__(self, index: int, owner: Object, default: Value, name: str, place: tuple[Value, ...]) -> None:
        self.index = index
        self.owner = owner
        self.default = self.value = default
        self.name = name
        self.place = place
        self._bit = 0

    @property
    def bit(self) -> int:  # type: ignore[override]
        """Only cells of locks and of contexts are members of sets, so only those get a number of their own."""
        if not self._bit:
            world = self.owner.world
            assert isinstance(world, LiveWorld)
            self._bit = 1 << next(world.bits)
        return self._bit

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"{self.owner.name}.{self.name}" + (f"[{self.place[0]}]" if self.place else "")


class LiveWorld(World):
    """The names of one live run, for as long as something has them."""

    def __init__(self) -> None:
        super().__init__()
        self.objects = weakref.WeakValueDictionary()
        self.serials = weakref.WeakValueDictionary()
        self.bits = itertools.count()
        self._made: Counter[type] = Counter()
        self._indices = itertools.count()
        self._given_back: deque[int] = deque()
        self._quarantine: deque[Object] = deque(maxlen=QUARANTINE)
        self._numbers = itertools.count()

    def intern_cell(self, owner: Object, default: Value, name: str, *index: Value) -> LiveCell:
        crowd = len(owner.__dict__["_cells"])
        if crowd >= CROWDED and crowd >= owner.__dict__.get("_crowded", 0):
            _thin_out(owner)
        return LiveCell(next(self._numbers), owner, default, name, index)

    def serial(self, kind: type, task: Any, count: int) -> int:
        """Objects are numbered in the order in which they are made."""
        self._made[kind] += 1
        return self._made[kind] - 1

    def enter_task(self, task: Any) -> int:
        if self._given_back:
            index = self._given_back.popleft()
            self.tasks[index] = task
            return index
        return super().enter_task(task)

    def leave_task(self, task: Task) -> None:
        """The task has ended, and its index is free for another."""
        self._given_back.append(task.index)

    def freed(self, owner: Object) -> None:
        """All but its life is forgotten at once: nobody may look at the rest any more."""
        owner.__dict__["_cells"].clear()
        owner.cells().clear()
        if self.serials.get((type(owner), owner.serial)) is owner:
            self._quarantine.append(owner)


def _thin_out(owner: Object) -> None:
    """Forget those cells of `owner` that are as a new one would be, and that nobody is about to use."""
    cells, every = owner.__dict__["_cells"], owner.cells()
    cells[_thin_out] = LiveCell(0, owner, None, "", ())  # a new one, to see how often one is referred to here
    every.append(cells[_thin_out])
    nobody = 0
    forgotten = set()
    for place, cell in reversed(list(cells.items())):
        references = sys.getrefcount(cell)
        nobody = nobody or references
        if cell is not owner.life and cell.value == cell.default and references == nobody:
            forgotten.add(cell)
            del cells[place]
    every[:] = [cell for cell in every if cell not in forgotten]
    owner.__dict__["_crowded"] = 2 * len(cells)


class LiveMemory(Memory):
    """The values of a live run, and the reads, writes and operations that its tasks perform themselves."""

    # All cells of its world are LiveCells, which the signatures of Memory cannot say: hence each ignored type error.

    world: LiveWorld

    def __init__(self, world: LiveWorld) -> None:
        super().__init__(world)
        self.left = FOREVER
        """Operations that the running task may still perform."""
        self.spared = 0
        """Operations that it was allowed, and will not perform, because somebody has stopped it."""

    # What tasks call

    def read(self, cell: LiveCell) -> Value:
        """Read a field."""
        if not self.left:
            give_way()
        self.left -= 1
        life = cell.owner.life
        if life is not None and life.value != ALIVE:  # type: ignore[attr-defined]
            self.use_after_free(cell, False)
        return cell.value

    def write(self, cell: LiveCell, value: Value) -> None:
        """Write a field."""
        if not self.left:
            give_way()
        self.left -= 1
        self.store_cell(cell, value)

    def perform(self, op: Op) -> Value:
        """Perform an operation, waiting until it can happen."""
        if not self.left:
            give_way()
        self.left -= 1
        result = op.run(self)
        return self._wait(op.run, ()) if result is BLOCK else result

    def call(self, run: Callable[..., Value], arguments: tuple[Value, ...]) -> Value:
        """Perform the operation whose body is `run`, waiting until it can happen."""
        if not self.left:
            give_way()
        self.left -= 1
        result = run(self, *arguments)
        return self._wait(run, arguments) if result is BLOCK else result

    def ask(self, question: Callable[..., R], *arguments: Any) -> R:
        """The answer to a question that depends on more than the results of operations."""
        return question(*arguments)

    def next_changed(self, obj: Object, name: str, start: int, end: int) -> int | None:
        """The first index, start <= index < end, of an element of an array that is not as it started."""
        cells = obj.__dict__["_cells"]
        for index in range(start, end):
            cell = cells.get((name, index))
            if cell is not None and cell.value != cell.default:
                return index
        return None

    def _wait(self, run: Callable[..., Value], arguments: tuple[Value, ...]) -> Value:
        """Let others run until the operation, which could not happen, has happened."""
        result: Value = BLOCK
        while result is BLOCK:
            self.left += 1
            give_way()
            self.left -= 1
            result = run(self, *arguments)
        return result

    # What operations call

    def load_cell(self, cell: LiveCell, plain: bool = False) -> Value:  # type: ignore[override]
        life = cell.owner.life
        if life is not None and life.value != ALIVE:  # type: ignore[attr-defined]
            self.use_after_free(cell, False)
        return cell.value

    def store_cell(self, cell: LiveCell, value: Value, plain: bool = False) -> None:  # type: ignore[override]
        life = cell.owner.life
        if life is not None and life.value != ALIVE:  # type: ignore[attr-defined]
            self.use_after_free(cell, True)
        cell.value = value

    commute_cell = store_cell  # type: ignore[assignment]

    def look(self, cell: LiveCell) -> Value:  # type: ignore[override]
        return cell.value

    def note(self, cell: LiveCell, value: Value) -> None:  # type: ignore[override]
        cell.value = value

    def set(self, cell: LiveCell, value: Value) -> None:  # type: ignore[override]
        cell.value = value

    def peek(self, cell: LiveCell) -> Value:  # type: ignore[override]
        return cell.value

    def order(self, token: Value, acquire: bool = False, release: bool = False) -> None:
        """Nobody looks for data races."""

    def observe(self, cell: Cell) -> None:
        """Nobody leaves scheduling points out."""

    def _now_holds(self, locks: tuple[tuple[Cell, bool], ...]) -> None:
        holds = self.world.holds
        held = holds.get(locks)
        if held is None:
            if len(holds) >= HOLDS:
                holds.clear()
            held = holds[locks] = held_locks(locks)
        self.held[self.task] = held


class LiveCarrier(Carrier):
    """A task of a live run."""

    def __init__(
        self, memory: LiveMemory, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]
    ) -> None:
        super().__init__(memory.world, task, function, arguments)
        self.direct = self.memory = memory
        self.ended = False
        self.stopped: list[Violation] = []
        """The fatal violation that has stopped the task, if one has."""
        self.begin()

    def begin(self) -> None:
        """Stand where the function begins."""
        self._greenlet = TaskGreenlet(self._live)
        self._greenlet.carrier = self

    def proceed(self) -> None:
        """Run until the task gives way, ends, or is stopped."""
        assert self._greenlet is not None
        self._greenlet.parent = getcurrent()
        self._greenlet.switch()

    def _live(self) -> None:
        memory = self.memory
        try:
            self._function(*self._arguments)
            if not memory.left:
                give_way()
            memory.left -= 1
            end_task(memory, self.task)
            self.ended = True
        except ViolationRaised as raised:
            self.stopped.append(raised.violation)


def give_way() -> None:
    """In a task: let whoever runs it go on. It comes back with at least one operation to perform."""
    current = getcurrent()
    assert current.parent is not None
    current.parent.switch()


class Live:
    """A live run of the program that `setup` makes: it builds the objects and spawns the tasks.

    `setup` runs alone, to its end, as the task "setup". After that `run` runs the task of the caller's choice.
    """

    world: LiveWorld
    _memory: LiveMemory

    def __init__(self, world: LiveWorld, setup: Callable[[], object]) -> None:
        self.world = world
        self._memory = self._make_memory()
        self.memory: Memory = self._memory
        self.violations: list[Violation] = []
        """What has been found; whoever has seen it may clear it."""
        self._carriers: dict[int, LiveCarrier] = {}
        first = intern_task(world, SETUP)
        self._begin(first, setup, ())
        self.run(first)
        if first.index in self._carriers:
            if self.violations:
                raise ModelError(f"the set-up itself violates a property: {self.violations[-1].message}")
            file, line, function = self.calls(first)[0]
            raise ModelError(
                f"the set-up waits for ever in {function} at {file}:{line}: nothing else is running yet. Move the "
                "waiting into a task."
            )

    @property
    def unfinished(self) -> list[Task]:
        """Tasks that have not ended, by index; those that wait or have been stopped by a fatal violation, too."""
        return [self.world.tasks[index] for index in sorted(self._carriers)]

    def run(self, task: Task, operations: int = FOREVER) -> int:
        """Run `task` until it gives way or ends, for so many operations at the most (at least 1).

        Returns how many it has performed; its end is one. 0: it has to wait, or a fatal violation has stopped it.
        """
        carrier = self._carriers.get(task.index)
        if carrier is None or carrier.task is not task:
            raise ModelError(f"task {task} cannot run: it has ended or was never started.")
        if carrier.stopped:
            return 0
        memory = self._memory
        memory.task = task.index
        memory.left, memory.spared = operations, 0
        carrier.proceed()
        self.violations.extend(carrier.stopped)
        self.violations.extend(memory.warnings)
        memory.warnings.clear()
        if carrier.ended:
            self._end(carrier)
        for started, function, arguments in memory.spawned:
            self._begin(started, function, arguments)
        memory.spawned.clear()
        return operations - memory.left - memory.spared

    def stop(self) -> None:
        """Called by whoever listens to what a task traces: `run` returns before the task performs another operation."""
        self._memory.spared += self._memory.left
        self._memory.left = 0

    def calls(self, task: Task) -> tuple[tuple[str, int, str], ...]:
        """File, line and function of the model code that is active in the task, innermost first."""
        return self._carriers[task.index].calls

    def close(self) -> None:
        """End all greenlets."""
        for carrier in self._carriers.values():
            carrier.kill()
        self._carriers.clear()

    def _begin(self, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]) -> None:
        if task.index in self._carriers:
            raise ModelError(f"two tasks are called {task}; give each a name of its own.")
        while len(self.memory.held) <= task.index:
            self.memory.held.append(NOTHING_HELD)
        self._carriers[task.index] = self._make_carrier(task, function, arguments)

    def _end(self, carrier: LiveCarrier) -> None:
        del self._carriers[carrier.task.index]
        self.world.leave_task(carrier.task)

    def _make_memory(self) -> LiveMemory:
        return LiveMemory(self.world)

    def _make_carrier(self, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]) -> LiveCarrier:
        return LiveCarrier(self._memory, task, function, arguments)
