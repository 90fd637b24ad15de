"""Steps that are known need not be made again, and change nothing in what is found."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.explore import machine
from interleaf.explore.known import Table
from interleaf.explore.states import StateSearch
from interleaf.runtime import Memory, ModelError, Object, Plain, new, operation, spawn

from .programs import (
    choosing,
    deadlocking,
    freeing_without_order,
    lock_benchmark,
    plain_worker,
    racy_worker,
    spinning_for_ever,
)

PROGRAMS = {
    "locks": lock_benchmark(3, 3),
    "racy": lock_benchmark(3, 2, racy_worker),
    "plain": lock_benchmark(3, 2, plain_worker),
    "deadlock": deadlocking,
    "choices": choosing,
    "free": freeing_without_order,
    "spin": spinning_for_ever,
}


def searched(setup: Any, remember: bool) -> Any:
    search = StateSearch(setup)
    search.machine.remember = remember
    outcome = search.run()
    search.close()
    return search, outcome


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_search_is_the_same_with_known_steps(name: str) -> None:
    (_, one), (_, other) = (searched(PROGRAMS[name], remember) for remember in (True, False))
    assert one.exhaustive
    for what in ("states", "transitions", "executions", "depth", "restarts", "found"):
        assert getattr(one, what) == getattr(other, what), what


def test_most_steps_of_a_larger_search_are_known() -> None:
    search, outcome = searched(lock_benchmark(4, 4), True)
    assert search.machine.taken > outcome.transitions / 2


def test_steps_that_are_made_again_are_not_kept_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for checked in (2, 1 << 30):
        monkeypatch.setattr(machine, "CHECKED", checked)
        search, _ = searched(lock_benchmark(3, 3), True)
        assert search.machine.taken > 100
        kept.append(sum(len(node.glued_in) for node in search.machine.automata.nodes.values()))
    assert kept[0] == kept[1] > 0


class Tally(Object):
    count = Plain(0)
    other = Plain(0)


@operation()
def peeps(memory: Memory, tally: Tally) -> None:
    """Depends on a value behind the memory's back."""
    value = memory.values[Tally.other.cell(tally).index]
    memory.store(tally, Tally.count, value)


@operation()
def adds(memory: Memory, tally: Tally) -> None:
    memory.store(tally, Tally.other, memory.load(tally, Tally.other) + 1)


def _peeping() -> None:
    tally = new(Tally)
    for number in range(3):
        spawn(peeps, tally, name=f"peeps{number}")
        spawn(adds, tally, name=f"adds{number}")


def test_a_known_step_that_comes_out_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CHECKED", 1)
    with pytest.raises(ModelError, match=r"comes out with other values|ended in another state"):
        searched(_peeping, True)


def test_a_table_finds_things_by_the_values_of_their_own_cells() -> None:
    table: Table[str] = Table()
    table.put({0: "a", 2: "c"}).append("by two")
    table.put({1: "b"}).append("by one")
    table.put({}).append("by none")
    assert table.find(["a", "x", "c"]) == ["by two"]
    assert table.find(["x", "b", "c"]) == ["by one"]
    assert table.find(["x", "x", "x"]) == ["by none"]
