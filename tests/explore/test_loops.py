"""Fair loops are found, and only those; each with a way round that can be replayed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.explore.outcome import Found
from interleaf.explore.states import Options, StateSearch
from interleaf.runtime import Execution, Marked, Object, again, checkpoint, choose, new, routine, spawn
from interleaf.runtime.cells import World

from .programs import Lock, acquire, release


class Flags(Object):
    turn = Marked(0)
    busy = Marked(0)
    over = Marked(0)


@routine
def _wait_for_turn(flags: Flags, mine: int) -> None:
    while flags.turn != mine:
        checkpoint()


@routine
def _after_you(flags: Flags, mine: int) -> None:
    """Gives way for as long as it is asked to."""
    while True:
        checkpoint()
        if not choose(2, "gives way"):
            return
        flags.turn = 1 - mine
        _wait_for_turn(flags, mine)


@routine
def _spin(flags: Flags) -> None:
    while not flags.over:
        checkpoint()


@routine
def _end(flags: Flags) -> None:
    flags.busy = 1
    flags.over = 1


@routine
def _lock_and_look(flags: Flags, lock: Lock) -> None:
    done = 0
    while not done:
        checkpoint()
        acquire(lock)
        done = flags.over
        release(lock)


@routine
def _lock_and_end(flags: Flags, lock: Lock) -> None:
    acquire(lock)
    flags.over = 1
    release(lock)


@routine
def _bump(flags: Flags) -> None:
    flags.busy = flags.busy + 1
    flags.busy = flags.busy - 1


@routine
def _storm(flags: Flags) -> None:
    """Is busy now and then, for as long as it is asked to."""
    while True:
        checkpoint()
        flags.busy = 1
        flags.busy = 0
        if not again("one more"):
            return


@routine
def _wait_until_idle(flags: Flags) -> None:
    while flags.busy:
        checkpoint()


@routine
def _ask_for_ever(flags: Flags) -> None:
    while choose(2, "once more"):
        checkpoint()


def two_give_way_to_each_other() -> None:
    flags = new(Flags)
    spawn(_after_you, flags, 0, name="one")
    spawn(_after_you, flags, 1, name="other")


def spinning_until_another_ends_it() -> None:
    flags = new(Flags)
    spawn(_spin, flags, name="spinner")
    spawn(_end, flags, name="other")


def spinning_beside_nobody_who_ends_it() -> None:
    flags = new(Flags)
    spawn(_bump, flags, name="other")
    spawn(_spin, flags, name="spinner")


def spinning_on_a_lock_that_another_wants() -> None:
    flags, lock = new(Flags), new(Lock)
    spawn(_lock_and_look, flags, lock, name="spinner")
    spawn(_lock_and_end, flags, lock, name="other")


def waiting_in_a_storm() -> None:
    flags = new(Flags)
    spawn(_storm, flags, name="storm")
    spawn(_wait_until_idle, flags, name="waiter")


def two_storms() -> None:
    flags = new(Flags)
    spawn(_storm, flags, name="one")
    spawn(_storm, flags, name="other")


def asked_alone() -> None:
    spawn(_ask_for_ever, new(Flags), name="asked")


EXPECTED: tuple[tuple[Callable[[], None], set[str]], ...] = (
    (two_give_way_to_each_other, {"livelock"}),
    (spinning_until_another_ends_it, set()),
    (spinning_beside_nobody_who_ends_it, {"livelock"}),
    (spinning_on_a_lock_that_another_wants, set()),
    (waiting_in_a_storm, {"starvation"}),
    (two_storms, set()),
    (asked_alone, set()),
)


def _loops(program: Callable[[], None], options: Options | None = None) -> list[Found]:
    outcome = StateSearch(program, options=options).run()
    assert outcome.exhaustive, outcome.stopped
    return [found for found in outcome.found if found.violation.rule in ("livelock", "starvation")]


@pytest.mark.parametrize(("program", "rules"), EXPECTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_loop_is_reported_if_and_only_if_a_fair_scheduler_can_stay_in_it(
    program: Callable[[], None], rules: set[str]
) -> None:
    for sleep in (True, False):
        for locks in (True, False):
            found = _loops(program, Options(sleep=sleep, locks=locks))
            assert {one.violation.rule for one in found} == rules, (sleep, locks)


def test_a_loop_names_who_goes_round_and_who_starves() -> None:
    (found,) = _loops(waiting_in_a_storm)
    assert found.violation.message == "storm goes on and on; waiter retries for ever (_wait_until_idle)"


@pytest.mark.parametrize("program", [two_give_way_to_each_other, waiting_in_a_storm])
def test_the_schedule_leads_round_the_loop_once(program: Callable[[], None]) -> None:
    for found in _loops(program):
        run = Execution(World(), program)
        states = [
            (run.memory.zobrist, tuple(carrier.state for carrier in run.carriers.values()))
            for _ in run.replay(found.schedule)
        ]
        run.close()
        assert states[-1] in states[:-1]
