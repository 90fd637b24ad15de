"""Wait queues (include/linux/wait.h, kernel/sched/wait.c, v6.12).

wait_event() sleeps until a condition is true; whoever may have made it true must call wake_up(). The condition is
looked at again after the task has put itself on the queue, so a wake_up() that comes after the change is never
lost; a change without a wake_up() leaves the waiter asleep, which a search reports as a deadlock.
"""

from __future__ import annotations

from collections.abc import Callable

from interleaf.runtime import Marked, Memory, Object, checkpoint, routine
from interleaf.runtime.carrier import Op, perform, running
from interleaf.runtime.objects import singleton
from interleaf.runtime.values import Value

from .lockdep import might_sleep
from .sched import TASK_RUNNING, TASK_UNINTERRUPTIBLE, SchedState, bits, schedule, state_cell, wake


class wait_queue_head_t(Object):
    """A queue of sleeping tasks, as the bits of their indices. All zero is empty."""

    waiters = Marked(0)


class _QueueOp(Op):
    marked = True

    def __init__(self, queue: wait_queue_head_t) -> None:
        self.cell = wait_queue_head_t.waiters.cell(queue)
        self.state = state_cell(running().task.index)


class _Prepare(_QueueOp):
    name = "prepare_to_wait"

    def run(self, memory: Memory) -> None:
        memory.order(self.cell, acquire=True)
        memory.store_cell(self.cell, memory.load_cell(self.cell) | 1 << memory.task)
        memory.store_cell(self.state, TASK_UNINTERRUPTIBLE)
        memory.order(self.cell, release=True)

    def text(self, result: Value) -> str:
        return f"queues itself on {self.cell.owner}"


class _Finish(_QueueOp):
    name = "finish_wait"

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.cell, memory.load_cell(self.cell) & ~(1 << memory.task))
        memory.store_cell(self.state, TASK_RUNNING)

    def text(self, result: Value) -> str:
        return f"leaves {self.cell.owner}"


class _WakeUp(_QueueOp):
    name = "wake_up"

    def run(self, memory: Memory) -> None:
        memory.order(self.cell, acquire=True)
        waiters = memory.load_cell(self.cell)
        if waiters:
            memory.store_cell(self.cell, 0)
            known = singleton(memory.world, SchedState)
            for task in bits(waiters):
                wake(memory, SchedState.state.element(known, task))
        memory.order(self.cell, release=True)

    def text(self, result: Value) -> str:
        return f"wakes the waiters of {self.cell.owner}"


@routine
def wait_event(queue: wait_queue_head_t, condition: Callable[..., bool], *arguments: Value) -> None:
    """Sleep until `condition(*arguments)` is true. It is model code, and may be asked any number of times."""
    might_sleep()
    if condition(*arguments):
        return
    while True:
        checkpoint()
        perform(_Prepare(queue))
        if condition(*arguments):
            break
        schedule()
    perform(_Finish(queue))


def wake_up(queue: wait_queue_head_t) -> None:
    """Wake everybody on the queue, so that they look at their conditions again."""
    perform(_WakeUp(queue))
