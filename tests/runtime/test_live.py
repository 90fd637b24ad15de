"""A live run does what an ordinary execution does, and forgets what is over."""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from interleaf.linux.rcu import call_rcu, rcu_read_lock, rcu_read_unlock, synchronize_rcu
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import (
    Array,
    Embedded,
    Execution,
    Live,
    LiveWorld,
    Marked,
    Memory,
    ModelError,
    Object,
    Plain,
    Task,
    Violation,
    World,
    choose,
    free,
    join,
    new,
    object_of,
    spawn,
    the,
    trace,
)
from interleaf.runtime.cells import SERIAL_BITS, Cell
from interleaf.runtime.live import CROWDED, QUARANTINE
from interleaf.runtime.objects import singleton
from tests.oracle.generate import MIXES, Generator

TURNS = 400
"""Operations after which a program is taken to spin for ever."""


class Node(Object):
    """Something that is made and freed in numbers."""

    freeable = True
    value = Plain(0)
    later: Marked[Node | None] = Marked(None)


class Store(Object):
    """What the tasks of these tests share."""

    lock = Embedded(spinlock_t)
    count = Plain(0)
    node: Marked[Node | None] = Marked(None)
    array = Array(0)


class Remembering(LiveWorld):
    """A live world that gives no index to two tasks, so that sets of tasks are those of an ordinary execution."""

    def leave_task(self, task: Task) -> None:
        """It keeps its index."""


def values(world: World, memory: Memory) -> dict[str, str]:
    """All values that are not as they were at first, in everything that can be reached."""
    found: dict[str, str] = {}
    queue: list[Any] = [*world.singletons.values(), *world.tasks]
    seen = set(queue)
    for reached in queue:
        for cell in reached.cells():
            value = memory.peek(cell)
            if value == cell.default:
                continue
            found[cell.label] = repr(value)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Object) and item.root not in seen:
                    seen.add(item.root)
                    queue.append(item.root)
    return found


def in_turns(run: Any, perform: Callable[[Task], bool], seed: int) -> Iterator[str]:
    """Perform one operation of a task after the other, chosen at random, while one can: the tasks' names."""
    rng = random.Random(seed)
    for _ in range(TURNS):
        tasks = sorted(run.unfinished, key=str)
        rng.shuffle(tasks)
        task = next((task for task in tasks if perform(task)), None)
        if task is None:
            return
        yield task.name


def both(setup: Callable[[], object], seed: int) -> tuple[list[Any], list[Any]]:
    """What an ordinary execution and a live run come to when their operations take turns in the same way."""
    return outcome(Execution(World(), setup), seed), outcome(Live(Remembering(), setup), seed)


def outcome(run: Execution | Live, seed: int) -> list[Any]:
    """Who had the turns, what was found, what the model said, and the values at the end."""
    found: list[Violation] = []
    said: list[tuple[str, object]] = []
    turns: list[str] = []
    run.world.listener = lambda task, record: said.append((task.name, record))

    def perform(task: Task) -> bool:
        if isinstance(run, Execution):
            step = run.step(task, (), 1)
            found.extend(step.violations if step is not None else ())
            return step is not None
        performed = run.run(task, 1)
        found.extend(run.violations)
        run.violations.clear()
        return performed > 0

    for name in in_turns(run, perform, seed):
        turns.append(name)
        if any(violation.fatal for violation in found):
            break
    known = values(run.world, run.memory)
    run.close()
    return [turns, [violation.signature for violation in found], said, known]


@pytest.mark.parametrize("mix", sorted(MIXES))
def test_random_programs_come_to_the_same(mix: str) -> None:
    generator = Generator(random.Random(5))
    lengths = set()
    for seed in range(40):
        ordinary, live = both(generator.program(mix).setup, seed)
        assert live == ordinary
        lengths.add(len(live[0]))
    assert len(lengths) > 5


def racing(number: int) -> None:
    """Publish nodes and retire them while another task does the same."""
    store = the(Store)
    for turn in range(3):
        spin_lock(store.lock)
        old = store.node
        node = new(Node, value=number + turn)
        store.node = node
        store.count += choose(2) + 1
        trace((number, turn, node.name))
        spin_unlock(store.lock)
        if old is not None:
            call_rcu(free, old)


def reading() -> None:
    rcu_read_lock()
    node = the(Store).node
    if node is not None:
        trace(node.value)
    rcu_read_unlock()
    synchronize_rcu()


def retiring() -> None:
    for number in (10, 20):
        spawn(racing, number, name=f"racer{number}")
    spawn(reading, name="reader")


