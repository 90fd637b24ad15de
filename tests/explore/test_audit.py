"""The search's assumptions are enforced: a model that breaks one of them gets no verdict."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from interleaf.explore.states import StateSearch
from interleaf.runtime import ModelError, choose, new, routine, spawn

from .programs import Counters, acquire, release

ticks = itertools.count()


def _looks_at_the_time(counters: Counters) -> None:
    counters.m = 1
    if next(ticks) % 3 == 0:
        counters.m = 2
    counters.m = 3


def nondeterministic() -> None:
    counters = new(Counters)
    for name in ("a", "b", "c"):
        spawn(_looks_at_the_time, counters, name=name)


seen: list[int] = []


@routine
def _remember(counters: Counters) -> None:
    seen.append(counters.m)


@routine
def _recall() -> int:
    return len(seen) % 3


def _through_a_global(counters: Counters) -> None:
    _remember(counters)
    if _recall():
        counters.m = 1
    else:
        counters.p = 1


def hidden_state() -> None:
    counters = new(Counters)
    for name in ("a", "b"):
        spawn(_through_a_global, counters, name=name)


class _Box:
    def __init__(self) -> None:
        self.value = 0


@routine
def _fill(box: _Box) -> None:
    box.value = 1


def _passes_a_mutable_object(counters: Counters) -> None:
    _fill(_Box())
    counters.m = 1


def mutable_argument() -> None:
    spawn(_passes_a_mutable_object, new(Counters), name="a")


@routine
def _returns_a_list() -> list[int]:
    return [1]


def _takes_a_list(counters: Counters) -> None:
    counters.m = _returns_a_list()[0]


def mutable_result() -> None:
    spawn(_takes_a_list, new(Counters), name="a")


@pytest.mark.parametrize("program", [nondeterministic, hidden_state])
def test_a_nondeterministic_model_is_caught(program: Any) -> None:
    search = StateSearch(program)
    with pytest.raises(ModelError, match=r"not deterministic|audit of the search failed|replay diverges"):
        search.run()


@pytest.mark.parametrize("program", [mutable_argument, mutable_result])
def test_mutable_values_may_not_cross_function_borders(program: Any) -> None:
    with pytest.raises(ModelError, match="not canonical"):
        StateSearch(program).run()


def _two_paths(counters: Counters, mine: int) -> None:
    for _ in range(3):
        acquire(counters.lock)
        counters.c[mine] = choose(2)
        release(counters.lock)


def honest() -> None:
    counters = new(Counters)
    for number in range(3):
        spawn(_two_paths, counters, number, name=f"t{number}")


def test_an_honest_model_is_audited_and_passes() -> None:
    outcome = StateSearch(honest).run()
    assert outcome.exhaustive
    assert outcome.audits > 10


def _waits(counters: Counters) -> None:
    acquire(counters.lock)
    acquire(counters.lock)


def stuck_setup() -> None:
    _waits(new(Counters))


def test_a_set_up_that_waits_for_ever_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="set-up waits for ever in acquire"):
        StateSearch(stuck_setup)
