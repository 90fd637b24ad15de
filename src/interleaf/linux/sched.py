"""Sleeping, waking, and giving up the CPU (kernel/sched/core.c, v6.12).

A task that is going to sleep first says so with set_current_state(), then looks whether it still has a reason to,
and then calls schedule(), which returns once somebody has made the task running again. So a wake-up between the
look and schedule() is not lost; one before set_current_state() is.

The scheduler may run any task at any scheduling point anyway, so cond_resched() adds no behaviour of its own:
what remains of it is the rule that it must not be called in atomic context.
"""

from __future__ import annotations

from collections.abc import Iterator

from interleaf.runtime import BLOCK, Array, Memory, Object, Task, choose, join
from interleaf.runtime.carrier import Op, perform, running
from interleaf.runtime.cells import Cell
from interleaf.runtime.objects import singleton
from interleaf.runtime.values import Value

from .lockdep import might_sleep

TASK_RUNNING, TASK_INTERRUPTIBLE, TASK_UNINTERRUPTIBLE = 0, 1, 2
"""States of a task. No signals are modelled, so both ways to sleep are alike."""


class SchedState(Object):
    """The state of every task, by its index."""

    state = Array(TASK_RUNNING)


def state_cell(task: int) -> Cell:
    """The cell of a task's state, by the task's index."""
    return SchedState.state.element(singleton(running().world, SchedState), task)


def bits(mask: int) -> Iterator[int]:
    """The positions of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _SetState(Op):
    marked = True
    name = "set_current_state"

    def __init__(self, state: int) -> None:
        self.cell = self.focus = state_cell(running().task.index)
        self.state = state

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.cell, self.state)

    def text(self, result: Value) -> str:
        return "is going to sleep" if self.state else "stays awake"


class _Schedule(Op):
    marked = True
    name = "schedule"

    def __init__(self) -> None:
        self.cell = self.focus = state_cell(running().task.index)

    def run(self, memory: Memory) -> Value:
        if memory.load_cell(self.cell) != TASK_RUNNING:
            return BLOCK
        memory.order(self.cell, acquire=True)
        return None

    def text(self, result: Value) -> str:
        return "is awake"


class _WakeUp(Op):
    marked = True
    name = "wake_up_process"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.cell = self.focus = state_cell(task.index)

    def run(self, memory: Memory) -> bool:
        return wake(memory, self.cell)

    def text(self, result: Value) -> str:
        return f"wakes {self.task}" if result else f"finds {self.task} awake"


def wake(memory: Memory, cell: Cell) -> bool:
    """Make the task whose state is `cell` running; was it not?"""
    asleep = bool(memory.load_cell(cell) != TASK_RUNNING)
    if asleep:
        memory.store_cell(cell, TASK_RUNNING)
    memory.order(cell, release=True)
    return asleep


def join_all(tasks: int) -> None:
    """Wait until the tasks whose bits are set in `tasks` have ended."""
    known = running().world.tasks
    join(*[known[index] for index in bits(tasks)])


def set_current_state(state: int) -> None:
    """Say that the running task is going to sleep, or that it stays awake after all (TASK_RUNNING)."""
    perform(_SetState(state))


def schedule() -> None:
    """Sleep until the running task's state is TASK_RUNNING. Not in atomic context."""
    might_sleep()
    perform(_Schedule())


def wake_up_process(task: Task) -> bool:
    """Make `task` running; was it asleep, or about to be?"""
    return bool(perform(_WakeUp(task)))


def need_resched() -> bool:
    """Does the scheduler want the CPU back? A choice of the environment: both answers are explored."""
    return bool(choose(2, "need_resched"))


def cond_resched() -> None:
    """Let others run; not under a spinlock or rwlock, nor in an RCU reader."""
    might_sleep()
