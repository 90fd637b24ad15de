"""A live run that can go back to an earlier moment, and tell which operations depend on each other.

What changes is noted with what undoes it. To go back, the changes since are undone, latest first; and each task that
has run since is begun again when it is next needed, with the results that its operations had got until then (`Again`).
Whatever else a task learns (`ask`) is among those results, so that it comes to the same point.

What is noted grows until it is forgotten (`RewindWorld.forget`): whoever follows the run says how far it may go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from .carrier import CHOICE, Op
from .cells import Cell
from .findings import ModelError
from .live import FOREVER, Live, LiveCarrier, LiveCell, LiveMemory, LiveWorld, give_way
from .memory import BLOCK
from .objects import Object
from .operations import Task
from .values import Value

R = TypeVar("R")
Undo = tuple[Any, Any]
"""A cell and its former value; or a function that undoes a change, and its arguments."""


class Access(NamedTuple):
    """That an operation depends on something, or changes it."""

    operation: int
    """The how-manieth operation of its run it is."""
    what: object
    """A cell; or an object and the name of an array of it: which elements are as they started."""
    write: bool


class RewindWorld(LiveWorld):
    """The names of a live run that can go back."""

    def __init__(self) -> None:
        super().__init__()
        self.past: list[Undo] = []
        self.repeating = False
        """A task is begun again: what it says has been heard."""
        self._forgotten = 0
        self._freed: deque[tuple[int, Object]] = deque()

    def note(self, undo: Callable[..., object], *arguments: Any) -> None:
        """Something has changed; `undo` makes it what it was."""
        self.past.append((undo, arguments))

    @property
    def now(self) -> int:
        """This moment, to go back to."""
        return self._forgotten + len(self.past)

    def back(self, moment: int) -> None:
        """Undo everything since a moment that is not forgotten."""
        past = self.past
        kept = moment - self._forgotten
        if kept < 0:
            raise ModelError("a live run cannot go back beyond what it has forgotten.")
        while len(past) > kept:
            changed, former = past.pop()
            if type(changed) is LiveCell:
                changed.value = former
            else:
                changed(*former)

    def forget(self, oldest: int | None) -> None:
        """Nobody goes back further than to that moment; or than to now, if None."""
        oldest = self.now if oldest is None else oldest
        del self.past[: oldest - self._forgotten]
        self._forgotten = oldest
        while self._freed and self._freed[0][0] < oldest:
            super().freed(self._freed.popleft()[1])

    def enter_task(self, task: Any) -> int:
        former = self.tasks[self._given_back[0]] if self._given_back else None
        index = super().enter_task(task)
        self.note(self._unenter, task, index, former)
        return index

    def leave_task(self, task: Task) -> None:
        super().leave_task(task)
        self.note(self._given_back.pop)

    def freed(self, owner: Object) -> None:
        """It is forgotten when nobody can go back to where it was alive."""
        self._freed.append((self.now, owner))
        self.note(self._freed.pop)

    def _unenter(self, task: Task, index: int, former: Task | None) -> None:
        del task.__dict__["index"]
        if former is None:
            self.tasks.pop()
        else:
            self.tasks[index] = former
            self._given_back.appendleft(index)


class RewindMemory(LiveMemory):
    """The values of a live run that can go back."""

    # As in LiveMemory, each ignored type error says that all cells are LiveCells.

    world: RewindWorld

    def __init__(self, world: RewindWorld) -> None:
        super().__init__(world)
        self._past = world.past
        self.log: list[Value] = []
        """What the running task has got for its operations, and learned besides."""
        self.allowed = FOREVER
        """Operations that the running task might perform at first."""
        self.decide: Callable[[Op], int] = lambda _choice: 0
        """The outcome of a choice."""
        self.contended = False
        """Somebody waits for what the running task has: it is to come to where it may give it up."""
        self.accesses: list[Access] | None = None
        """What the operations of this run depend on, while somebody wants to know."""
        self.waits_for: list[Cell] = []
        """What the operation depends on that the running task waits with."""

    # What tasks call

    def read(self, cell: LiveCell) -> Value:
        value = super().read(cell)
        if self.accesses is not None:
            self._depends(cell, False)
        self.log.append(value)
        return value

    def perform(self, op: Op) -> Value:
        if not self.left:
            give_way()
        self.left -= 1
        if op.kind == CHOICE:
            result: Value = self.decide(op)
        else:
            result = op.run(self)
            if result is BLOCK:
                result = self._wait(op.run, ())
        self.log.append(result)
        return result

    def call(self, run: Callable[..., Value], arguments: tuple[Value, ...]) -> Value:
        result = super().call(run, arguments)
        self.log.append(result)
        return result

    def ask(self, question: Callable[..., R], *arguments: Any) -> R:
        answer = question(*arguments)
        self.log.append(answer)
        return answer

    def next_changed(self, obj: Object, name: str, start: int, end: int) -> int | None:
        if self.contended:
            return start
        if self.accesses is not None:
            self._depends((obj, name), False)
        return super().next_changed(obj, name, start, end)

    def _wait(self, run: Callable[..., Value], arguments: tuple[Value, ...]) -> Value:
        result: Value = BLOCK
        while result is BLOCK:
            while self.accesses and self.accesses[-1].operation == self._operation:
                self.accesses.pop()  # the operation has not happened
            wanted, self.accesses = self.accesses, []
            run(self, *arguments)
            self.waits_for = [access.what for access in self.accesses if isinstance(access.what, Cell)]
            self.accesses = wanted
            self.left += 1
            give_way()
            self.left -= 1
            result = run(self, *arguments)
        return result

    # What operations call

    def load_cell(self, cell: LiveCell, plain: bool = False) -> Value:  # type: ignore[override]
        if self.accesses is not None:
            self._depends(cell, False)
        return super().load_cell(cell, plain)

    def store_cell(self, cell: LiveCell, value: Value, plain: bool = False) -> None:  # type: ignore[override]
        if self.accesses is not None:
            self._changes(cell, value)
        self._past.append((cell, cell.value))
        super().store_cell(cell, value, plain)

    def commute_cell(self, cell: LiveCell, value: Value) -> None:  # type: ignore[override]
        if self.accesses is not None:
            self._depends(cell, False)
        self.set(cell, value)

    def look(self, cell: LiveCell) -> Value:  # type: ignore[override]
        if self.accesses is not None:
            self._depends(cell, False)
        return cell.value

    peek = look

    def note(self, cell: LiveCell, value: Value) -> None:  # type: ignore[override]
        if self.accesses is not None:
            self._changes(cell, value)
        self._past.append((cell, cell.value))
        cell.value = value

    def set(self, cell: LiveCell, value: Value) -> None:  # type: ignore[override]
        if self.accesses is not None:
            self._depends(cell, False)
        self._past.append((cell, cell.value))
        cell.value = value

    def _now_holds(self, locks: tuple[tuple[Cell, bool], ...]) -> None:
        self._past.append((self.held.__setitem__, (self.task, self.held[self.task])))
        super()._now_holds(locks)

    def _depends(self, what: object, write: bool) -> None:
        assert self.accesses is not None
        self.accesses.append(Access(self._operation, what, write))

    @property
    def _operation(self) -> int:
        """The how-manieth of its run the running operation is."""
        return self.allowed - self.left - self.spared

    def _changes(self, cell: LiveCell, value: Value) -> None:
        self._depends(cell, True)
        if cell.place and (cell.value == cell.default) != (value == cell.default):
            self._depends((cell.owner, cell.name), True)


class Again:
    """What a task that is begun again gets: what it had got. After so many operations it stands where it stood."""

    def __init__(self, carrier: RewindCarrier) -> None:
        self._carrier = carrier
        self._memory = carrier.memory
        self._left = carrier.done
        self._results: Iterator[Value] = iter(tuple(carrier.log))

    def read(self, cell: LiveCell) -> Value:
        return next(self._results) if self._goes_on() else self._memory.read(cell)

    def write(self, cell: LiveCell, value: Value) -> None:
        if not self._goes_on():
            self._memory.write(cell, value)

    def perform(self, op: Op) -> Value:
        return next(self._results) if self._goes_on() else self._memory.perform(op)

    def call(self, run: Callable[..., Value], arguments: tuple[Value, ...]) -> Value:
        return next(self._results) if self._goes_on() else self._memory.call(run, arguments)

    def ask(self, _question: Callable[..., R], *_arguments: Any) -> R:
        answer: R = next(self._results)
        return answer

    def next_changed(self, obj: Object, name: str, start: int, end: int) -> int | None:
        return self._memory.next_changed(obj, name, start, end)

    def _goes_on(self) -> bool:
        if self._left:
            self._left -= 1
            return True
        self._carrier.direct = self._memory
        return False


class RewindCarrier(LiveCarrier):
    """A task of a live run that can go back."""

    memory: RewindMemory

    def __init__(
        self, memory: RewindMemory, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]
    ) -> None:
        super().__init__(memory, task, function, arguments)
        self.log: list[Value] = []
        self.done = 0
        """Operations that it has performed since it was where its function begins."""
        self.ahead = False
        """It stands further on than the run does, which has gone back."""

    def back(self, learned: int, done: int) -> None:
        """It has only performed so many operations, and learned so much."""
        del self.log[learned:]
        self.done = done
        self.ahead = True
        self.ended = False
        self.stopped.clear()

    def unrest(self, log: list[Value], done: int) -> None:
        self.log, self.done = log, done

    def again(self) -> None:
        """Begin again, and come to where it has performed as many operations as it should have."""
        self.kill()
        self._dying = False
        self.direct = Again(self)
        self.begin()
        self.memory.left = 0
        world = self.memory.world
        world.repeating = True
        self.proceed()
        world.repeating = False
        self.ahead = False

    def kill(self) -> None:
        """End the greenlet wherever it is: what the model's code does on its way out is no part of the run."""
        self.direct = None
        self._dying = True
        super().kill()


