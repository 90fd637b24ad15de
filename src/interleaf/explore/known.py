"""Steps that need not be made again: what a step does follows from where its task is and what it finds.

The same step is made in very many states. Its effect is known by the node where it begins, the outcomes of its
choices, the locks that the task holds, and the values of all cells on which it depends. So it is remembered with
these, and with what was decided on the way: that no scheduling point was needed, until one was. Where all that is as
it was, and nothing is to be learned, the step is not made but its effect put in place.

Now and then a known step is made all the same, and must come out as it is known.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from interleaf.runtime.findings import ModelError
from interleaf.runtime.memory import Held, Memory
from interleaf.runtime.values import Value

from .automaton import HINT, Node
from .points import Points, demands

CHECKED = 128
"""One of so many known steps is made all the same."""

NOTHING = (0, 0, 0, 0)

T = TypeVar("T")


class Table(Generic[T]):
    """Lists of things that depend on the values of some cells, which are not the same cells for all of them."""

    __slots__ = ("_by_cells",)

    def __init__(self) -> None:
        self._by_cells: dict[tuple[int, ...], tuple[Callable[[Any], Any], dict[Any, list[T]]]] = {}

    def find(self, values: Sequence[Value]) -> list[T] | None:
        """What was put here when the cells on which it depends had the values that they have now."""
        for of_cells, things in self._by_cells.values():
            found = things.get(of_cells(values))
            if found is not None:
                return found
        return None

    def put(self, cells: dict[int, Value]) -> list[T]:
        """The list of what depends on these cells (by index) having these values."""
        indices = tuple(sorted(cells))
        known = self._by_cells.get(indices)
        if known is None:
            known = self._by_cells[indices] = (operator.itemgetter(*indices) if indices else _nothing, {})
        return known[1].setdefault(known[0](cells), [])


def _nothing(_values: object) -> None:
    """The values of no cells."""


class KnownStep:
    """A step as it was made, or that it could not be made."""

    __slots__ = (
        *(
            "basic",
            "beside",
            "branches",
            "cells",
            "conflict",
            "demand",
            "glued",
            "held",
            "journal",
            "length",
            "node",
            "plains",
        ),
        *("possible", "progress", "reads", "valid", "values", "writes", "zobrist"),
    )

    def __init__(self, memory: Memory, mark: int, zobrist: int, frees: bool) -> None:
        self.reads, self.writes, self.plains = memory.reads, memory.writes, memory.plains
        self.journal = memory.journal[mark:]
        self.values = {index: memory.values[index] for index, _ in self.journal if index >= 0}
        self.zobrist = zobrist ^ memory.zobrist
        """What it changes in the hash."""
        self.held: Held = memory.held[memory.task]
        """The locks that the task has then."""
        self.beside = memory.beside
        """The tasks beside which it was made, so that what can be learned of its accesses is learned."""
        self.valid = True
        """False once more is known of what its operations touch."""
        self.cells = len(memory.values) if frees else 0
        """How many cells there were, if it frees an object: it goes over all cells of that."""
        self.possible = False
        self.node: Node | None = None
        """Where the task is then; None if it has ended."""
        self.conflict = False
        """Did it end because a scheduling point is needed there?"""
        self.glued: tuple[Node, ...] = ()
        """The operations before which none was needed."""
        self.demand = NOTHING
        """What others may notice of these."""
        self.branches: list[int] = []
        self.basic: list[tuple[tuple[int, ...], int]] = []
        self.length = 0
        self.progress = False

    def goes(self, node: Node | None, glued: Sequence[Node], conflict: bool) -> None:
        """It was possible, and went up to `node`: see the fields of these names."""
        self.possible = True
        self.node = node
        self.conflict = conflict
        self.glued = tuple(glued)
        self.demand = demands(glued)

    def apply(self, memory: Memory) -> None:
        """Change the memory as it did."""
        memory.reads, memory.writes, memory.plains = self.reads, self.writes, self.plains
        if self.possible:
            memory.journal.extend(self.journal)
            values = memory.values
            for cell, value in self.values.items():
                values[cell] = value
            memory.zobrist ^= self.zobrist
            memory.held[memory.task] = self.held

    def depends(self, memory: Memory) -> dict[int, Value]:
        """The cells on which it depends, with the values that they had before."""
        before: dict[int, Value] = {}
        cells = self.reads | self.writes | memory.further
        values = memory.values
        while cells:
            low = cells & -cells
            before[low.bit_length() - 1] = values[low.bit_length() - 1]
            cells ^= low
        before.update((index, old) for index, old in reversed(self.journal) if index >= 0)
        return before

    def still(self, points: Points, memory: Memory) -> bool:
        """Would the same be decided on the way, and nothing be learned?"""
        if memory.beside & ~self.beside:
            return False
        if not self.possible:
            return True
        if self.cells and self.cells != len(memory.values):
            return False
        if self.glued and points.conflict(*self.demand):
            return False
        return not self.conflict or (self.node is not None and points.needed(self.node))

    def difference(self, other: KnownStep) -> str:
        """In what the two differ, if they do."""
        for what in ("possible", "node", "reads", "writes", "values", "zobrist", "held", "branches", "basic", "length"):
            if getattr(self, what) != getattr(other, what):
                return what
        return ""


def keep(table: Table[KnownStep], made: KnownStep, memory: Memory) -> None:
    """Put a step into the table, or what is new of it into the same one there."""
    steps = table.put(made.depends(memory))
    steps[:] = [known for known in steps if known.valid]
    for known in steps:
        if known.cells == made.cells and known.glued == made.glued and not known.difference(made):
            known.beside |= made.beside
            return
    steps.append(made)
    for passed in made.glued:
        passed.glued_in.append(made)


def expect(known: KnownStep, made: KnownStep) -> None:
    """Raise ModelError if a known step has come out otherwise now."""
    if what := known.difference(made):
        raise ModelError(
            f"the model is not deterministic, or Interleaf has a defect: a step made again up to {made.node} comes out "
            f"with other {what}. {HINT}"
        )
