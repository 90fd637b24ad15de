"""Kernel threads (kernel/kthread.c, v6.12).

A thread sleeps from its creation until the first wake_up_process(). kthread_stop() asks it to end, wakes it and
waits for its end; a thread that is stopped before it ran never calls its function. A thread that sleeps must look
at kthread_should_stop() between set_current_state() and schedule(), or it may sleep for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from interleaf.runtime import Array, Memory, Object, Task, canonical, join, routine
from interleaf.runtime.carrier import Op, perform, running
from interleaf.runtime.objects import singleton
from interleaf.runtime.operations import intern_task
from interleaf.runtime.values import Value

from .lockdep import might_sleep
from .sched import TASK_UNINTERRUPTIBLE, schedule, state_cell, wake_up_process


class KthreadState(Object):
    """KTHREAD_SHOULD_STOP of every thread, by the index of its task."""

    should_stop = Array(False)


class _Create(Op):
    name = "kthread_create"

    def __init__(self, function: Callable[..., Any], arguments: tuple[Value, ...], label: str) -> None:
        self.function = function
        self.arguments = arguments
        self.task = intern_task(running().world, label)
        self.state = state_cell(self.task.index)

    def run(self, memory: Memory) -> Task:
        memory.set(self.state, TASK_UNINTERRUPTIBLE)
        memory.spawned.append((self.task, _kthread, (self.function, *self.arguments)))
        memory.order(self.task, release=True)
        return self.task

    def text(self, result: Value) -> str:
        return f"creates the thread {result}"


class _ShouldStop(Op):
    marked = True

    def __init__(self, task: Task) -> None:
        self.task = task
        self.cell = self.focus = KthreadState.should_stop.element(singleton(running().world, KthreadState), task.index)


class _Read(_ShouldStop):
    name = "kthread_should_stop"

    def run(self, memory: Memory) -> Value:
        return memory.load_cell(self.cell)

    def text(self, result: Value) -> str:
        return f"should {'' if result else 'not '}stop"


class _Set(_ShouldStop):
    name = "kthread_stop"

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.cell, True)

    def text(self, result: Value) -> str:
        return f"asks {self.task} to stop"


def _kthread(function: Callable[..., Any], *arguments: Value) -> None:
    schedule()
    if not kthread_should_stop():
        function(*arguments)


def kthread_create(function: Callable[..., Any], *arguments: Value, name: str) -> Task:
    """Create a thread that calls `function(*arguments)` once it is woken; its name must be unique."""
    canonical((function, arguments), f"kthread_create() of {name}")
    return cast("Task", perform(_Create(function, arguments, name)))


def kthread_run(function: Callable[..., Any], *arguments: Value, name: str) -> Task:
    """Create a thread and wake it."""
    task = kthread_create(function, *arguments, name=name)
    wake_up_process(task)
    return task


def kthread_should_stop() -> bool:
    """Has somebody called kthread_stop() for the running thread?"""
    return bool(perform(_Read(running().task)))


@routine
def kthread_stop(task: Task) -> None:
    """Ask a thread to end, wake it, and wait until it has ended. Sleeps."""
    might_sleep()
    perform(_Set(task))
    wake_up_process(task)
    join(task)
