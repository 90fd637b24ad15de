"""Lockdep: what may be taken in which order and context (kernel/locking/lockdep.c, v6.12).

* **Order.** Locks of one class (a field of a struct, such as `Kvm.mmu_lock`) are ordered: whoever takes B while
  holding A adds the dependency A -> B, and a dependency that closes a cycle is reported, even if no execution
  deadlocks. Dependencies are gathered over all executions of a world. As in the kernel, a cycle counts only if
  at each of its locks a holder can really block the taker: a *recursive* reader (SRCU) does not wait for
  readers, an rwlock's reader may, because a writer can wait between the two. Trylocks cannot wait, so they add
  no dependency, but what is taken while they are held does.
* **Recursion.** Taking a lock again is a self-deadlock, and taking a second lock of the same class is reported
  as possible recursion. read_lock() inside read_lock() is reported too: queued rwlocks make the second one wait
  if a writer queued up between them.
* **Balance.** Unlocking what is not held (that a task ends with a lock held, the runtime reports).
* **Sleeping.** might_sleep() under a spinlock or rwlock, in an RCU reader or RCU callback.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from interleaf.runtime import Memory, Object, Violation
from interleaf.runtime.carrier import Op, perform
from interleaf.runtime.cells import Cell
from interleaf.runtime.findings import ViolationRaised
from interleaf.runtime.memory import Held
from interleaf.runtime.objects import Marked
from interleaf.runtime.values import Value

EXCLUSIVE, READ, RECURSIVE_READ = 0, 1, 2
"""How a lock is taken, numbered as the kernel's lock_acquire() does."""

Site = tuple[str, int, str]


class lockdep_map(Object):
    """Something that lockdep knows: a lock, or a context that is entered and left like one."""

    atomic: ClassVar[bool] = False
    """Its holder must not sleep."""
    ordered: ClassVar[bool] = True
    """It takes part in the order of lock classes."""
    shared: ClassVar[bool] = True
    """Those who hold it not exclusively let each other in."""
    context: ClassVar[str] = ""
    """What its holder is in, if it is no lock and the kernel has only one."""

    @property
    def lock_class(self) -> str:
        """What lockdep orders: the field that this is, in all objects of its kind."""
        return self.domain_name


class lock(lockdep_map):
    """A lock. `holders` is 0 when it is free, ~index of the task that holds it exclusively, or the bit set of the
    indices of the tasks that hold it for reading.
    """

    holders = Marked(0)


class LockOrder:
    """What a world knows of its lock classes, over all executions."""

    def __init__(self) -> None:
        self.seen: dict[tuple[object, int, int], tuple[str, ...]] = {}
        """(locks held, lock taken, how) -> what is wrong with that: the same each time, whoever comes first."""
        self.after: dict[str, dict[str, dict[tuple[bool, bool], str]]] = {}
        """class held -> class taken -> (holder shared?, taker a recursive reader?) -> where."""

    def add(self, held: str, taken: str, shared: bool, recursive: bool, where: str) -> list[str]:
        """Add a dependency; return the cycle that it closes, as lines for people, or nothing."""
        kinds = self.after.setdefault(held, {}).setdefault(taken, {})
        if (shared, recursive) in kinds:
            return []
        kinds[shared, recursive] = where
        start = (taken, recursive)
        came: dict[tuple[str, bool], tuple[tuple[str, bool], str]] = {}
        queue = [start]
        for name, weak in queue:
            if name == held and not (weak and shared):
                lines = []
                step = (name, weak)
                while step != start:
                    before, by = came[step]
                    lines.append(f"{step[0]} is taken under {before[0]} in {by}")
                    step = before
                return lines[::-1]
            for following, ways in self.after.get(name, {}).items():
                for (holder_shared, taker_recursive), by in ways.items():
                    reached = (following, taker_recursive)
                    if not (weak and holder_shared) and reached not in came and reached != start:
                        came[reached] = ((name, weak), by)
                        queue.append(reached)
        return []


def lock_order(memory: Memory) -> LockOrder:
    """The lock order that this memory's world has gathered."""
    found: LockOrder | None = memory.world.gathered.get(LockOrder)
    if found is None:
        found = memory.world.gathered[LockOrder] = LockOrder()
    return found


def place(site: Site) -> str:
    """Where in the model an operation was asked for, in words."""
    return f"{site[2]}()" if site[2] else "the kernel itself"


def known(cell: Cell) -> lockdep_map:
    """What is held when `cell` is in the list of held locks."""
    owner = cell.owner
    assert isinstance(owner, lockdep_map), f"{cell} is held, but is no lockdep_map"
    return owner


def lock_acquire(memory: Memory, cell: Cell, read: int, site: Site) -> None:
    """The running task takes the lock whose state is `cell`, and might have had to wait for it (lock_acquire)."""
    held = memory.held[memory.task]
    if not held.any:
        return
    order = lock_order(memory)
    key = (held.key, cell.index, read)
    messages = order.seen.get(key)
    if messages is None:
        messages = order.seen[key] = tuple(_depend(order, cell, held, read == RECURSIVE_READ, place(site)))
    for message in messages:
        _report(memory, message)


