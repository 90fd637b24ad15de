"""Marked accesses and atomic operations on fields, and atomic_t (Documentation/atomic_t.txt, memory-barriers.txt).

* READ_ONCE, WRITE_ONCE: one access, no order with others.
* smp_load_acquire, smp_store_release: an acquire sees what was written before the release that it reads from.
* xchg, cmpxchg, fetch_*, and the atomic_t operations that return a value: fully ordered; a failed cmpxchg is no
  more than a READ_ONCE. atomic_inc(), atomic_set() and the like, which return nothing, order nothing.

Order matters to the detection of data races only; the execution itself is sequentially consistent.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar, cast

from interleaf.runtime import Marked, Memory, Object, canonical, read_marked, write_marked
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.cells import Cell
from interleaf.runtime.objects import Field, show
from interleaf.runtime.values import Value

T = TypeVar("T")

READ_ONCE = read_marked
"""READ_ONCE(obj, Class.field): read it in one access."""
WRITE_ONCE = write_marked
"""WRITE_ONCE(obj, Class.field, value): write it in one access."""


class _Access(Op):
    """One marked access to one cell."""

    marked = True

    def __init__(self, cell: Cell, value: Value = None) -> None:
        self.cell = self.focus = cell
        self.value = value


class _LoadAcquire(_Access):
    name = "smp_load_acquire"

    def run(self, memory: Memory) -> Value:
        memory.order(self.cell, acquire=True)
        return memory.load_cell(self.cell)

    def text(self, result: Value) -> str:
        return f"{self.cell.label} == {show(result)} (acquire)"


class _StoreRelease(_Access):
    name = "smp_store_release"

    def run(self, memory: Memory) -> None:
        memory.store_cell(self.cell, self.value)
        memory.order(self.cell, release=True)

    def text(self, result: Value) -> str:
        return f"{self.cell.label} = {show(self.value)} (release)"


class _Xchg(_Access):
    name = "xchg"

    def run(self, memory: Memory) -> Value:
        memory.order(self.cell, acquire=True)
        old = memory.load_cell(self.cell)
        memory.store_cell(self.cell, self.value)
        memory.order(self.cell, release=True)
        return old

    def text(self, result: Value) -> str:
        return f"xchg {self.cell.label}: {show(result)} -> {show(self.value)}"


class _Cmpxchg(_Access):
    name = "cmpxchg"

    def __init__(self, cell: Cell, old: Value, value: Value) -> None:
        super().__init__(cell, value)
        self.old = old

    def run(self, memory: Memory) -> Value:
        found = memory.load_cell(self.cell)
        if found == self.old:
            memory.order(self.cell, acquire=True)
            memory.store_cell(self.cell, self.value)
            memory.order(self.cell, release=True)
        return found

    def text(self, result: Value) -> str:
        if result == self.old:
            return f"cmpxchg {self.cell.label}: {show(self.old)} -> {show(self.value)}"
        return f"cmpxchg {self.cell.label} fails: it is {show(result)}, not {show(self.old)}"


class _Rmw(_Access):
    """Read, compute, write: `value` is the operand, the result is the old value."""

    ordered: ClassVar[bool] = True
    sign: ClassVar[str] = "+="

    def compute(self, old: int) -> int:
        return wrap(old + int(self.value))

    def run(self, memory: Memory) -> Value:
        if not self.ordered:
            memory.store_cell(self.cell, self.compute(memory.load_cell(self.cell)))
            return None
        memory.order(self.cell, acquire=True)
        old = memory.load_cell(self.cell)
        memory.store_cell(self.cell, self.compute(old))
        memory.order(self.cell, release=True)
        return old

    def text(self, result: Value) -> str:
        was = f" (was {show(result)})" if self.ordered else ""
        return f"{self.cell.label} {self.sign} {show(self.value)}{was}"


class _FetchAdd(_Rmw):
    name = "fetch_add"

    def compute(self, old: int) -> int:
        return old + int(self.value)


class _FetchAnd(_Rmw):
    name = "fetch_and"
    sign = "&="

    def compute(self, old: int) -> int:
        return old & int(self.value)


class _FetchOr(_Rmw):
    name = "fetch_or"
    sign = "|="

    def compute(self, old: int) -> int:
        return old | int(self.value)


class _AtomicFetchAdd(_Rmw):
    name = "atomic_fetch_add"


class _AtomicAdd(_Rmw):
    name = "atomic_add"
    ordered = False


class _AtomicAddUnless(_Access):
    name = "atomic_inc_not_zero"

    def run(self, memory: Memory) -> bool:
        old = memory.load_cell(self.cell)
        if old == 0:
            return False
        memory.order(self.cell, acquire=True)
        memory.store_cell(self.cell, wrap(old + 1))
        memory.order(self.cell, release=True)
        return True

    def text(self, result: Value) -> str:
        return f"{self.cell.label} += 1" if result else f"{self.cell.label} is 0, and stays 0"


def wrap(value: int) -> int:
    """`value` as a 32-bit int with two's complement wrapping, as atomic_t defines it."""
    return (value + 0x8000_0000) % 0x1_0000_0000 - 0x8000_0000


