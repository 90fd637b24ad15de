"""The shared state of one execution: a value for every cell, what changed, and what was touched.

Operations read and write through `load` and `store`, which keep three things up to date: the *journal*
(cell, old value), by which an earlier state is restored; the *hash* of the whole memory; and the *footprint*
of the current step, as bit sets of cells. Two steps are independent when neither writes what the other
touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .cells import LOOKS, NOTES, READS, SETUP, WRITES, Cell, World
from .findings import Violation, ViolationRaised
from .values import Value

if TYPE_CHECKING:
    from .objects import Field, Object

NEVER, ALIVE, FREED = 0, 1, 2
"""Values of an object's life cell."""


class _Block:
    """Type of `BLOCK`."""

    def __repr__(self) -> str:
        return "BLOCK"


BLOCK = _Block()
"""What an operation returns when it cannot happen in this state; it must not have written anything."""


@dataclass(frozen=True, slots=True)
class Held:
    """The locks that one task holds, in the order of taking, and the same as bit sets of lock cells."""

    locks: tuple[tuple[Cell, bool], ...] = ()
    """(lock's cell, held exclusively?)"""
    exclusive: int = 0
    any: int = 0
    key: tuple[tuple[int, bool], ...] = ()
    """`locks` by the indices of the cells: equal ones are held in the same way."""


NOTHING_HELD = Held()


def held_locks(locks: tuple[tuple[Cell, bool], ...]) -> Held:
    """What a task has that holds these locks."""
    exclusive = any_mode = 0
    for lock, is_exclusive in locks:
        any_mode |= lock.bit
        if is_exclusive:
            exclusive |= lock.bit
    return Held(locks, exclusive, any_mode, tuple((lock.index, is_exclusive) for lock, is_exclusive in locks))


class Observer(Protocol):
    """Told of every access while an execution runs; used for race detection and for stories."""

    def access(self, task: int, cell: Cell, write: bool, plain: bool) -> None: ...

    def order(self, task: int, token: Value, acquire: bool, release: bool) -> None: ...

    def life(self, task: int, owner: Object, state: int) -> None: ...


