"""A live run that has gone back, however often, does what one does that never has."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest

from interleaf.linux.rcu import call_rcu
from interleaf.linux.rwlock import asks_to_yield, cond_resched_rwlock_write, rwlock_t, write_lock, write_unlock
from interleaf.runtime import (
    Array,
    Embedded,
    Live,
    LiveWorld,
    Marked,
    ModelError,
    Object,
    Plain,
    Rewind,
    RewindMemory,
    RewindWorld,
    Task,
    choose,
    free,
    new,
    object_of,
    spawn,
    the,
    trace,
)
from interleaf.runtime.cells import Cell
from interleaf.runtime.live import QUARANTINE
from interleaf.runtime.operations import Choose
from interleaf.runtime.rewind import Access
from tests.oracle.generate import MIXES, Generator
from tests.runtime.test_live import racing, reading, values

TURNS = 120
"""Operations of a run."""

TIMES = 2 * QUARANTINE
"""Rounds after which what is kept does not grow any more."""


class Node(Object):
    """Something that is made and freed in numbers."""

    freeable = True
    value = Plain(0)


class Store(Object):
    """What the tasks of these tests share."""

    lock = Embedded(rwlock_t)
    count = Plain(0)
    node: Marked[Node | None] = Marked(None)
    array = Array(0)


class Follower:
    """Runs a program, and writes down what it says and what is found."""

    def __init__(self, run: Live) -> None:
        self.run = run
        self.said: list[tuple[str, object]] = []
        self.found: list[str] = []
        run.world.listener = self._listen

    def turns(self, rng: random.Random, number: int) -> None:
        """So many operations, of tasks chosen at random, while one can run, and nothing fatal has happened."""
        for _ in range(number):
            tasks = sorted(self.run.unfinished, key=str)
            rng.shuffle(tasks)
            next((task for task in tasks if self.run.run(task, rng.randint(1, 3))), None)
            for violation in self.run.violations:
                if violation.rule != "lockdep":  # which is learned from all that was ever done
                    self._add(self.found, str(violation.signature))
            self.run.violations.clear()

    def outcome(self) -> list[Any]:
        """What it has come to."""
        return [self.said, self.found, [str(task) for task in self.run.unfinished], *self._values()]

    def _values(self) -> list[Any]:
        return [values(self.run.world, self.run.memory), [held.key for held in self.run.memory.held if held.locks]]

    def _listen(self, task: Task, record: object) -> None:
        if not (isinstance(self.run, Rewind) and self.run.world.repeating):
            self._add(self.said, (task.name, record))

    def _add(self, everything: list[Any], what: object) -> None:
        everything.append(what)
        if isinstance(self.run, Rewind):
            self.run.world.note(everything.pop)


def straight(setup: Callable[[], object], seed: int) -> list[Any]:
    """What a run comes to that never goes back."""
    follower = Follower(Live(LiveWorld(), setup))
    rng = random.Random(seed)
    for _ in range(TURNS):
        follower.turns(rng, 1)
    return follower.outcome()


def to_and_fro(setup: Callable[[], object], seed: int, forgetful: bool) -> tuple[list[Any], int]:
    """What a run comes to that often goes another way first, and how often it has."""
    world = RewindWorld()
    follower = Follower(Rewind(world, setup))
    rng, other = random.Random(seed), random.Random(-seed)
    astray = 0
    for _ in range(TURNS):
        if other.random() < 0.3:
            moment, before = world.now, follower.outcome()
            follower.turns(other, other.randint(1, 12))
            within = world.now
            follower.turns(other, other.randint(1, 12))
            if other.random() < 0.5:
                world.back(within)
                follower.turns(other, other.randint(1, 12))
            astray += world.now > moment
            world.back(moment)
            assert follower.outcome() == before
        elif forgetful and other.random() < 0.3:
            world.forget(None)
        follower.turns(rng, 1)
    return follower.outcome(), astray


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("mix", sorted(MIXES))
def test_random_programs_come_to_the_same(mix: str, forgetful: bool) -> None:
    generator = Generator(random.Random(7))
    went_astray = 0
    for seed in range(12):
        setup = generator.program(mix).setup
        outcome, astray = to_and_fro(setup, seed, forgetful)
        assert outcome == straight(setup, seed)
        went_astray += astray
    assert went_astray > 10


def retiring() -> None:
    for number in (10, 20):
        spawn(racing, number, name=f"racer{number}")
    spawn(reading, name="reader")


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_made_and_freed_on_the_way_is_the_same(seed: int, forgetful: bool) -> None:
    outcome, astray = to_and_fro(retiring, seed, forgetful)
    assert outcome == straight(retiring, seed)
    assert astray > 2
    assert len(outcome[0]) >= 6


def looking() -> None:
    store = the(Store)
    node = new(Node, value=1)
    number = node.serial
    free(node)
    del node
    trace(Store.array.next_changed(store, 0, 9))
    trace(object_of(Node, number).name)
    store.count += 1
    trace("end")


def filling() -> None:
    the(Store).array[4] = 1


def test_what_a_task_has_learned_without_an_operation_is_learned_again() -> None:
    def setup() -> None:
        spawn(looking, name="looking")
        spawn(filling, name="filling")

    world = RewindWorld()
    follower = Follower(Rewind(world, setup))
    run = follower.run
    looker, filler = run.unfinished
    assert run.run(looker, 3) == 3
    moment = world.now
    run.run(looker)
    run.run(filler)
    world.back(moment)
    run.run(filler)
    run.run(looker)
    assert follower.said == [("looking", None), ("looking", "looking:Node0"), ("looking", "end")]


def making() -> None:
    store = the(Store)
    while True:
        store.node = new(Node)
        call_rcu(free, store.node)


def test_nothing_grows_that_is_forgotten() -> None:
    world = RewindWorld()
    run = Rewind(world, lambda: spawn(making, name="maker"))
    (maker,) = run.unfinished
    sizes = []
    for turn in range(2 * TIMES):
        moment = world.now
        for again in (True, False):
            assert run.run(maker, 4) == 4
            for task in run.unfinished:
                if task is not maker:
                    run.run(task)
            if again:
                world.back(moment)
        assert run.unfinished == [maker]
        run.rest(maker)
        world.forget(None)
        if turn in (TIMES, 2 * TIMES - 1):
            while gc.collect():  # what one collection frees can let go of more
                pass
            mine = sum(isinstance(each, Object | Cell) for each in gc.get_objects())
            sizes.append((len(world.past), len(world.tasks), len(world.serials), mine))
    assert sizes[0] == sizes[1]
    assert sizes[0][2] <= QUARANTINE + 2


def test_nobody_goes_back_beyond_what_is_forgotten() -> None:
    world = RewindWorld()
    run = Rewind(world, lambda: spawn(filling, name="filling"))
    moment = world.now
    run.run(run.unfinished[0])
    world.forget(None)
    with pytest.raises(ModelError, match="forgotten"):
        world.back(moment)


def yielding() -> None:
    store = the(Store)
    write_lock(store.lock)
    trace(cond_resched_rwlock_write(store.lock))
    write_unlock(store.lock)


def choosing() -> None:
    trace(choose(3))


def test_whoever_follows_it_makes_the_choices_and_they_are_made_again() -> None:
    def setup() -> None:
        spawn(yielding, name="yielding")
        spawn(choosing, name="choosing")

    world = RewindWorld()
    follower = Follower(Rewind(world, setup))
    run = follower.run
    assert isinstance(run.memory, RewindMemory)
    run.memory.decide = lambda choice: int(isinstance(choice, Choose) and asks_to_yield(choice))
    first, second = run.unfinished
    run.run(first, 3)
    moment = world.now
    run.run(first)
    run.run(second)
    world.back(moment)
    run.memory.decide = lambda _choice: 2
    run.run(first)
    run.run(second)
    assert follower.said == [("yielding", True), ("choosing", 2)]


def accesses(run: Rewind, task: Task, operations: int) -> list[tuple[int, str, bool]]:
    """What so many operations of a task depend on: by the name of the object and of its field."""

    def name(access: Access) -> str:
        if isinstance(access.what, Cell):
            return access.what.label
        assert isinstance(access.what, tuple)
        return f"{access.what[0].name}.{access.what[1]}"

    assert isinstance(run.memory, RewindMemory)
    found: list[Access] = []
    run.memory.accesses = found
    run.run(task, operations)
    run.memory.accesses = None
    return [(access.operation, name(access), access.write) for access in found]


def counting() -> None:
    store = the(Store)
    store.count += 1
    Store.array.next_changed(store, 0, 9)
    store.array[4] = 1
    store.array[4] = 2


def test_what_operations_depend_on_is_told() -> None:
    run = Rewind(RewindWorld(), lambda: spawn(counting, name="counting"))
    assert accesses(run, run.unfinished[0], 4) == [
        (1, "Store.count", False),
        (2, "Store.count", True),
        (2, "Store.array", False),
        (3, "Store.array[4]", True),
        (3, "Store.array", True),
        (4, "Store.array[4]", True),
    ]


def test_what_a_task_waits_for_is_told_and_no_access() -> None:
    def setup() -> None:
        spawn(yielding, name="one")
        spawn(yielding, name="other")

    run = Rewind(RewindWorld(), setup)
    one, other = run.unfinished
    run.run(one, 1)
    assert accesses(run, other, 9) == []
    assert isinstance(run.memory, RewindMemory)
    assert [cell.label for cell in run.memory.waits_for] == ["Store.lock.holders"]
