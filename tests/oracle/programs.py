"""Small concurrent programs as values, and the model code that runs them.

A program is a tree of statements: it can be printed, compared by its text and generated at random (`generate.py`).
`setup` makes it a program of the runtime: each statement calls the kernel's building blocks, every block of
statements is a routine with a call frame of its own, takes a number and returns one, and so a task's behaviour
depends on what it read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from interleaf.linux.atomic import cmpxchg, fetch_add
from interleaf.linux.mutex import mutex
from interleaf.linux.refcount import refcount_t
from interleaf.linux.rwlock import (
    rwlock_t,
)
from interleaf.linux.spinlock import spinlock_t
from interleaf.runtime import (
    Array,
    Embedded,
    Marked,
    Memory,
    Object,
    Plain,
    check,
    checkpoint,
    choose,
    join,
    new,
    operation,
    read_marked,
    routine,
    spawn,
    the,
    warn,
    write_marked,
)

MODULUS = 3
"""The number that a block passes on is 0, 1 or 2."""


class Thing(Object):
    """Something that can be freed."""

    freeable = True
    refs = Embedded(refcount_t)
    lock = Embedded(spinlock_t)
    value = Marked(0)
    plain = Plain(0)


class Shared(Object):
    """Everything that the tasks share."""

    x = Array(0)
    plain = Array(0)
    a = Embedded(spinlock_t)
    b = Embedded(spinlock_t)
    c = Embedded(spinlock_t)
    m = Embedded(mutex)
    v = Embedded(rwlock_t)
    w = Embedded(rwlock_t)
    thing: Marked[Thing | None] = Marked(None)


class Statement:
    """One statement; it never changes, so it may be passed about in model code as an object may."""

    _is_handle: ClassVar[bool] = True

    def run(self, number: int) -> int:
        """Do it; return the number to go on with."""
        raise NotImplementedError

    def __str__(self) -> str:
        inside = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(map(str, inside))})"


@dataclass(frozen=True, eq=False)
class Block(Statement):
    """Statements one after the other, in a call frame of their own."""

    statements: tuple[Statement, ...]

    def run(self, number: int) -> int:
        return block(self, number)

    def __str__(self) -> str:
        return "{" + "; ".join(map(str, self.statements)) + "}"


NOTHING = Block(())


@routine
def block(body: Block, number: int) -> int:
    for statement in body.statements:
        number = statement.run(number)
    return number % MODULUS


@dataclass(frozen=True, eq=False)
class Read(Statement):
    """READ_ONCE."""

    index: int

    def run(self, number: int) -> int:
        return read_marked(the(Shared), Shared.x[self.index])


@dataclass(frozen=True, eq=False)
class Write(Statement):
    """WRITE_ONCE of what was read, and a bit more."""

    index: int
    add: int

    def run(self, number: int) -> int:
        write_marked(the(Shared), Shared.x[self.index], (number + self.add) % MODULUS)
        return number


@dataclass(frozen=True, eq=False)
class Store(Statement):
    """WRITE_ONCE of a constant."""

    index: int
    value: int

    def run(self, number: int) -> int:
        write_marked(the(Shared), Shared.x[self.index], self.value)
        return number


@dataclass(frozen=True, eq=False)
class Cmpxchg(Statement):
    index: int
    old: int
    new: int

    def run(self, number: int) -> int:
        return cmpxchg(the(Shared), Shared.x[self.index], self.old, self.new)


@dataclass(frozen=True, eq=False)
class FetchAdd(Statement):
    index: int

    def run(self, number: int) -> int:
        return fetch_add(the(Shared), Shared.x[self.index], 1) % MODULUS


@dataclass(frozen=True, eq=False)
class Rotate(Statement):
    """The next number, after 2 again 0, in one operation and without a result."""

    index: int

    def run(self, number: int) -> int:
        rotate(the(Shared), self.index)
        return number


@operation()
def rotate(memory: Memory, shared: Shared, index: int) -> None:
    cell = Shared.x[index].cell(shared)
    memory.store_cell(cell, (memory.load_cell(cell) + 1) % MODULUS)


@dataclass(frozen=True, eq=False)
class PlainRead(Statement):
    index: int

    def run(self, number: int) -> int:
        return the(Shared).plain[self.index]


@dataclass(frozen=True, eq=False)
class PlainWrite(Statement):
    index: int
    add: int

    def run(self, number: int) -> int:
        the(Shared).plain[self.index] = (number + self.add) % MODULUS
        return number


@dataclass(frozen=True, eq=False)
class If(Statement):
    value: int
    then: Block
    otherwise: Block

    def run(self, number: int) -> int:
        return block(self.then if number == self.value else self.otherwise, number)


@dataclass(frozen=True, eq=False)
class Call(Statement):
    """A function of which one bit of the result is used."""

    body: Block

    def run(self, number: int) -> int:
        return call(self.body, number)


@routine
def call(body: Block, number: int) -> int:
    return int(block(body, number) == 1)


@dataclass(frozen=True, eq=False)
class Loop(Statement):
    """At most so many rounds, until one comes out as 1."""

    rounds: int
    body: Block

    def run(self, number: int) -> int:
        return loop(self.body, self.rounds, number)


@routine
def loop(body: Block, rounds: int, number: int) -> int:
    while rounds:
        checkpoint()
        number = block(body, number)
        if number == 1:
            return 1
        rounds -= 1
    return number


@dataclass(frozen=True, eq=False)
class Retry(Statement):
    """Again and again, until a round comes out as `value`."""

    value: int
    body: Block

    def run(self, number: int) -> int:
        retry(self.body, self.value)
        return number


@routine
def retry(body: Block, value: int) -> None:
    while True:
        checkpoint()
        if block(body, 0) == value:
            return


@dataclass(frozen=True, eq=False)
class Choose(Statement):
    outcomes: int

    def run(self, number: int) -> int:
        return choose(self.outcomes)


@dataclass(frozen=True, eq=False)
class Work(Statement):
    """A task of its own; with `joins`, its end is waited for after `between`."""

    body: Block
    between: Block
    joins: bool

    def run(self, number: int) -> int:
        task = spawn(work, self.body, number)
        number = block(self.between, number)
        if self.joins:
            join(task)
        return number


def work(body: Block, number: int) -> None:
    block(body, number)


@dataclass(frozen=True, eq=False)
class Assert(Statement):
    """Fatal if the number is `value`."""

    value: int
    serial: int

    def run(self, number: int) -> int:
        check("assertion", number != self.value, f"assertion {self.serial}")
        return number


@dataclass(frozen=True, eq=False)
class Warn(Statement):
    """Recorded if the number is `value`."""

    value: int
    serial: int

    def run(self, number: int) -> int:
        warn("warning", number == self.value, f"warning {self.serial}")
        return number


@dataclass(frozen=True, eq=False)
class Program:
    """One block a task, named t0, t1, …"""

    tasks: tuple[Block, ...]

    def setup(self) -> None:
        """Build the shared objects and start the tasks."""
        shared = the(Shared)
        thing = new(Thing)
        shared.thing = thing
        thing.refs.refs = 1
        for index, body in enumerate(self.tasks):
            spawn(work, body, 0, name=f"t{index}")

    def __str__(self) -> str:
        return "\n".join(f"t{index}: {body}" for index, body in enumerate(self.tasks))
