"""RCU: readers that never wait, and grace periods that wait for them (Documentation/RCU, kernel/rcu/tree.c, v6.12).

A grace period ends when every reader that was inside when it began has left; readers that come later are not
waited for. `call_rcu()` starts a task of its own that runs its callback after a grace period, in softirq context, so
that it must not sleep. Callbacks that one task has queued run in that order, as those of one CPU do (rcu_do_batch).
`rcu_barrier()` waits for all callbacks queued before it, which a grace period alone does not.

Rules (CONFIG_PROVE_RCU, CONFIG_DEBUG_OBJECTS_RCU_HEAD): a pointer is followed in a reader only, or with a condition
that protects it (a lock of the writers); readers do not sleep, so they do not synchronize_rcu() either; locks and
unlocks balance; the same callback is not queued twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from interleaf.runtime import BLOCK, Array, Marked, Memory, Object, Task, Violation, canonical, routine
from interleaf.runtime.carrier import Op, perform, running
from interleaf.runtime.cells import Cell, World
from interleaf.runtime.objects import Field, show, singleton
from interleaf.runtime.operations import intern_task
from interleaf.runtime.values import Value

from .grace import Readers, begin, enter, leave, over
from .lockdep import lockdep_map, may_sleep, place
from .sched import join_all

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class RcuState(Readers):
    """The kernel's one RCU. A reader is the index of its task."""

    atomic = True
    ordered = False
    context = "an RCU reader"

    nesting = Array(0)
    """Per task: read-side critical sections beyond the outermost."""
    callbacks = Marked(0)
    """Callbacks that were queued and have not ended, as the bits of their tasks."""
    latest: Array[Task | None] = Array(None)
    """Per task: the callback that it queued last."""
    heads = Array(0)
    """Per callback and arguments: twice the number of times it was queued before, plus 1 if it is queued now. In the
    object that the callback is for, as the kernel's rcu_head, so that it goes when that is freed."""


class RcuCallback(lockdep_map):
    """The context in which callbacks run: softirq (rcu_callback_map)."""

    atomic = True
    ordered = False
    context = "an RCU callback"
    running = Marked(0)


def _head(state: RcuState, head: str, arguments: tuple[Value, ...]) -> Cell:
    """What stands for the rcu_head of a callback with these arguments."""
    return RcuState.heads.element(next((each for each in arguments if isinstance(each, Object)), state), head)


class _Known:
    """What every RCU operation needs of its world, found once."""

    def __init__(self, world: World) -> None:
        self.state = singleton(world, RcuState)
        self.readers = RcuState.readers.cell(self.state)
        self.callbacks = RcuState.callbacks.cell(self.state)
        self.softirq = RcuCallback.running.cell(singleton(world, RcuCallback))


def _known(world: World) -> _Known:
    found: _Known | None = world.gathered.get(_Known)
    if found is None:
        found = world.gathered[_Known] = _Known(world)
    return found


class _RcuOp(Op):
    marked = True

    def __init__(self) -> None:
        self.known = _known(running().world)

    def violate(self, memory: Memory, what: str, fatal: bool) -> None:
        task = memory.world.tasks[memory.task]
        memory.violate(Violation("suspicious-rcu-usage", f"{task} in {place(self.site)}: {what}", fatal))


class _ReadLock(_RcuOp):
    name = "rcu_read_lock"

    def __init__(self) -> None:
        super().__init__()
        self.focus = self.known.readers

    def run(self, memory: Memory) -> None:
        cell = self.known.readers
        task = memory.task
        if memory.held[task].any & cell.bit:
            depth = RcuState.nesting.element(self.known.state, task)
            memory.store_cell(depth, memory.load_cell(depth) + 1)
            return
        enter(memory, cell, task)

    def text(self, result: Value) -> str:
        return "enters an RCU reader"


class _ReadUnlock(_RcuOp):
    name = "rcu_read_unlock"
    releases = True

    def __init__(self) -> None:
        super().__init__()
        self.focus = self.known.readers

    def run(self, memory: Memory) -> None:
        known = self.known
        cell = known.readers
        task = memory.task
        if not memory.held[task].any & cell.bit:
            self.violate(memory, "rcu_read_unlock() outside a reader", True)
        depth = RcuState.nesting.element(known.state, task)
        if memory.peek(depth):
            memory.store_cell(depth, memory.load_cell(depth) - 1)
            return
        leave(memory, known.state, cell, task)

    def text(self, result: Value) -> str:
        return "leaves the RCU reader"


