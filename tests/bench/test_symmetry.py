"""Orbits of states under the exchange of like tasks."""

from __future__ import annotations

from bench.symmetry import exchanges, orbits


def test_exchanges_leave_out_the_one_that_changes_nothing() -> None:
    assert list(exchanges((("a", "b"),))) == [{"a": "b", "b": "a"}]
    assert len(list(exchanges((("a", "b", "c"), ("d", "e"))))) == 11


def test_orbits_of_progress_are_multisets() -> None:
    # three tasks of two rounds: each has made 0, 1 or 2; the first and the last do alike
    assert orbits(("locks", "3", "2"), (("task0", "task2"),)) == (27, 18)


def test_without_like_tasks_each_state_is_an_orbit() -> None:
    assert orbits(("locks", "2", "2"), ()) == (9, 9)