class Rewind(Live):
    """A live run that can go back."""

    world: RewindWorld
    _memory: RewindMemory
    _carriers: dict[int, RewindCarrier]  # type: ignore[assignment]  # it makes no others

    def run(self, task: Task, operations: int = FOREVER) -> int:
        carrier = self._of(task)
        if carrier is None or carrier.stopped:
            return super().run(task, operations)
        if carrier.ahead:
            carrier.again()
        memory, world = self._memory, self.world
        world.note(carrier.back, len(carrier.log), carrier.done)
        memory.log, memory.allowed = carrier.log, operations
        ran = super().run(task, operations)
        carrier.done += ran
        return ran

    def rest(self, task: Task) -> None:
        """The task is where its function begins: what it has done is not needed to begin it again."""
        carrier = self._carriers[task.index]
        self.world.note(carrier.unrest, carrier.log, carrier.done)
        carrier.log, carrier.done = [], 0

    def done(self, task: Task) -> int:
        """Operations that the task has performed since it rested; none if it does not run."""
        carrier = self._of(task)
        return carrier.done if carrier is not None else 0

    def has(self, task: Task) -> bool:
        """Has the task been started (and is so still, after going back), and not ended?"""
        return self._of(task) is not None

    def _of(self, task: Task) -> RewindCarrier | None:
        carrier = self._carriers.get(task.__dict__.get("index", -1))
        return carrier if carrier is not None and carrier.task is task else None

    def _begin(self, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]) -> None:
        super()._begin(task, function, arguments)
        self.world.note(self._unbegin, task.index)

    def _end(self, carrier: LiveCarrier) -> None:
        self.world.note(self._carriers.__setitem__, carrier.task.index, carrier)
        super()._end(carrier)

    def _unbegin(self, index: int) -> None:
        self._carriers.pop(index).kill()

    def _make_memory(self) -> RewindMemory:
        return RewindMemory(self.world)

    def _make_carrier(self, task: Task, function: Callable[..., Any], arguments: tuple[Value, ...]) -> RewindCarrier:
        return RewindCarrier(self._memory, task, function, arguments)
