"""Cells: the atoms of shared state, and the world that gives each its name.

A cell is one field of one object (or one element of an array field). It has the same index in every
execution of a search, so a set of cells is an int with one bit a cell, and the footprints of two steps are
compared with two bitwise operations.

A `World` belongs to one search (or one replay). It owns the names: which object is called what, which cell has
which index, which random 64-bit number stands for "cell c holds value v" in the hash of a state (Zobrist,
1970: the hash of a state is the XOR of those numbers, so a write updates it in constant time).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from .findings import ModelError
from .values import Value

if TYPE_CHECKING:
    from .memory import Held, Memory
    from .objects import Object


SERIAL_BITS = 10
"""A task makes at most 2**SERIAL_BITS objects of a class, where executions must agree on their serial numbers."""


class Zobrist(dict[Value, int]):
    """Random 64-bit numbers by value, drawn when first asked for; the default value is 0."""

    __slots__ = ("rng",)

    def __init__(self, rng: random.Random, default: Value) -> None:
        super().__init__()
        self.rng = rng
        self[default] = 0

    def __missing__(self, value: Value) -> int:
        number = self.rng.getrandbits(64)
        self[value] = number
        return number


READS, WRITES, LOOKS, NOTES = range(4)
"""Kinds of access: reads and writes of the model; looks and notes of what checks properties."""

_CLASHES = ((WRITES, WRITES), (WRITES, READS), (READS, WRITES))
_GLIMPSES = (
    *((NOTES, NOTES), (NOTES, LOOKS), (LOOKS, NOTES), (NOTES, WRITES), (WRITES, NOTES)),
    *((NOTES, READS), (READS, NOTES), (LOOKS, WRITES), (WRITES, LOOKS)),
)
"""Pairs of kinds that depend on each other: of the model's own, and with checks of properties."""


