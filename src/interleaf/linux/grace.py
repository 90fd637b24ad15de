"""Readers and grace periods, as RCU and SRCU share them.

A reader is a number, with a bit in `readers` while it is inside. A waiter is a task; when its grace period begins, it
is entered at each reader that is inside, and each reader strikes out everybody who is entered at it when it leaves. So
a grace period waits for exactly the readers that were there when it began, and the state holds only readers and
waiters that remain. Readers are independent of each other; whoever begins a grace period is not of any of them.

Order (Documentation/RCU/Design/Requirements, "grace-period guarantee"): a reader that leaves comes before whatever
follows the grace period that waited for it, and what precedes a grace period comes before every later reader.
"""

from __future__ import annotations

from interleaf.runtime import Array, Marked, Memory
from interleaf.runtime.cells import Cell

from .lockdep import lockdep_map
from .sched import bits


class Readers(lockdep_map):
    """The state of one kind of RCU."""

    readers = Marked(0)
    """Who is inside."""
    waiters = Array(0)
    """Per reader: the tasks that wait for it."""
    awaited = Array(0)
    """Per waiting task: the readers that were inside when its grace period began."""


def enter(memory: Memory, readers: Cell, reader: int) -> None:
    """`reader` is inside from here on."""
    memory.commute_cell(readers, memory.peek(readers) | 1 << reader)
    memory.hold(readers, False)


def leave(memory: Memory, state: Readers, readers: Cell, reader: int) -> None:
    """`reader` is not inside any more, and nobody waits for it."""
    memory.commute_cell(readers, memory.peek(readers) & ~(1 << reader))
    waiters = Readers.waiters.element(state, reader)
    if memory.peek(waiters):
        # beginning a grace period writes `readers`, so whether there are waiters is part of the footprint already
        memory.store_cell(waiters, 0)
    memory.drop(readers)


def begin(memory: Memory, state: Readers, readers: Cell, waiter: int) -> bool:
    """A grace period begins, for which the task `waiter` is going to wait. Is there anybody to wait for?"""
    inside: int = memory.peek(readers)
    memory.store_cell(readers, inside)
    memory.order(readers, release=True)
    memory.order((readers, "shared"), acquire=True)
    for reader in bits(inside):
        cell = Readers.waiters.element(state, reader)
        memory.store_cell(cell, memory.load_cell(cell) | 1 << waiter)
    memory.set(Readers.awaited.element(state, waiter), inside)
    return inside != 0


def over(memory: Memory, state: Readers, readers: Cell) -> bool:
    """Is the grace period of the running task over? If so, it is forgotten."""
    mine = 1 << memory.task
    awaited = Readers.awaited.element(state, memory.task)
    for reader in bits(memory.peek(awaited)):
        if memory.load_cell(Readers.waiters.element(state, reader)) & mine:
            return False
    memory.set(awaited, 0)
    memory.order((readers, "shared"), acquire=True)
    return True