def _depend(order: LockOrder, cell: Cell, held: Held, recursive: bool, where: str) -> Iterator[str]:
    """Whoever takes `cell` while it holds `held` makes these dependencies; what do they violate?"""
    taken = known(cell).lock_class
    for other, exclusive in held.locks:
        owner = known(other)
        if not owner.ordered or other is cell:
            continue
        shared = owner.shared and not exclusive
        name = owner.lock_class
        if name != taken:
            cycle = order.add(name, taken, shared, recursive, where)
            if cycle:
                yield (
                    f"possible circular locking: {taken} is taken under {name} in {where}, but {', and '.join(cycle)}"
                )
        elif not (shared and recursive):
            yield f"possible recursive locking: a second {taken} is taken in {where}"


def lock_release(memory: Memory, cell: Cell, exclusive: bool, site: Site) -> None:
    """The running task gives the lock back: it must hold it, in that way (lock_release)."""
    held = memory.held[memory.task]
    if not (held.exclusive if exclusive else held.any & ~held.exclusive) & cell.bit:
        name = cell.owner.name
        how = f"but holds it for {'reading' if exclusive else 'writing'}" if held.any & cell.bit else "not holding it"
        raise ViolationRaised(
            Violation(
                "lockdep", f"bad unlock balance: {_task(memory)} releases {name} in {place(site)}, {how}", True, name
            )
        )


def lock_sync(memory: Memory, cell: Cell, site: Site) -> None:
    """The running task waits for all holders of `cell`, without holding it afterwards (lock_sync)."""
    held = memory.held[memory.task]
    if held.any & cell.bit:
        message = f"{_task(memory)} waits in {place(site)} for all users of {cell.owner}, and is one itself"
        raise ViolationRaised(Violation("lockdep", message, True, cell.owner.name))
    lock_acquire(memory, cell, EXCLUSIVE, site)


def self_deadlock(memory: Memory, cell: Cell, site: Site) -> None:
    """The running task takes a lock that it already holds in a conflicting way: it would wait for ever."""
    name = cell.owner.name
    raise ViolationRaised(
        Violation(
            "lockdep", f"recursive locking: {_task(memory)} takes {name} in {place(site)} and holds it", True, name
        )
    )


def may_sleep(memory: Memory, site: Site) -> None:
    """The running task may sleep here, so it must hold nothing atomic (__might_sleep)."""
    memory.exercise("sleeping-while-atomic")
    held = memory.held[memory.task]
    if held.any:
        for cell, _exclusive in held.locks:
            owner = known(cell)
            if owner.atomic:
                memory.violate(
                    Violation(
                        "sleeping-while-atomic",
                        f"{_task(memory)} may sleep in {place(site)} and {describe(cell)}",
                        False,
                        owner.name,
                    )
                )
                return


def describe(cell: Cell) -> str:
    """What it means to hold `cell`."""
    owner = known(cell)
    return f"holds {owner}" if isinstance(owner, lock) else f"is in {owner.context or owner}"


def _report(memory: Memory, message: str) -> None:
    memory.violate(Violation("lockdep", message, False))


def _task(memory: Memory) -> str:
    return str(memory.world.tasks[memory.task])


class _Assert(Op):
    """Look at what the running task itself holds: no scheduling point."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def wanted(self, held: Held) -> int:
        return held.any

    how: ClassVar[str] = ""

    def run(self, memory: Memory) -> Value:
        memory.exercise("lockdep")
        if not self.wanted(memory.held[memory.task]) & self.cell.bit:
            _report(
                memory, f"{_task(memory)} is in {place(self.site)} without holding {self.cell.owner.name}{self.how}"
            )

    def text(self, result: Value) -> str:
        return f"asserts that {self.cell.owner} is held{self.how}"


class _AssertRead(_Assert):
    how = " for reading"

    def wanted(self, held: Held) -> int:
        return held.any & ~held.exclusive


class _AssertWrite(_Assert):
    how = " for writing"

    def wanted(self, held: Held) -> int:
        return held.exclusive


class _IsHeld(_Assert):
    def run(self, memory: Memory) -> bool:
        return bool(memory.held[memory.task].any & self.cell.bit)

    def text(self, result: Value) -> str:
        return f"{'holds' if result else 'does not hold'} {self.cell.owner}"


class _MightSleep(Op):
    def run(self, memory: Memory) -> None:
        may_sleep(memory, self.site)

    def text(self, result: Value) -> str:
        return "may sleep"


def lockdep_assert_held(held: lock) -> None:
    """The running task must hold `held`, in any way; a violation of `lockdep` otherwise."""
    perform(_Assert(lock.holders.cell(held)))


def lockdep_assert_held_read(held: lock) -> None:
    """The running task must hold `held` for reading."""
    perform(_AssertRead(lock.holders.cell(held)))


def lockdep_assert_held_write(held: lock) -> None:
    """The running task must hold `held` for writing, or exclusively if it is no rwlock."""
    perform(_AssertWrite(lock.holders.cell(held)))


def lockdep_is_held(held: lock) -> bool:
    """Does the running task hold `held`? For the conditions of rcu_dereference() and the like."""
    return bool(perform(_IsHeld(lock.holders.cell(held))))


def might_sleep() -> None:
    """This code may sleep: under a spinlock or rwlock, or in RCU, that is a violation."""
    perform(_MightSleep())