class Memory:
    """Values of all cells of `world` in one execution.

    `task` is the index of the task whose operation is running, `beside` the bit set of the other tasks that could
    run. An access while there are none is learned of too: in another execution there may be some.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.values: list[Value] = [cell.default for cell in world.cells]
        self.zobrist = 0
        self.journal: list[tuple[int, Value]] = []
        self.held: list[Held] = []
        self.task = 0
        self.beside = 0
        self.learning = False
        """Each access is added to what is known of its cell, for a search."""
        self.reads = 0
        self.writes = 0
        self.plains = 0
        self.further = 0
        """Cells without a footprint on which the running step depends: those peeked at, and those that were set."""
        self.plainly = False
        """The running operation is no scheduling point, so all its accesses are plain, whatever it says."""
        self.broken: Cell | None = None
        """A cell on which an access has just shown a dependence that was not known."""
        self.spawned: list[tuple[Value, Value, tuple[Value, ...]]] = []
        """Tasks started by the running step: (task, function, arguments)."""
        self.warnings: list[Violation] = []
        """Non-fatal violations of the running step."""
        self.observer: Observer | None = None
        world.memories.append(self)

    def detach(self) -> None:
        """Stop following the world; this memory is not used any more."""
        self.world.memories.remove(self)

    # What operations call

    def load(self, owner: Object, field: Field[Value], plain: bool = False) -> Value:
        """Read a field of `owner` as part of the running operation."""
        return self.load_cell(field.cell(owner), plain)

    def store(self, owner: Object, field: Field[Value], value: Value, plain: bool = False) -> None:
        """Write a field of `owner` as part of the running operation."""
        self.store_cell(field.cell(owner), value, plain)

    def load_cell(self, cell: Cell, plain: bool = False) -> Value:
        self.reads |= cell.bit
        self._touch(cell, False, plain)
        return self.values[cell.index]

    def store_cell(self, cell: Cell, value: Value, plain: bool = False) -> None:
        self.writes |= cell.bit
        self._touch(cell, True, plain)
        self.set(cell, value)

    def look(self, cell: Cell) -> Value:
        """Read a cell for the check of a property, not for the model.

        The search sees that the operation depends on it, but it is no access: it cannot race, and may look at what is
        freed.
        """
        self.reads |= cell.bit
        if self.learning and cell.learn(self.task, LOOKS, self.held[self.task].any, self.beside):
            self.broken = cell
        return self.values[cell.index]

    def note(self, cell: Cell, value: Value) -> None:
        """Write a cell for the check of a property, not for the model: no access, as with `look`."""
        self.writes |= cell.bit
        if self.learning and cell.learn(self.task, NOTES, self.held[self.task].exclusive, self.beside):
            self.broken = cell
        self.set(cell, value)

    def commute_cell(self, cell: Cell, value: Value) -> None:
        """Write in a way that commutes with every other such write, and so counts as a read.

        For the read side of a lock: two readers may come and go in any order. Whoever *looks* at the cell
        must use `store` (of the same value), so that it conflicts with these writes.
        """
        self.reads |= cell.bit
        self._touch(cell, False, False)
        self.set(cell, value)

    def set(self, cell: Cell, value: Value) -> None:
        """Change a value, with journal and hash, leaving no footprint."""
        self.further |= cell.bit
        old = self.values[cell.index]
        if old is value or (old == value and type(old) is type(value)):
            return
        self.journal.append((cell.index, old))
        self.zobrist ^= cell.zobrist[old] ^ cell.zobrist[value]
        self.values[cell.index] = value

    def order(self, token: Value, acquire: bool = False, release: bool = False) -> None:
        """State a happens-before edge: what was released into `token` is acquired from it."""
        if self.observer is not None:
            self.observer.order(self.task, token, acquire, release)

    def hold(self, cell: Cell, exclusive: bool) -> None:
        """The running task now holds the lock whose state is `cell`."""
        self._now_holds((*self.held[self.task].locks, (cell, exclusive)))
        if self.observer is not None:
            self.order(cell, acquire=True)
            if exclusive:
                self.order((cell, "shared"), acquire=True)

    def drop(self, cell: Cell) -> None:
        """The running task gives back its latest hold on the lock whose state is `cell`.

        Those who share a lock are not ordered among each other: what they release, only an exclusive holder acquires.
        """
        locks = list(self.held[self.task].locks)
        for position in range(len(locks) - 1, -1, -1):
            if locks[position][0] is cell:
                _cell, exclusive = locks.pop(position)
                self.order(cell if exclusive else (cell, "shared"), release=True)
                break
        self._now_holds(tuple(locks))

    def observe(self, cell: Cell) -> None:
        """The running operation depends on whether the lock whose state is `cell` is free, without waiting.

        From now on giving that lock back is visible to others, so it is a scheduling point.
        """
        if not cell.domain.observed:
            cell.domain.observed = True
            self.broken = cell

    def violate(self, violation: Violation) -> None:
        """Report a violation: fatal ones end the execution here."""
        if violation.fatal:
            raise ViolationRaised(violation)
        self.warnings.append(violation)

    def exercise(self, name: str) -> None:
        """Count a chance of property `name` to fail. See `World.exercised`."""
        if self.world.tasks[self.task].name == SETUP:
            return
        self.world.exercised[name] = self.world.exercised.get(name, 0) + 1

    def measure(self, name: str, value: int) -> None:
        """The quantity `name` is `value` now for the running task: the largest is kept, over all executions.

        It must follow from the state and the operation, or a search that knows both does not see it.
        """
        measured = self.world.measured
        key = (name, self.world.tasks[self.task].name)
        measured[key] = max(measured.get(key, 0), value)

    # What drives an execution calls

    def begin_step(self, task: int) -> None:
        self.task = task
        self.reads = self.writes = self.plains = self.further = 0

    def rollback(self, mark: int, zobrist: int) -> None:
        """Restore the state at which the journal had `mark` entries and the hash was `zobrist`."""
        journal, values = self.journal, self.values
        while len(journal) > mark:
            index, old = journal.pop()
            if index >= 0:
                values[index] = old
            else:
                self.held[~index] = old
        self.zobrist = zobrist

    def peek(self, cell: Cell) -> Value:
        """Look at a value without a footprint: in reports and final checks, and in operations on which the value has no
        influence that others could notice."""
        self.further |= cell.bit
        return self.values[cell.index]

    def learn(self, cell: Cell, write: bool) -> None:
        """Add one access to what is known of the locks that protect `cell` and the life of its owner."""
        held = self.held[self.task]
        if cell.learn(self.task, WRITES if write else READS, held.exclusive if write else held.any, self.beside):
            self.broken = cell
        life = cell.owner.life
        if life is not None and life is not cell and life.learn(self.task, READS, held.any, self.beside):
            self.broken = life

    def _now_holds(self, locks: tuple[tuple[Cell, bool], ...]) -> None:
        held = self.world.holds.get(locks)
        if held is None:
            held = self.world.holds[locks] = held_locks(locks)
        self.journal.append((~self.task, self.held[self.task]))
        self.held[self.task] = held

    def _touch(self, cell: Cell, write: bool, plain: bool) -> None:
        owner = cell.owner
        if plain or self.plainly:
            plain = True
            self.plains |= cell.bit
        life = owner.life
        if life is not None:
            self.reads |= life.bit
            if plain:
                self.plains |= life.bit
            if self.values[life.index] != ALIVE:
                self.use_after_free(cell, write)
        if self.learning:
            self.learn(cell, write)
        if self.observer is not None:
            self.observer.access(self.task, cell, write, plain)
            if life is not None and life is not cell:
                self.observer.access(self.task, life, False, plain)

    def use_after_free(self, cell: Cell, write: bool) -> None:
        """An access to a field of an object that is freed (or was never allocated): fatal."""
        life = cell.owner.life
        assert life is not None
        state = "freed" if self.peek(life) == FREED else "unallocated"
        verb = "write to" if write else "read of"
        raise ViolationRaised(
            Violation(
                "use-after-free",
                f"{verb} {cell.label}: {cell.owner.root} is {state}",
                True,
                str(cell.owner.root),
            )
        )
