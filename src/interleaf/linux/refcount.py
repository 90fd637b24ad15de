"""Reference counts that saturate instead of wrapping (include/linux/refcount.h, lib/refcount.c, v6.12).

A reference may only be taken by one who has one (or with refcount_inc_not_zero()), so an increment from zero is a
use-after-free in the making; as the kernel does, the model warns (`refcount`, not fatal) and sets the count to
REFCOUNT_SATURATED, from where it never moves again: memory leaks instead of being freed too early.

Order: increments order nothing; a decrement releases, and the one that reaches zero acquires, so that whoever
frees the object comes after everything that the others did with it.
"""

from __future__ import annotations

from typing import ClassVar

from interleaf.runtime import Marked, Memory, Object, Violation
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.objects import show
from interleaf.runtime.values import Value

from .lockdep import place

REFCOUNT_SATURATED = -0x4000_0000
"""INT_MIN / 2: as far from zero as can be, whichever way it is moved."""


class refcount_t(Object):
    """A reference count; set it with refcount_set() or at creation of the object around it."""

    refs = Marked(0)


class _Ref(Op):
    marked = True
    sign: ClassVar[str] = "+ 1"

    def __init__(self, r: refcount_t) -> None:
        self.cell = self.focus = refcount_t.refs.cell(r)

    def saturate(self, memory: Memory, why: str) -> None:
        owner = self.cell.owner
        memory.violate(Violation("refcount", f"{owner} in {place(self.site)}: {why}", False, owner.root.name))
        memory.store_cell(self.cell, REFCOUNT_SATURATED)

    def text(self, result: Value) -> str:
        outcome = "" if result is None else f", {'is 0 now' if result else 'is not 0'}"
        return f"{self.cell.owner} {self.sign}{outcome}"


class _Inc(_Ref):
    name = "refcount_inc"

    def run(self, memory: Memory) -> None:
        memory.exercise("refcount")
        old = memory.load_cell(self.cell)
        if old == 0:
            self.saturate(memory, "increment from 0; use after free")
        elif old < 0:
            self.saturate(memory, "saturated; leaks memory")
        else:
            memory.store_cell(self.cell, old + 1)


class _IncNotZero(_Ref):
    name = "refcount_inc_not_zero"

    def run(self, memory: Memory) -> bool:
        old = memory.load_cell(self.cell)
        if old == 0:
            return False
        memory.exercise("refcount")
        if old < 0:
            self.saturate(memory, "saturated; leaks memory")
        else:
            memory.store_cell(self.cell, old + 1)
        return True

    def text(self, result: Value) -> str:
        return f"{self.cell.owner} + 1" if result else f"{self.cell.owner} is 0, no reference taken"


class _DecAndTest(_Ref):
    name = "refcount_dec_and_test"
    sign = "- 1"

    def run(self, memory: Memory) -> bool:
        memory.exercise("refcount")
        old = memory.load_cell(self.cell)
        if old <= 0:
            self.saturate(memory, "underflow; use after free")
            return False
        memory.store_cell(self.cell, old - 1)
        memory.order(self.cell, acquire=old == 1, release=True)
        return bool(old == 1)


class _Dec(_Ref):
    name = "refcount_dec"
    sign = "- 1"

    def run(self, memory: Memory) -> None:
        memory.exercise("refcount")
        old = memory.load_cell(self.cell)
        if old <= 0:
            self.saturate(memory, "underflow; use after free")
        elif old == 1:
            self.saturate(memory, "decrement hit 0; leaks memory")
        else:
            memory.store_cell(self.cell, old - 1)
            memory.order(self.cell, release=True)


class _Set(_Ref):
    name = "refcount_set"

    def __init__(self, r: refcount_t, n: int) -> None:
        super().__init__(r)
        self.n = n

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.cell, self.n)

    def text(self, result: Value) -> str:
        return f"{self.cell.owner} = {self.n}"


class _Get(_Ref):
    name = "refcount_read"

    def run(self, memory: Memory) -> Value:
        return memory.load_cell(self.cell)

    def text(self, result: Value) -> str:
        return f"{self.cell.owner} == {show(result)}"


def refcount_set(r: refcount_t, n: int) -> None:
    """Set the count, for an object that nobody else can see yet."""
    perform(_Set(r, n))


def refcount_read(r: refcount_t) -> int:
    """The count now."""
    return int(perform(_Get(r)))


def refcount_inc(r: refcount_t) -> None:
    """Take a reference; the caller must have one already."""
    perform(_Inc(r))


def refcount_inc_not_zero(r: refcount_t) -> bool:
    """Take a reference unless the count is 0; did it?"""
    return bool(perform(_IncNotZero(r)))


def refcount_dec_and_test(r: refcount_t) -> bool:
    """Give a reference back; was it the last?"""
    return bool(perform(_DecAndTest(r)))


def refcount_dec(r: refcount_t) -> None:
    """Give a reference back that cannot be the last: reaching 0 is a violation."""
    perform(_Dec(r))