def smp_load_acquire(obj: Object, field: Field[T]) -> T:
    """Read a field; what its last smp_store_release() came after is visible from here on."""
    return cast("T", perform(_LoadAcquire(field.cell(obj))))


def smp_store_release(obj: Object, field: Field[T], value: T) -> None:
    """Write a field; everything written before is visible to whoever reads it with acquire."""
    cell = field.cell(obj)
    perform(_StoreRelease(cell, canonical(value, cell.label)))


def xchg(obj: Object, field: Field[T], new: T) -> T:
    """Write `new` and return the old value, in one atomic operation."""
    cell = field.cell(obj)
    return cast("T", perform(_Xchg(cell, canonical(new, cell.label))))


def cmpxchg(obj: Object, field: Field[T], old: T, new: T) -> T:
    """Write `new` if the field is `old`, in one atomic operation; returns what it found (`old`: it succeeded)."""
    cell = field.cell(obj)
    return cast("T", perform(_Cmpxchg(cell, old, canonical(new, cell.label))))


def try_cmpxchg(obj: Object, field: Field[T], old: T, new: T) -> bool:
    """cmpxchg() that says whether it succeeded."""
    return bool(cmpxchg(obj, field, old, new) == old)


def fetch_add(obj: Object, field: Field[int], addend: int) -> int:
    """Add to a field atomically; returns the old value. The field is as wide as need be: it does not wrap."""
    return cast("int", perform(_FetchAdd(field.cell(obj), addend)))


def fetch_and(obj: Object, field: Field[int], mask: int) -> int:
    """Keep only the bits of `mask`, atomically; returns the old value (LOCK AND on a page-table entry)."""
    return cast("int", perform(_FetchAnd(field.cell(obj), mask)))


def fetch_or(obj: Object, field: Field[int], mask: int) -> int:
    """Set the bits of `mask`, atomically; returns the old value."""
    return cast("int", perform(_FetchOr(field.cell(obj), mask)))


class atomic_t(Object):
    """A 32-bit counter."""

    counter = Marked(0)


def _counter(v: atomic_t) -> Cell:
    return atomic_t.counter.cell(v)


def atomic_read(v: atomic_t) -> int:
    """The value, as READ_ONCE() would give it."""
    return v.counter


def atomic_set(v: atomic_t, value: int) -> None:
    """Set the value, as WRITE_ONCE() would."""
    v.counter = value


def atomic_add(addend: int, v: atomic_t) -> None:
    """Add, without ordering."""
    perform(_AtomicAdd(_counter(v), addend))


def atomic_sub(subtrahend: int, v: atomic_t) -> None:
    """Subtract, without ordering."""
    perform(_AtomicAdd(_counter(v), -subtrahend))


def atomic_inc(v: atomic_t) -> None:
    """Add 1, without ordering."""
    atomic_add(1, v)


def atomic_dec(v: atomic_t) -> None:
    """Subtract 1, without ordering."""
    atomic_sub(1, v)


def atomic_fetch_add(addend: int, v: atomic_t) -> int:
    """Add and return the old value, fully ordered."""
    return cast("int", perform(_AtomicFetchAdd(_counter(v), addend)))


def atomic_add_return(addend: int, v: atomic_t) -> int:
    """Add and return the new value, fully ordered."""
    return wrap(atomic_fetch_add(addend, v) + addend)


def atomic_sub_return(subtrahend: int, v: atomic_t) -> int:
    """Subtract and return the new value, fully ordered."""
    return atomic_add_return(-subtrahend, v)


def atomic_inc_return(v: atomic_t) -> int:
    """Add 1 and return the new value, fully ordered."""
    return atomic_add_return(1, v)


def atomic_dec_return(v: atomic_t) -> int:
    """Subtract 1 and return the new value, fully ordered."""
    return atomic_add_return(-1, v)


def atomic_dec_and_test(v: atomic_t) -> bool:
    """Subtract 1; is it 0 now? Fully ordered."""
    return atomic_add_return(-1, v) == 0


def atomic_inc_not_zero(v: atomic_t) -> bool:
    """Add 1 unless it is 0; did it? Fully ordered if so."""
    return bool(perform(_AtomicAddUnless(_counter(v))))


def atomic_xchg(v: atomic_t, new: int) -> int:
    """Set the value and return the old one, fully ordered."""
    return xchg(v, atomic_t.counter, new)


def atomic_cmpxchg(v: atomic_t, old: int, new: int) -> int:
    """Set the value if it is `old`; returns what it found, fully ordered on success."""
    return cmpxchg(v, atomic_t.counter, old, new)
