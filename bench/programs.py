"""The programs that are searched, by name.

`locks 3 4` is the lock benchmark with 3 tasks of 4 rounds, `racy 3 4` its racy variant; `scenario NAME DESIGN
pages=2` is a scenario of the library on a design, with parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from interleaf.explore.machine import Machine
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Array, Embedded, Object, Violation, checkpoint, routine, spawn, the
from interleaf.runtime.objects import singleton

HOLE = "memslot-delete-vs-unmap"
"""The scenario that ended the patch."""

SMALL: tuple[tuple[str, ...], ...] = (("locks", "2", "2"),)
MEASURED: tuple[tuple[str, ...], ...] = (
    ("locks", "3", "4"),
    ("locks", "4", "8"),
    ("scenario", HOLE, "v6.12"),
    ("scenario", "fault-vs-unmap", "v6.12"),
    ("scenario", "two-vcpus-fault-same-page", "v6.12"),
)
"""Programs on which ingredients are measured: quick ones, and others that are not."""


class Counters(Object):
    """Two counters and the lock that protects them."""

    lock = Embedded(spinlock_t)
    c = Array(0)


@dataclass(frozen=True, slots=True)
class Program:
    """What a search takes: the set-up, and a check of the states in which all tasks have ended."""

    setup: Callable[[], object]
    final: Callable[[Machine], list[Violation]] | None = None


def load(words: tuple[str, ...]) -> Program:
    """The program that is called `words`. Raises ValueError if there is none."""
    match words:
        case ("locks" | "racy" as kind, tasks, rounds):
            return lock_benchmark(int(tasks), int(rounds), kind == "racy")
        case ("scenario", name, design, *parameters):
            return scenario(name, design, parameters)
    raise ValueError(f"there is no program {' '.join(words)!r}")


def lock_benchmark(tasks: int, rounds: int, racy: bool) -> Program:
    """`tasks` tasks, each `rounds` times: take the lock, v = c[(id+i)&1], c[(id+i)&1] = v+1, give it back.

    At the end the sum must be tasks * rounds. In the racy variant the last task skips the lock in its last round.
    """

    def final(machine: Machine) -> list[Violation]:
        counters = singleton(machine.world, Counters)
        total = sum(machine.memory.peek(Counters.c[which].cell(counters)) for which in (0, 1))
        if total == tasks * rounds:
            return []
        return [Violation("sum", f"the counters add up to {total}, not to {tasks * rounds}")]

    return Program(functools.partial(_set_up, tasks, rounds, racy), final)


def scenario(name: str, design: str, parameters: list[str]) -> Program:
    """A scenario of the library on a design; parameters as in `pages=2`."""
    from interleaf import check

    given = tuple((key, int(value)) for key, _, value in (word.partition("=") for word in parameters))
    _scenario, _design, setup = check.program(check.Request(name, design, parameters=given))
    return Program(setup)


def _set_up(tasks: int, rounds: int, racy: bool) -> None:
    for number in range(tasks):
        spawn(_task, number, rounds, racy and number == tasks - 1, name=f"task{number}")


@routine
def _task(number: int, rounds: int, racy: bool) -> None:
    i = 0
    while i < rounds:
        checkpoint()
        _add((number + i) & 1, locked=not (racy and i == rounds - 1))
        i += 1


@routine
def _add(which: int, locked: bool) -> None:
    counters = the(Counters)
    if locked:
        spin_lock(counters.lock)
    counters.c[which] = counters.c[which] + 1
    if locked:
        spin_unlock(counters.lock)
