"""A replay keeps what a story needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interleaf.checking import narrated
from interleaf.runtime import ModelError
from interleaf.runtime.execution import Move
from tests.report.findings import finding, narration, stale_fault


def test_a_use_after_free_has_three_stacks() -> None:
    told = narration("use_after_free", "use-after-free")
    assert told.violation is not None
    life = told.lives[told.violation.object]
    assert told.used is not None
    assert life.freed is not None
    assert [stack.task for stack in (life.allocated, life.freed, told.used)] == ["setup", "owner", "reader"]
    assert [stack.calls[0][2] for stack in (life.allocated, life.freed, told.used)] == ["use_after_free", "drop", "use"]
    source = finding("use_after_free", "use-after-free").scenario.partition(":")[0]
    assert told.used.calls[0][0] == source


def test_operations_come_with_place_notes_and_changes() -> None:
    told = narration("use_after_free", "use-after-free")
    first = next(operation for operation in told.told if operation.notes)
    assert first.notes == (("the reader looks at the inode", "use"),)
    assert first.function == "use"
    freed = next(operation for operation in told.told if operation.operation == "free")
    assert [change.cell.label for change in freed.changes] == ["Inode0.life", "Inode0.size"]
    assert (freed.changes[1].before, freed.changes[1].after) == (3, 0)


def test_the_violating_operation_has_no_result_to_speak_of() -> None:
    told = narration("use_after_free", "use-after-free").told[-1]
    assert told.violations
    assert told.text == "reads Inode0.size"
    found, replay = stale_fault()
    assert replay.told[-1].violations[0].message == found.message
    assert "None" not in replay.told[-1].text


def test_steps_are_numbered_as_in_the_schedule() -> None:
    found, told = stale_fault()
    steps = [operation.step for operation in told.told if operation.step >= 0]
    assert steps == sorted(steps)
    assert set(steps) == set(range(len(found.schedule)))
    names = {operation.step: operation.task for operation in told.told}
    assert [names[step] for step in range(len(found.schedule))] == [move.task for move in found.schedule]


@pytest.mark.parametrize(
    ("scenario", "rule"),
    [("abba", "deadlock"), ("spin", "livelock"), ("race", "data-race"), ("abba", "lockdep")],
)
def test_every_kind_of_violation_is_seen_again(scenario: str, rule: str) -> None:
    found = finding(scenario, rule)
    told = narrated(found)
    assert told.violation is not None
    assert (told.violation.rule, told.violation.message) == (rule, found.message)


@pytest.mark.parametrize(("scenario", "rule"), [("abba", "deadlock"), ("race", "data-race"), ("spin", "livelock")])
def test_a_violation_that_is_not_there_is_not_seen(scenario: str, rule: str) -> None:
    found = finding(scenario, rule)
    told = narrated(replace(found, scenario=found.scenario.replace(scenario, "use_after_free"), schedule=()))
    assert told.violation is None


def test_another_message_is_another_violation() -> None:
    told = narrated(replace(finding("use_after_free", "use-after-free"), message="something else"))
    assert told.violation is None


def test_a_replay_that_diverges_names_step_and_task() -> None:
    found = finding("use_after_free", "use-after-free")
    with pytest.raises(ModelError, match=r"diverges at step 1: task stranger should run"):
        narrated(replace(found, schedule=(found.schedule[0], Move("stranger"))))


def test_the_roots_are_known_at_every_operation() -> None:
    _, told = stale_fault()
    before, after = told.told[0].roots, told.told[-1].roots
    assert before == ()
    [root] = after
    assert (root.invalid, root.listed, root.references) == (False, True, 2)
    assert root.mapped == ((0, 0x1000),)


def test_tables_are_known_by_their_level() -> None:
    _, told = stale_fault()
    assert sorted(told.levels.values()) == [1, 2, 3, 4]