class _GracePeriod(_RcuOp):
    """Wait until the grace period of the running task is over."""

    name = "grace_period"

    def run(self, memory: Memory) -> Value:
        return None if over(memory, self.known.state, self.known.readers) else BLOCK

    def text(self, result: Value) -> str:
        return "the grace period is over: all readers that it waited for have left"


class _Synchronize(_RcuOp):
    """Begin a grace period for the running task; is there anybody to wait for?"""

    name = "synchronize_rcu"

    def run(self, memory: Memory) -> bool:
        known = self.known
        if memory.held[memory.task].any & known.readers.bit:
            self.violate(memory, "synchronize_rcu() in a reader waits for itself", True)
        may_sleep(memory, self.site)
        return begin(memory, known.state, known.readers, memory.task)

    def text(self, result: Value) -> str:
        return f"begins a grace period{', and waits for the readers that are inside' if result else ': no readers'}"


class _CallRcu(_RcuOp):
    name = "call_rcu"

    def __init__(self, function: Callable[..., Any], arguments: tuple[Value, ...]) -> None:
        super().__init__()
        self.function = function
        self.arguments = arguments
        self.head = f"{function.__name__}({', '.join(map(show, arguments))})"
        self.queued = _head(self.known.state, self.head, arguments)

    def run(self, memory: Memory) -> None:
        known = self.known
        queued = memory.load_cell(self.queued)
        if queued & 1:
            self.violate(memory, f"{self.head} is queued again before it has run", True)
        memory.store_cell(self.queued, queued + 1)
        times = queued >> 1
        task = intern_task(memory.world, f"rcu:{self.head}#{times}" if times else f"rcu:{self.head}")
        memory.commute_cell(known.callbacks, memory.peek(known.callbacks) | task.bit)
        begin(memory, known.state, known.readers, task.index)
        before = RcuState.latest.element(known.state, memory.task)
        memory.spawned.append((task, _callback, (memory.peek(before), self.head, self.function, *self.arguments)))
        memory.set(before, task)
        memory.order(task, release=True)

    def text(self, result: Value) -> str:
        return f"queues {self.head}, to run after a grace period"


class _Invoke(_GracePeriod):
    """The callback begins: those queued before it have run, its grace period is over, and it may be queued again."""

    def __init__(self, before: Task | None, head: str, eager: bool, arguments: tuple[Value, ...]) -> None:
        super().__init__()
        self.before = before
        self.eager = eager
        self.queued = _head(self.known.state, head, arguments)

    def run(self, memory: Memory) -> Value:
        if self.before is not None and not memory.load(self.before, Task.done):
            return BLOCK
        if super().run(memory) is BLOCK:
            return BLOCK
        if self.before is not None:
            memory.order(self.before, acquire=True)
        memory.store_cell(self.queued, memory.load_cell(self.queued) + 1)
        memory.hold(self.known.softirq, False)
        return None


class _Invoked(_RcuOp):
    """The callback has returned: rcu_barrier() need not wait for it any more."""

    releases = True
    name = "rcu_callback_end"

    def __init__(self) -> None:
        super().__init__()
        self.focus = self.known.callbacks

    def run(self, memory: Memory) -> None:
        known = self.known
        memory.commute_cell(known.callbacks, memory.peek(known.callbacks) & ~(1 << memory.task))
        memory.drop(known.softirq)

    def text(self, result: Value) -> str:
        return "the RCU callback has run"


def _callback(before: Task | None, head: str, function: Callable[..., Any], *arguments: Value) -> None:
    perform(_Invoke(before, head, getattr(function, "frees_only", False), arguments))
    function(*arguments)
    perform(_Invoked())


class _Outstanding(_RcuOp):
    """The callbacks that are queued now, as the bits of their tasks."""

    name = "rcu_barrier"

    def run(self, memory: Memory) -> Value:
        callbacks = self.known.callbacks
        may_sleep(memory, self.site)
        memory.store_cell(callbacks, memory.peek(callbacks))
        memory.order((self.known.softirq, "shared"), acquire=True)
        return memory.peek(callbacks)

    def text(self, result: Value) -> str:
        return f"waits for {result.bit_count()} RCU callbacks"


