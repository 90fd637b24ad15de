"""Completions (kernel/sched/completion.c): wait until something has happened that happens once, or n times.

complete() lets one waiter go, present or future; complete_all() lets all go until reinit_completion().
"""

from __future__ import annotations

from interleaf.runtime import BLOCK, Marked, Memory, Object
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.values import Value

from .lockdep import might_sleep

COMPLETED_FOR_ALL = 0xFFFF_FFFF
"""The value of `done` after complete_all() (UINT_MAX)."""


class completion(Object):
    """All zero is not completed."""

    done = Marked(0)


class _Completion(Op):
    marked = True

    def __init__(self, x: completion) -> None:
        self.cell = self.focus = completion.done.cell(x)


class _Complete(_Completion):
    name = "complete"

    def run(self, memory: Memory) -> None:
        done = memory.load_cell(self.cell)
        if done != COMPLETED_FOR_ALL:
            memory.store_cell(self.cell, done + 1)
        memory.order(self.cell, release=True)

    def text(self, result: Value) -> str:
        return f"completes {self.cell.owner}"


class _CompleteAll(_Completion):
    name = "complete_all"

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.cell, COMPLETED_FOR_ALL)
        memory.order(self.cell, release=True)

    def text(self, result: Value) -> str:
        return f"completes {self.cell.owner} for all"


class _Wait(_Completion):
    name = "wait_for_completion"

    def run(self, memory: Memory) -> Value:
        done = memory.load_cell(self.cell)
        if not done:
            return BLOCK
        memory.order(self.cell, acquire=True)
        if done != COMPLETED_FOR_ALL:
            memory.store_cell(self.cell, done - 1)
        return None

    def text(self, result: Value) -> str:
        return f"{self.cell.owner} is completed"


def complete(x: completion) -> None:
    """Let one waiter go."""
    perform(_Complete(x))


def complete_all(x: completion) -> None:
    """Let all waiters go, now and later."""
    perform(_CompleteAll(x))


def reinit_completion(x: completion) -> None:
    """Make it not completed again. Nobody may be waiting or completing."""
    x.done = 0


def wait_for_completion(x: completion) -> None:
    """Wait for a complete() that nobody else has used up. Sleeps."""
    might_sleep()
    perform(_Wait(x))