class Domain:
    """A declared field over all objects of a class, such as `Kvm.mmu_lock.holders`.

    `observed` says of a lock that somebody looks at its state without taking it, so that an unlock is visible.
    """

    __slots__ = ("name", "observed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.observed = False


class Record:
    """What is known of one task's accesses to one cell, over all executions of a search."""

    __slots__ = ("beside", "locks")

    def __init__(self) -> None:
        self.locks: list[int | None] = [None, None, None, None]
        """By kind of access: the locks held at all of them; None if there was none. Only those held exclusively
        count where something is changed."""
        self.beside = 0
        """Tasks that could have run at the time of one of the accesses."""

    def meets(self, other: Record, kinds: Iterable[tuple[int, int]]) -> bool:
        """Are there accesses of these kinds without a common lock?"""
        for mine, theirs in kinds:
            one, two = self.locks[mine], other.locks[theirs]
            if one is not None and two is not None and not one & two:
                return True
        return False


class Cell:
    """One shared field of one object. Identity is by index; `label` is for people.

    What is learned of its accesses goes into the world: the pairs of tasks with accesses that could meet without a
    common lock, and depend on each other. Other accesses commute with whatever happens around them: they are made
    under a lock that the others need too, or while nobody else could make one, or all of them are reads. (The
    candidate lock sets of Eraser, Savage et al., TOCS 1997, for each pair of tasks.)
    """

    __slots__ = ("bit", "default", "domain", "index", "label", "owner", "records", "zobrist")

    def __init__(
        self, index: int, owner: Object, label: str, default: Value, domain: Domain, rng: random.Random
    ) -> None:
        self.index = index
        self.bit = 1 << index
        self.owner = owner
        self.label = label
        self.default = default
        self.domain = domain
        self.zobrist = Zobrist(rng, default)
        self.records: dict[int, Record] = {}

    def learn(self, task: int, kind: int, locks: int, beside: int) -> bool:
        """Add an access by `task`, with `locks` held, while the tasks `beside` could run. Does it show a dependence?"""
        record = self.records.get(task)
        if record is None:
            record = self.records[task] = Record()
        known = record.locks[kind]
        now = locks if known is None else known & locks
        if now == known and not beside & ~record.beside:
            return False
        record.locks[kind] = now
        record.beside |= beside
        world = self.owner.world
        found = False
        for other, theirs in self.records.items():
            if other == task or not (record.beside >> other & 1 or theirs.beside >> task & 1):
                continue
            for kinds, pairs in ((_CLASHES, world.clashes), (_GLIMPSES, world.glimpses)):
                if not pairs.get((task, other), 0) & self.bit and record.meets(theirs, kinds):
                    for pair in ((task, other), (other, task)):
                        pairs[pair] = pairs.get(pair, 0) | self.bit
                    found = True
        return found

    def __repr__(self) -> str:
        return f"<{self.label}>"


SETUP = "setup"
"""The task that sets an execution up, alone."""


class World:
    """Names for objects, cells and tasks, the same in every execution that uses this world.

    `seed` feeds the hash numbers only: with another seed, another set of hash collisions.
    """

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.cells: list[Cell] = []
        self.objects: MutableMapping[tuple[Any, ...], Object] = {}
        self.singletons: dict[type, Object] = {}
        self.serials: MutableMapping[tuple[type, int], Object] = {}
        self.domains: dict[str, Domain] = {}
        self.tasks: list[Any] = []
        """Every task that any execution has created, by index (`Task`, a handle)."""
        self.frames: dict[Any, int] = {}
        """Numbers of call-frame states: equal frames, equal numbers."""
        self.memories: list[Memory] = []
        self.holds: dict[tuple[tuple[Cell, bool], ...], Held] = {}
        """Sets of held locks, each once, so that they can be compared by identity."""
        self.clashes: dict[tuple[int, int], int] = {}
        """For each pair of tasks the cells on which they conflict, as a bit set."""
        self.glimpses: dict[tuple[int, int], int] = {}
        """The same where one of the two accesses is for the check of a property."""
        self.gathered: dict[Value, Any] = {}
        """What is learned over all executions (lock order, rules exercised), by key."""
        self.exercised: dict[str, int] = {}
        """How often each property had the chance to fail in a task. What the set-up does is the same in every
        execution, and over before any two tasks race: it tests nothing."""
        self.measured: dict[tuple[str, str], int] = {}
        """The largest value of each quantity that the model measures, by its name and the task's, in any execution."""
        self.listener: Callable[[Any, object], None] | None = None
        """Whoever follows an execution: called with the running task and what it traces."""

    def domain(self, name: str) -> Domain:
        found = self.domains.get(name)
        if found is None:
            found = self.domains[name] = Domain(name)
        return found

    def intern_cell(self, owner: Object, default: Value, name: str, *index: Value) -> Cell:
        """A new cell: the field `name` of `owner`, or the element `index` of the array `name`."""
        label, domain = f"{owner.name}.{name}", f"{owner.domain_name}.{name}"
        if index:
            label, domain = f"{label}[{index[0]}]", f"{domain}[]"
        cell = Cell(len(self.cells), owner, label, default, self.domain(domain), self.rng)
        self.cells.append(cell)
        for memory in self.memories:
            memory.values.append(default)
        return cell

    def serial(self, kind: type, task: Any, count: int) -> int:
        """The serial number of the object of `kind` that `task` has made after `count` others. Raises ModelError."""
        if count >> SERIAL_BITS:
            raise ModelError(
                f"task {task} makes more than {1 << SERIAL_BITS} objects of the class {kind.__name__}: their serial "
                "numbers would be those of another task's objects. Make a smaller scenario, or more tasks."
            )
        return int(task.index << SERIAL_BITS | count)

    def enter_task(self, task: Any) -> int:
        """A new task: returns its index."""
        self.tasks.append(task)
        return len(self.tasks) - 1

    def freed(self, owner: Object) -> None:
        """An object has been freed in one of the executions. Others may still use it."""

    def cells_of(self, mask: int) -> list[Cell]:
        """The cells of a bit set, lowest index first."""
        found = []
        while mask:
            low = mask & -mask
            found.append(self.cells[low.bit_length() - 1])
            mask ^= low
        return found
