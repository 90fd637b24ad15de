"""Call frames: what a task's state remembers, and what it forgets."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.runtime import (
    Execution,
    Marked,
    Memory,
    ModelError,
    Object,
    World,
    canonical,
    checkpoint,
    new,
    operation,
    read_marked,
    routine,
    spawn,
    write_marked,
)
from interleaf.runtime.carrier import Carrier


class Cellular(Object):
    x = Marked(0)
    y = Marked(0)


@operation(focus=Cellular.x.cell)
def clear(memory: Memory, cellular: Cellular) -> None:
    memory.store(cellular, Cellular.x, 0)


@routine
def peek_and_forget(obj: Cellular) -> None:
    read_marked(obj, Cellular.x)


@routine
def peek_and_tell(obj: Cellular) -> int:
    return read_marked(obj, Cellular.x)


def forgets(obj: Cellular) -> None:
    peek_and_forget(obj)
    obj.y = 1


def tells(obj: Cellular) -> None:
    peek_and_tell(obj)
    obj.y = 1


def inline(obj: Cellular) -> None:
    read_marked(obj, Cellular.x)
    obj.y = 1


@routine
def looping(obj: Cellular) -> None:
    while True:
        checkpoint()
        value = read_marked(obj, Cellular.x)
        if value > 5:
            break
        del value


def loops(obj: Cellular) -> None:
    looping(obj)


def tidy(obj: Cellular) -> None:
    try:
        read_marked(obj, Cellular.x)
    finally:
        write_marked(obj, Cellular.y, 1)


@routine
def in_for(obj: Cellular) -> None:
    for _ in range(2):
        checkpoint()
        obj.y = 1


@routine
def in_expression(obj: Cellular) -> None:
    _ = (obj, checkpoint())  # type: ignore[func-returns-value] # what a user might write
    obj.y = 1


def no_routine(obj: Cellular) -> None:
    checkpoint()
    obj.y = 1


def carrier_of(function: Any, flat: Any = False) -> Any:
    """A carrier for `function`, called with a new object."""
    world = World()
    Execution(world, lambda: spawn(forgets, new(Cellular), name="t")).close()
    obj = next(obj for obj in world.objects.values() if isinstance(obj, Cellular))
    return Carrier(world, world.tasks[-1], function, (obj,), flat)


def states_after(carrier: Any, results: Any = (0, 1, 2)) -> Any:
    """The states of the task before its second operation, for each result of the first."""
    states = set()
    for result in results:
        carrier.start()
        carrier.resume(result)
        states.add(carrier.state)
        carrier.kill()
    return states


def test_a_callee_that_tells_nothing_leaves_nothing() -> None:
    assert len(states_after(carrier_of(forgets))) == 1


@pytest.mark.parametrize("function", [tells, inline])
def test_a_result_that_the_function_knows_is_remembered(function: Any) -> None:
    assert len(states_after(carrier_of(function))) == 3


def test_a_flat_history_remembers_everything() -> None:
    assert len(states_after(carrier_of(forgets, flat=True))) == 3


def test_checkpoint_brings_a_loop_back_to_the_same_state() -> None:
    carrier = carrier_of(loops)
    carrier.start()
    states = []
    for result in (0, 1, 2):
        carrier.resume(result)
        states.append(carrier.state)
    carrier.kill()
    assert len(set(states)) == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (in_for, "inside a `for`"),
        (in_expression, "keeps hidden state"),
        (no_routine, "directly in a function decorated @routine"),
    ],
)
def test_checkpoint_refuses_to_stand_where_state_is_hidden(function: Any, message: Any) -> None:
    carrier = carrier_of(function)
    with pytest.raises(ModelError, match=message):
        carrier.start()


def test_a_carrier_is_rebuilt_by_feeding_it_its_results() -> None:
    carrier = carrier_of(tells)
    carrier.start()
    op = carrier.resume(4)
    state = carrier.state
    carrier.kill()
    again = carrier.start([4])
    assert carrier.state == state
    assert type(again) is type(op)
    assert again.site == op.site
    carrier.kill()


def test_clean_up_code_of_an_ended_greenlet_performs_nothing() -> None:
    carrier = carrier_of(tidy)
    carrier.start()
    carrier.kill()
    assert carrier.start().name == "read"
    carrier.kill()


@pytest.mark.parametrize("value", [1, "a", None, (1, (2,)), frozenset({1}), int, clear, Cellular.x])
def test_canonical_values_pass(value: Any) -> None:
    assert canonical(value, "here") is value


@pytest.mark.parametrize("value", [[1], {1: 2}, {1}, (1, [2]), 1.5, object()])
def test_values_that_can_change_or_differ_do_not(value: Any) -> None:
    with pytest.raises(ModelError, match=r"here: a value of type"):
        canonical(value, "here")
