"""Scheduling points are left out only where no check of a property could notice."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest

from interleaf.explore.brute import BruteForce
from interleaf.explore.outcome import Bounds
from interleaf.explore.states import Options, StateSearch
from interleaf.explore.steps import StepSearch
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Array, Embedded, Memory, Object, Violation, new, operation, routine, spawn, write_marked


class Watched(Object):
    """What tasks change, each its own element or a shared one, and what checks of properties remember."""

    own = Array(0)
    ghost = Array(0)
    lock = Embedded(spinlock_t)


@operation(marked=False)
def note(memory: Memory, watched: Watched, index: int, value: int) -> None:
    memory.note(Watched.ghost.element(watched, index), value)


@operation(focus=Watched.own.element)
def look(memory: Memory, watched: Watched, index: int) -> None:
    """A marked access to a field of one's own, which checks what the others have noted."""
    memory.load_cell(Watched.own.element(watched, index))
    memory.exercise("noted")
    noted = tuple(memory.look(Watched.ghost.element(watched, which)) for which in range(2))
    if noted != (0, 0):
        memory.violate(Violation("noted", f"task {index} sees {noted}", fatal=False))


Statement = tuple[str, int, int]
Task = tuple[Statement, ...]


def _act(watched: Watched, number: int, task: Task) -> None:
    for kind, index, value in task:
        _do(watched, number, kind, index, value)


@routine
def _do(watched: Watched, number: int, kind: str, index: int, value: int) -> None:
    match kind:
        case "write":
            write_marked(watched, Watched.own[number], value)
        case "note":
            write_marked(watched, Watched.own[number], value)
            note(watched, index, value)
        case "look":
            look(watched, number)
        case "locked":
            spin_lock(watched.lock)
            write_marked(watched, Watched.own[number], value)
            note(watched, index, value)
            write_marked(watched, Watched.own[number], 0)
            note(watched, index, 0)
            spin_unlock(watched.lock)
        case "locked look":
            spin_lock(watched.lock)
            look(watched, number)
            spin_unlock(watched.lock)


def _program(*tasks: Task) -> None:
    watched = new(Watched)
    for number, task in enumerate(tasks):
        spawn(_act, watched, number, task, name=f"task{number}")


def program(*tasks: Task) -> Callable[[], None]:
    return functools.partial(_program, *tasks)


def seen(search: Any) -> set[str]:
    try:
        outcome = search.run()
    finally:
        search.close()
    assert outcome.exhaustive, outcome.stopped
    return {found.violation.message for found in outcome.found}


WRITER: Task = (("note", 0, 1), ("note", 0, 0))
LOOKER: Task = (("look", 0, 0),)


def test_a_note_that_is_taken_back_is_seen_in_between() -> None:
    assert seen(StateSearch(program(WRITER, LOOKER))) == {"task 1 sees (1, 0)"}


def test_what_is_noted_and_looked_at_under_one_lock_costs_no_scheduling_point() -> None:
    locked: Task = (("locked", 0, 1),)
    looker: Task = (("locked look", 0, 0),)
    search = StateSearch(program(locked, looker))
    assert seen(search) == set()
    # each task is before its section, or has ended
    assert search.outcome.states == 4


def test_what_is_noted_under_a_lock_is_seen_by_those_who_do_not_take_it() -> None:
    assert seen(StateSearch(program((("locked", 0, 1),), LOOKER))) == {"task 1 sees (1, 0)"}


@pytest.mark.parametrize("seed", range(40))
def test_checks_see_all_that_they_see_in_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    kinds = ("write", "note", "note", "look", "look", "locked", "locked look")
    tasks = [
        tuple((rng.choice(kinds), rng.randrange(2), rng.randrange(3)) for _ in range(rng.randint(1, 3)))
        for _ in range(rng.choice((2, 2, 3)))
    ]
    setup = program(*tasks)
    expected = seen(BruteForce(setup, merge=True, bounds=Bounds()))
    assert seen(StateSearch(setup)) == expected
    assert seen(StateSearch(setup, options=Options(foresight=False))) == expected
    assert seen(StateSearch(setup, options=Options(sleep=False, journal=False))) == expected
    assert seen(StepSearch(setup)) == expected
