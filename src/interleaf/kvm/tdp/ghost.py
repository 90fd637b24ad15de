"""Ghost state of the TDP MMU: what the model remembers so that it can check properties.

No kernel has this state, and no kernel code may decide anything by it. It lives in cells like everything else, so
that the search sees who depends on it, and goes away with the object that it is about. It is read with
`Memory.look` and written with `note`, either in the operation that changes the real thing, or in an operation that
is no scheduling point, which is one indivisible action with the operation before it.
"""

from __future__ import annotations

from typing import TypeVar

from interleaf.kvm.kvm_host import Kvm, KvmMmuPage
from interleaf.runtime import Array, Memory, Object, Plain, Task, Value
from interleaf.runtime.cells import Cell

T = TypeVar("T")

Holder = str
"""Who has a reference on a root: the name of a task, or one of those below."""

VCPU: Holder = "a vCPU"
"""Whichever vCPU has the root loaded: it may be loaded by one task and put by another."""
TDP_MMU: Holder = "the TDP MMU"
"""The TDP MMU itself (v6.4 on), until it hands its reference to whoever zaps the root."""
WORK: Holder = "the work queue"
"""A work item that is queued to zap the root (v5.18 to v6.5)."""


def note(memory: Memory, cell: Cell, value: Value) -> None:
    """Inside an operation: write ghost state. As `Memory.look`, it is no access; the search sees that the operation
    has an effect there."""
    memory.note(cell, value)


def _of(owner: type[Object], name: str, default: T) -> Plain[T]:
    field = Plain(default)
    field.__set_name__(owner, name)
    return field


frozen_by: Array[Task | None] = Array(None)
"""Of a table, by index: the task that froze the entry."""
frozen_by.__set_name__(KvmMmuPage, "frozen_by")

possible: Plain[frozenset[KvmMmuPage]] = _of(Kvm, "possible", frozenset())
"""Of a VM: the tables that stand for a disallowed huge page which could be mapped otherwise."""

holders: Plain[tuple[Holder, ...]] = _of(KvmMmuPage, "holders", ())
"""Of a root: who has a reference on it, sorted, once for each reference."""

zapped = _of(KvmMmuPage, "zapped", False)
"""Of an invalid root: has its zapper passed over all of it?"""

born: Plain[int | None] = _of(KvmMmuPage, "born", None)
"""Of a root: how many invalidations there had been when it was made."""

died = _of(KvmMmuPage, "died", 0)
"""Of an invalid root: how many invalidations there had been, with the one that made it invalid."""

invalidations = _of(Kvm, "invalidations", 0)
"""Of a VM: how often all roots have been invalidated."""

pages = _of(Kvm, "pages", 0)
"""Of a VM: how many tables below roots are linked or being freed (the kernel counts them in `tdp_mmu_pages`)."""

owed: Plain[tuple[KvmMmuPage, ...]] = _of(Task, "owed", ())
"""Of a task that walks the roots: those that were valid when it began and that it has not visited yet."""

range_zaps: Plain[tuple[tuple[int, int], ...]] = _of(Kvm, "range_zaps", ())
"""Of a VM: the ranges of gfns that were zapped because what they must be mapped with has changed, oldest first."""

looked_up = _of(Task, "looked_up", 0)
"""Of a task in a page fault: how many of these had begun when it began to look up what to map."""

torn_down: Plain[int | None] = _of(Task, "torn_down", None)
"""Of a task inside the put of a vCPU's reference on an invalid root: how many SPTEs it has zapped there."""

must_not_yield = _of(Task, "must_not_yield", False)
"""Of a task: is it in a notifier that must not sleep, and so not give mmu_lock up on the way?"""
