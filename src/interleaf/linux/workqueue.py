"""Work queues (kernel/workqueue.c, Documentation/core-api/workqueue.rst, v6.12).

A work item is on its queue at most once: queue_work() of one that is pending does nothing and returns False. It
stops being pending when its function begins, so it may queue itself again; its function never runs twice at the
same time. Each run is a task of its own, and may sleep.

flush_workqueue() waits for the runs that were queued before it, and for no others. destroy_workqueue() waits until
nothing is left, what the work items queue meanwhile included; anybody else who still queues breaks the rule
`workqueue`. Lockdep knows the queue as something that its work items hold and that a flush waits for: a flush under
a lock that some work item takes is reported, whether or not it deadlocks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interleaf.runtime import BLOCK, Array, Const, Marked, Memory, Object, Plain, Violation, free, new, routine
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.operations import intern_task
from interleaf.runtime.values import Value

from .lockdep import EXCLUSIVE, lock_acquire, lock_sync, lockdep_map, may_sleep, place
from .sched import join_all


class work_struct(Object):
    """A work item; INIT_WORK() it before use."""

    func = Plain[Any](None)
    pending = Marked(False)
    runs = Marked(0)
    """How often it was put on a queue; names its runs."""


class workqueue_struct(lockdep_map):
    """A work queue without a limit on how many of its items run at the same time."""

    freeable = True
    shared = False
    label = Const(str, "")
    outstanding = Marked(0)
    """Runs that were queued and have not ended, as the bits of their tasks."""
    running = Array(False)
    """Per work item: is its function running?"""
    draining = Marked(False)

    @property
    def lock_class(self) -> str:
        return f"work queue {self.label}"


class _WorkqueueOp(Op):
    marked = True

    def __init__(self, wq: workqueue_struct) -> None:
        self.wq = wq
        self.cell = workqueue_struct.outstanding.cell(wq)

    def violate(self, memory: Memory, message: str, fatal: bool) -> None:
        task = memory.world.tasks[memory.task]
        memory.violate(Violation("workqueue", f"{task} in {place(self.site)}: {message}", fatal, self.wq.name))


class _Queue(_WorkqueueOp):
    name = "queue_work"

    def __init__(self, wq: workqueue_struct, work: work_struct) -> None:
        super().__init__(wq)
        self.work = work
        self.pending = work_struct.pending.cell(work)
        self.runs = work_struct.runs.cell(work)

    def run(self, memory: Memory) -> bool:
        memory.exercise("workqueue")
        memory.order(self.pending, acquire=True)
        already = memory.load_cell(self.pending)
        memory.order(self.pending, release=True)
        if already:
            return False
        memory.store_cell(self.pending, True)
        if memory.load(self.work, work_struct.func) is None:
            self.violate(memory, f"{self.work} is queued without INIT_WORK()", True)
        if memory.load(self.wq, workqueue_struct.draining) and not memory.held[memory.task].any & self.cell.bit:
            self.violate(
                memory, f"{self.work} is queued on {self.wq.label}, which is being drained; it never runs", False
            )
            return True
        runs = memory.load_cell(self.runs)
        memory.store_cell(self.runs, runs + 1)
        task = intern_task(memory.world, f"work:{self.work}#{runs}" if runs else f"work:{self.work}")
        memory.commute_cell(self.cell, memory.peek(self.cell) | task.bit)
        memory.spawned.append((task, _process_one_work, (self.wq, self.work)))
        memory.order(task, release=True)
        return True

    def text(self, result: Value) -> str:
        return f"queues {self.work}" if result else f"does not queue {self.work}: it is pending already"


class _Begin(_WorkqueueOp):
    """The work item's function begins, and the item may be queued again."""

    name = "process_one_work"

    def __init__(self, wq: workqueue_struct, work: work_struct) -> None:
        super().__init__(wq)
        self.work = work
        self.pending = work_struct.pending.cell(work)
        self.running = workqueue_struct.running.element(wq, work)

    def run(self, memory: Memory) -> Value:
        if memory.load_cell(self.running):
            return BLOCK
        memory.store_cell(self.running, True)
        memory.order(self.running, acquire=True)
        memory.order(self.pending, acquire=True)
        memory.store_cell(self.pending, False)
        memory.order(self.pending, release=True)
        lock_acquire(memory, self.cell, EXCLUSIVE, self.site)
        memory.hold(self.cell, False)
        return memory.load(self.work, work_struct.func)

    def text(self, result: Value) -> str:
        return f"begins to work on {self.work}"


class _End(_WorkqueueOp):
    """The work item's function has returned; the item itself may be freed by now."""

    name = "process_one_work"
    releases = True

    def __init__(self, wq: workqueue_struct, work: work_struct) -> None:
        super().__init__(wq)
        self.focus = self.cell
        self.work = work
        self.running = workqueue_struct.running.element(wq, work)

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.running, False)
        memory.order(self.running, release=True)
        memory.commute_cell(self.cell, memory.peek(self.cell) & ~(1 << memory.task))
        memory.drop(self.cell)

    def text(self, result: Value) -> str:
        return f"is done with {self.work}"


class _Outstanding(_WorkqueueOp):
    """The runs that are outstanding now, as the bits of their tasks."""

    name = "flush_workqueue"

    def run(self, memory: Memory) -> Value:
        lock_sync(memory, self.cell, self.site)
        may_sleep(memory, self.site)
        runs = memory.peek(self.cell)
        memory.store_cell(self.cell, runs)
        memory.order((self.cell, "shared"), acquire=True)
        return runs

    def text(self, result: Value) -> str:
        return f"waits for {result.bit_count()} work items of {self.wq.label}"


def _process_one_work(wq: workqueue_struct, work: work_struct) -> None:
    function = perform(_Begin(wq, work))
    function(work)
    perform(_End(wq, work))


def alloc_workqueue(name: str) -> workqueue_struct:
    """Create a work queue; its name is its lock class."""
    return new(workqueue_struct, label=name)


def INIT_WORK(work: work_struct, func: Callable[[work_struct], object]) -> None:
    """Prepare a work item that will call `func(work)`; container_of() leads from there to what is around it."""
    work.func = func


def queue_work(wq: workqueue_struct, work: work_struct) -> bool:
    """Put a work item on the queue, unless it is pending already; did it? Never waits.

    In both cases a run of the item's function begins later that sees everything written before.
    """
    return bool(perform(_Queue(wq, work)))


@routine
def flush_workqueue(wq: workqueue_struct) -> None:
    """Wait until everything that was queued before has run. Sleeps; not in one of the queue's own work items."""
    runs = perform(_Outstanding(wq))
    if runs:
        join_all(runs)


@routine
def destroy_workqueue(wq: workqueue_struct) -> None:
    """Wait until nothing is queued or running, and free the queue. Sleeps. Nobody else may queue any more."""
    wq.draining = True
    while runs := perform(_Outstanding(wq)):
        join_all(runs)
    free(wq)
