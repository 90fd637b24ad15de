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
from typing import TYPE_CHECKING, Any

from .values import Value

if TYPE_CHECKING:
    from .memory import Held, Memory
    from .objects import Object

ALL_LOCKS = -1
"""Candidate lock set of a cell that nobody has touched yet: every lock would do."""


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


class Domain:
    """A declared field over all objects of a class: the unit in which lock discipline is assumed.

    `protected` says that every access so far was made by one task only, or with a common lock held, or was a
    read of a field that is never written. The search assumes it from the start and withdraws it when an
    access breaks it (Stoller & Cohen, FMSD 2006).
    """

    __slots__ = ("name", "observed", "protected")

    def __init__(self, name: str) -> None:
        self.name = name
        self.protected = True
        self.observed = False
        """For locks: somebody looks at the state without taking the lock, so that an unlock is visible."""


class Cell:
    """One shared field of one object. Identity is by index; `label` is for people.

    The last three attributes gather, over all executions of a search, what is known of the locks that its
    accesses had in common (Eraser's candidate set), which tasks touched it, and whether it was written.
    """

    __slots__ = (
        "accessors",
        "bit",
        "default",
        "domain",
        "index",
        "label",
        "lockset",
        "owner",
        "written",
        "zobrist",
    )

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
        self.lockset = ALL_LOCKS
        self.accessors = 0
        self.written = False

    @property
    def disciplined(self) -> bool:
        """Do all accesses seen so far commute, by lock, by ownership or by being reads?"""
        single = self.accessors & (self.accessors - 1) == 0
        return single or not self.written or self.lockset != 0

    def __repr__(self) -> str:
        return f"<{self.label}>"


class World:
    """Names for objects, cells and tasks, the same in every execution that uses this world.

    `seed` feeds the hash numbers only: with another seed, another set of hash collisions.
    """

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.cells: list[Cell] = []
        self.objects: dict[tuple[Any, ...], Object] = {}
        self.serials: dict[tuple[type, int], Object] = {}
        self.domains: dict[str, Domain] = {}
        self.tasks: list[Any] = []
        """Every task that any execution has created, by index (`Task`, a handle)."""
        self.frames: dict[Any, int] = {}
        """Numbers of call-frame states: equal frames, equal numbers."""
        self.memories: list[Memory] = []
        self.holds: dict[tuple[tuple[Cell, bool], ...], Held] = {}
        """Sets of held locks, each once, so that they can be compared by identity."""
        self.gathered: dict[Value, Any] = {}
        """What is learned over all executions (lock order, rules exercised), by key."""
        self.exercised: dict[str, int] = {}
        """How often each property had the chance to fail."""

    def domain(self, name: str) -> Domain:
        found = self.domains.get(name)
        if found is None:
            found = self.domains[name] = Domain(name)
        return found

    def intern_cell(self, owner: Object, label: str, default: Value, domain: str) -> Cell:
        cell = Cell(len(self.cells), owner, label, default, self.domain(domain), self.rng)
        self.cells.append(cell)
        for memory in self.memories:
            memory.values.append(default)
        return cell

    def cells_of(self, mask: int) -> list[Cell]:
        """The cells of a bit set, lowest index first."""
        found = []
        while mask:
            low = mask & -mask
            found.append(self.cells[low.bit_length() - 1])
            mask ^= low
        return found