@pytest.mark.parametrize("seed", range(20))
def test_what_is_traced_and_freed_is_the_same(seed: int) -> None:
    ordinary, live = both(retiring, seed)
    assert live == ordinary
    assert len(live[2]) >= 6


def stale() -> None:
    store = the(Store)
    node = new(Node)
    free(node)
    store.node = node
    trace(node.value)
    trace("not reached")


def test_a_fatal_violation_stops_its_task_alone() -> None:
    def setup() -> None:
        spawn(stale, name="bad")
        spawn(holding, name="good")

    run = Live(LiveWorld(), setup)
    bad, good = run.unfinished
    run.run(bad)
    assert [violation.rule for violation in run.violations] == ["use-after-free"]
    assert run.run(bad) == 0
    assert run.run(good) == 3
    assert run.unfinished == [bad]


def holding() -> None:
    store = the(Store)
    spin_lock(store.lock)
    trace("inside")
    spin_unlock(store.lock)


def test_a_task_gives_way_where_it_must_wait_and_where_it_is_stopped() -> None:
    def setup() -> None:
        spawn(holding, name="one")
        spawn(holding, name="other")

    world = LiveWorld()
    run = Live(world, setup)
    heard = []

    def listen(task: Task, record: object) -> None:
        heard.append(task.name)
        run.stop()

    world.listener = listen
    one, other = run.unfinished
    assert run.run(one) == 1
    assert heard == ["one"]
    assert run.run(other) == 0
    assert run.calls(other)[0][2] == "holding"
    assert run.run(one) == 2
    assert run.run(other) == 1
    assert heard == ["one", "other"]
    assert run.run(other) == 2
    assert run.unfinished == []


def test_a_violation_names_the_model_s_code() -> None:
    def setup() -> None:
        spawn(releasing, name="task")

    run = Live(LiveWorld(), setup)
    run.run(run.unfinished[0])
    assert "in releasing(), not holding it" in run.violations[0].message


def releasing() -> None:
    spin_unlock(the(Store).lock)


@pytest.mark.parametrize(
    ("reader", "what"), [(False, "violates a property: recursive locking"), (True, "waits for ever")]
)
def test_a_set_up_that_cannot_go_on_is_refused(reader: bool, what: str) -> None:
    def setup() -> None:
        if reader:
            spawn(holding, name="never runs")
            join(*[task for task in the(Store).world.tasks if task.name != "setup"])
        spin_lock(the(Store).lock)
        spin_lock(the(Store).lock)

    with pytest.raises(ModelError, match=what):
        Live(LiveWorld(), setup)


def making(number: int) -> None:
    store = the(Store)
    for _ in range(number):
        store.node = new(Node)
        call_rcu(free, store.node)
        trace(None)


def test_a_task_may_make_as_many_objects_as_it_likes_and_nothing_grows() -> None:
    world = LiveWorld()
    number = 4 << SERIAL_BITS
    run = Live(world, lambda: spawn(making, number, name="maker"))
    world.listener = lambda _task, _record: run.stop()
    (maker,) = run.unfinished
    sizes = []
    for turn in range(number + 1):
        run.run(maker)
        for task in run.unfinished:
            if task is not maker:
                run.run(task)
        if turn in (number // 2, number - 1):
            gc.collect()
            objects = sum(isinstance(each, Object) for each in gc.get_objects())
            cells = sum(isinstance(each, Cell) for each in gc.get_objects())
            sizes.append((objects, cells, len(world.tasks), len(world.objects), len(world.serials)))
    assert not run.unfinished
    assert not run.violations
    assert sizes[0] == sizes[1]
    assert sizes[0][-1] <= QUARANTINE + 2


def test_what_was_freed_lately_is_still_found_by_its_number() -> None:
    def setup() -> None:
        node = new(Node)
        number = node.serial
        free(node)
        del node
        gc.collect()
        found.append(object_of(Node, number).name)

    found: list[str] = []
    Live(LiveWorld(), setup)
    assert found == ["Node0"]


def filling(number: int) -> None:
    store = the(Store)
    for index in range(number):
        store.array[index] = 1
        store.array[index] = 0
    store.array[number] = 1
    for index in range(number):
        store.array[index] = 0


def test_elements_that_are_as_they_were_at_first_are_forgotten() -> None:
    world = LiveWorld()
    store = singleton(world, Store)
    used = Store.array.element(store, 7)
    run = Live(world, functools.partial(filling, 3 * CROWDED))
    assert Store.array.element(store, 7) is used
    assert len(Store.array.touched(store)) <= CROWDED
    assert run.memory.peek(Store.array.element(store, 3 * CROWDED)) == 1
