"""Objects, fields and their lives."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from interleaf.runtime import (
    Array,
    Const,
    Embedded,
    Execution,
    Marked,
    ModelError,
    Object,
    Plain,
    World,
    container_of,
    free,
    new,
    object_of,
    spawn,
    the,
)
from interleaf.runtime.cells import SERIAL_BITS
from interleaf.runtime.objects import show


class Inner(Object):
    value = Plain(3)


class Outer(Object):
    freeable = True
    name_of = Const(str, "none")
    inner = Embedded(Inner)
    flag = Marked(False)
    slots = Array(0)


class Bare(Object):
    value = Plain(0)


class Global(Object):
    count = Plain(7)


def run(body: Any) -> Any:
    """Run `body` as the only task; returns its step violations and the execution."""
    execution = Execution(World(), lambda: spawn(body, name="task"))
    (task,) = execution.unfinished
    while task in execution.unfinished and not (execution.steps and execution.steps[-1].fatal):
        assert execution.step(task) is not None
    return [violation for step in execution.steps for violation in step.violations], execution


@pytest.mark.parametrize(("value", "shown"), [(0x1000, "0x1000"), (255, "255"), (True, "True")])
def test_values_are_shown_for_people(value: Any, shown: str) -> None:
    assert show(value).startswith(shown)
    assert show(test_values_are_shown_for_people) == "test_values_are_shown_for_people"


def test_fields_start_with_their_defaults_and_keep_what_is_written() -> None:
    def body() -> None:
        outer = new(Outer, name_of="x")
        assert (outer.name_of, outer.flag, outer.inner.value, outer.slots[5]) == ("x", False, 3, 0)
        outer.flag = True
        outer.inner.value = 4
        outer.slots[5] = 6
        assert (outer.flag, outer.inner.value, outer.slots[5], outer.slots[6]) == (True, 4, 6, 0)

    violations, _ = run(body)
    assert not violations


def test_names_tell_who_made_the_object_and_are_stable() -> None:
    def body() -> None:
        assert str(new(Outer)) == "task:Outer0"
        assert str(new(Outer)) == "task:Outer1"
        assert str(new(Outer).inner) == "task:Outer2.inner"
        assert str(the(Global)) == "Global"

    run(body)


def test_a_failing_assertion_in_the_model_reaches_the_caller() -> None:
    def body() -> None:
        assert new(Outer).slots[0] == 1

    with pytest.raises(AssertionError):
        run(body)


def test_a_use_after_free_names_field_and_object() -> None:
    def body() -> None:
        outer = new(Outer)
        free(outer)
        outer.inner.value = 1

    (violation,), _ = run(body)
    assert violation.rule == "use-after-free"
    assert violation.message == "write to task:Outer0.inner.value: task:Outer0 is freed"
    assert violation.fatal


def test_a_double_free_is_a_violation() -> None:
    def body() -> None:
        outer = new(Outer)
        free(outer)
        free(outer)

    (violation,), _ = run(body)
    assert violation.rule == "double-free"


def test_only_whole_objects_of_freeable_classes_can_be_freed() -> None:
    def body() -> None:
        free(new(Outer).inner)

    with pytest.raises(ModelError, match="only an outermost object"):
        run(body)


def test_a_constant_cannot_be_changed() -> None:
    def body() -> None:
        new(Outer).name_of = "y"

    with pytest.raises(ModelError, match="declared Const"):
        run(body)


def test_an_unknown_field_is_named_with_the_known_ones() -> None:
    def body() -> None:
        new(Outer, colour=1)

    with pytest.raises(ModelError, match=r"no field 'colour'; it has name_of, flag"):
        run(body)


def test_container_of_leads_from_the_part_to_the_whole() -> None:
    def body() -> None:
        outer = new(Outer)
        assert container_of(outer.inner, Outer) is outer
        container_of(outer.inner, Bare)

    with pytest.raises(ModelError, match="not embedded in a Bare"):
        run(body)


def test_a_serial_leads_back_to_its_object() -> None:
    def body() -> None:
        one, two = new(Bare), new(Bare)
        assert one.serial != two.serial
        assert object_of(Bare, two.serial) is two

    violations, _ = run(body)
    assert not violations


def test_a_task_that_makes_too_many_objects_for_their_serials_is_refused() -> None:
    def body(number: int) -> None:
        for _ in range(number):
            new(Bare)

    assert not run(functools.partial(body, 1 << SERIAL_BITS))[0]
    with pytest.raises(ModelError, match="would be those of another task"):
        run(functools.partial(body, (1 << SERIAL_BITS) + 1))


def test_freeing_takes_an_object_out_of_the_hash_but_for_its_death() -> None:
    def writes() -> None:
        outer = new(Outer)
        outer.flag = True
        free(outer)

    def does_not_write() -> None:
        free(new(Outer))

    world = World()
    hashes = []
    for body in (writes, does_not_write):
        execution = Execution(world, functools.partial(spawn, body, name="task"))
        (task,) = execution.unfinished
        while execution.unfinished:
            execution.step(task)
        hashes.append(execution.memory.zobrist)
        execution.close()
    assert hashes[0] == hashes[1]


def test_shared_fields_need_a_task() -> None:
    _, execution = run(lambda: new(Bare))
    bare = next(obj for obj in execution.world.objects.values() if isinstance(obj, Bare))
    with pytest.raises(ModelError, match="outside a task"):
        _ = bare.value
