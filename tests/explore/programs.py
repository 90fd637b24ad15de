"""Small programs that the tests of runtime and search share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from interleaf.runtime import (
    BLOCK,
    Array,
    Embedded,
    Marked,
    Memory,
    Object,
    Plain,
    Task,
    check,
    checkpoint,
    choose,
    free,
    join,
    new,
    operation,
    read_marked,
    routine,
    spawn,
    write_marked,
)


class Lock(Object):
    owner: Marked[Task | None] = Marked(None)


def _state(lock: Lock) -> Any:
    return Lock.owner.cell(lock)


@operation(focus=_state)
def acquire(memory: Memory, lock: Lock) -> Any:
    if memory.load(lock, Lock.owner) is not None:
        return BLOCK
    memory.store(lock, Lock.owner, memory.world.tasks[memory.task])
    memory.hold(_state(lock), exclusive=True)
    return None


@operation(focus=_state, releases=True)
def release(memory: Memory, lock: Lock) -> None:
    memory.store(lock, Lock.owner, None)
    memory.drop(_state(lock))


class Counters(Object):
    c = Array(0)
    m = Marked(0)
    p = Plain(0)
    lock = Embedded(Lock)
    other = Embedded(Lock)


@routine
def increment(counters: Counters, index: int) -> None:
    acquire(counters.lock)
    value = counters.c[index]
    counters.c[index] = value + 1
    release(counters.lock)


def worker(counters: Counters, number: int, rounds: int) -> None:
    for i in range(rounds):
        increment(counters, (number + i) & 1)


def racy_worker(counters: Counters, number: int, rounds: int) -> None:
    """Skips the lock in its last round, with marked accesses."""
    for i in range(rounds):
        index = (number + i) & 1
        if i < rounds - 1:
            increment(counters, index)
        else:
            write_marked(counters, Counters.c[index], read_marked(counters, Counters.c[index]) + 1)


def plain_worker(counters: Counters, number: int, rounds: int) -> None:
    """Skips the lock in its last round, with plain accesses."""
    for i in range(rounds):
        index = (number + i) & 1
        if i < rounds - 1:
            increment(counters, index)
        else:
            counters.c[index] = counters.c[index] + 1


def total(counters: Counters, expected: int, *tasks: Task) -> None:
    join(*tasks)
    check("sum", counters.c[0] + counters.c[1] == expected, "updates are lost")


def lock_benchmark(tasks: int, rounds: int, last: Callable[..., None] = worker) -> Callable[[], None]:
    """`tasks` tasks increment two counters `rounds` times under a lock; the last task runs `last`."""
    return functools.partial(_lock_benchmark, tasks, rounds, last)


def _lock_benchmark(tasks: int, rounds: int, last: Callable[..., None]) -> None:
    counters = new(Counters)
    workers = [
        spawn(worker if number < tasks - 1 else last, counters, number, rounds, name=f"t{number}")
        for number in range(tasks)
    ]
    spawn(total, counters, tasks * rounds, *workers, name="sum")


def _nested(first: Lock, second: Lock) -> None:
    acquire(first)
    acquire(second)
    release(second)
    release(first)


def deadlocking() -> None:
    """Two tasks take two locks in opposite orders."""
    counters = new(Counters)
    spawn(_nested, counters.lock, counters.other, name="ab")
    spawn(_nested, counters.other, counters.lock, name="ba")


@routine
def _is_set(counters: Counters) -> bool:
    return counters.m != 0


@routine
def _wait_until_set(counters: Counters) -> None:
    while True:
        checkpoint()
        if _is_set(counters):
            break


def _set(counters: Counters) -> None:
    counters.m = 1


def spinning_for_ever() -> None:
    spawn(_wait_until_set, new(Counters), name="spinner")


def spinning_until_set() -> None:
    counters = new(Counters)
    spawn(_wait_until_set, counters, name="spinner")
    spawn(_set, counters, name="setter")


def _chooser(counters: Counters) -> None:
    first = choose(3, "first")
    counters.m = first
    second = choose(2, "second")
    check("not-2-1", (first, second) != (2, 1), "the outcomes are 2 and 1")


def choosing() -> None:
    spawn(_chooser, new(Counters), name="chooser")


class Thing(Object):
    freeable = True
    size = Plain(0)
    flag = Marked(0)


def _use(thing: Thing, counters: Counters) -> None:
    if counters.m == 0:
        thing.size = 1


def _drop(thing: Thing, counters: Counters) -> None:
    counters.m = 1
    free(thing)


def freeing_without_order() -> None:
    """One task uses an object without knowing that the other one does not free it meanwhile."""
    thing, counters = new(Thing), new(Counters)
    spawn(_use, thing, counters, name="user")
    spawn(_drop, thing, counters, name="dropper")