class _Held(_RcuOp):
    marked = False
    name = "rcu_read_lock_held"

    def run(self, memory: Memory) -> bool:
        return bool(memory.held[memory.task].any & self.known.readers.bit)

    def text(self, result: Value) -> str:
        return f"is {'' if result else 'not '}in an RCU reader"


class Dereference(_RcuOp):
    """Read a pointer in a reader, or on condition."""

    name = "rcu_dereference"

    def __init__(self, cell: Cell, condition: bool) -> None:
        super().__init__()
        self.cell = self.focus = cell
        self.condition = condition
        self.readers = self.known.readers

    def run(self, memory: Memory) -> Value:
        memory.exercise("suspicious-rcu-usage")
        if not self.condition and not memory.held[memory.task].any & self.readers.bit:
            self.violate(memory, f"{self.cell.label} is dereferenced without protection", False)
        memory.order(self.cell, acquire=True)
        return memory.load_cell(self.cell)

    def text(self, result: Value) -> str:
        return f"{self.cell.label} == {show(result)}"


class _Protected(Dereference):
    marked = False
    name = "rcu_dereference_protected"

    def run(self, memory: Memory) -> Value:
        memory.exercise("suspicious-rcu-usage")
        if not self.condition:
            self.violate(memory, f"{self.cell.label} is dereferenced without the lock that protects it", False)
        return memory.load_cell(self.cell, True)


class _Assign(_RcuOp):
    name = "rcu_assign_pointer"

    def __init__(self, cell: Cell, value: Value) -> None:
        super().__init__()
        self.cell = self.focus = cell
        self.value = value

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.cell, self.value)
        memory.order(self.cell, release=True)

    def text(self, result: Value) -> str:
        return f"{self.cell.label} = {show(self.value)} (published)"


def frees_only(function: Callable[P, R]) -> Callable[P, R]:
    """Declare that a callback does nothing but free objects; a search need not try when exactly it runs."""
    function.frees_only = True  # type: ignore[attr-defined]
    return function


def rcu_read_lock() -> None:
    """Enter a read-side critical section; they nest, and never wait."""
    perform(_ReadLock())


def rcu_read_unlock() -> None:
    """Leave the read-side critical section; nothing that was reached in the outermost one may be used after."""
    perform(_ReadUnlock())


def rcu_read_lock_held() -> bool:
    """Is the running task in a read-side critical section?"""
    return bool(perform(_Held()))


def rcu_dereference(obj: Object, field: Field[T], condition: bool = False) -> T:
    """Read an RCU pointer to follow it: in a reader, or where `condition` says that a lock protects it.

    A marked read. What was written before the pointer was published is visible through it.
    """
    return cast("T", perform(Dereference(field.cell(obj), condition)))


def rcu_dereference_protected(obj: Object, field: Field[T], condition: bool) -> T:
    """Read an RCU pointer that cannot change, because of the lock that `condition` asserts. A plain read."""
    return cast("T", perform(_Protected(field.cell(obj), condition)))


def rcu_assign_pointer(obj: Object, field: Field[T], value: T) -> None:
    """Publish a pointer: whoever follows it sees what was written before. A marked write."""
    cell = field.cell(obj)
    perform(_Assign(cell, canonical(value, cell.label)))


def call_rcu(function: Callable[..., Any], *arguments: Value) -> None:
    """Run `function(*arguments)` in a task of its own after a grace period; does not wait.

    The pair of function and arguments stands for the rcu_head: queueing it twice before it has run is a violation.
    Allowed in any context, in a reader too (the grace period then waits for the caller as well).
    """
    canonical((function, arguments), "call_rcu()")
    perform(_CallRcu(function, arguments))


@routine
def synchronize_rcu() -> None:
    """Wait for a grace period: until all readers that are inside now have left. Sleeps; not in a reader."""
    if perform(_Synchronize()):
        perform(_GracePeriod())


@routine
def rcu_barrier() -> None:
    """Wait until all callbacks that were queued before have run. Sleeps."""
    callbacks = perform(_Outstanding())
    if callbacks:
        join_all(callbacks)
