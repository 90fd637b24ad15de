from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.linux.atomic import (
    READ_ONCE,
    WRITE_ONCE,
    atomic_add,
    atomic_add_return,
    atomic_cmpxchg,
    atomic_dec,
    atomic_dec_and_test,
    atomic_dec_return,
    atomic_fetch_add,
    atomic_inc,
    atomic_inc_not_zero,
    atomic_inc_return,
    atomic_read,
    atomic_set,
    atomic_sub,
    atomic_sub_return,
    atomic_t,
    atomic_xchg,
    cmpxchg,
    fetch_add,
    fetch_and,
    fetch_or,
    smp_load_acquire,
    smp_store_release,
    try_cmpxchg,
    wrap,
    xchg,
)
from interleaf.runtime import Array, Embedded, Marked, Object, Plain, spawn, the

from .drive import Drive, run


class Box(Object):
    word = Plain(0)
    table = Array(0)
    counter = Embedded(atomic_t)
    result = Marked(0)


def once() -> int:
    WRITE_ONCE(the(Box), Box.word, 5)
    return READ_ONCE(the(Box), Box.word)


def ordered() -> int:
    smp_store_release(the(Box), Box.word, 6)
    return smp_load_acquire(the(Box), Box.word)


def exchanges() -> tuple[int, ...]:
    box = the(Box)
    return (
        xchg(box, Box.word, 1),
        cmpxchg(box, Box.word, 1, 2),
        cmpxchg(box, Box.word, 1, 3),
        try_cmpxchg(box, Box.word, 2, 4),
        try_cmpxchg(box, Box.word, 2, 5),
        box.word,
    )


def elements() -> tuple[int, ...]:
    box = the(Box)
    return (xchg(box, Box.table[7], 1), fetch_or(box, Box.table[7], 6), box.table[7], box.table[8])


def fetches() -> tuple[int, ...]:
    box = the(Box)
    return (
        fetch_add(box, Box.word, 1 << 63),
        fetch_or(box, Box.word, 3),
        fetch_and(box, Box.word, ~2),
        box.word,
    )


def counting() -> tuple[int, ...]:
    v = the(Box).counter
    atomic_set(v, 10)
    atomic_inc(v)
    atomic_dec(v)
    atomic_add(5, v)
    atomic_sub(3, v)
    return (
        atomic_read(v),
        atomic_fetch_add(1, v),
        atomic_add_return(1, v),
        atomic_sub_return(2, v),
        atomic_inc_return(v),
        atomic_dec_return(v),
        atomic_xchg(v, 1),
        atomic_cmpxchg(v, 2, 3),
        atomic_cmpxchg(v, 1, 3),
        atomic_inc_not_zero(v),
        atomic_dec_and_test(v),
        atomic_xchg(v, 1),
        atomic_dec_and_test(v),
        atomic_inc_not_zero(v),
        atomic_read(v),
    )


def overflow() -> int:
    v = the(Box).counter
    atomic_set(v, 0x7FFF_FFFF)
    return atomic_inc_return(v)


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (once, 5),
        (ordered, 6),
        (exchanges, (0, 1, 2, True, False, 4)),
        (elements, (0, 1, 7, 0)),
        (fetches, (0, 1 << 63, 1 << 63 | 3, 1 << 63 | 1)),
        (counting, (12, 12, 14, 12, 13, 12, 12, 1, 1, True, False, 3, True, False, 0)),
        (overflow, -0x8000_0000),
    ],
)
def test_results(function: Callable[[], object], result: object) -> None:
    drive = Drive(lambda: spawn(keep, function, name="a"))
    drive.finish_all()
    assert drive.peek(drive.global_(Box), Box.result) == result


def keep(function: Callable[[], int]) -> None:
    the(Box).result = function()


def failing() -> None:
    cmpxchg(the(Box), Box.word, 1, 0x1000)
    xchg(the(Box), Box.word, 0x1000)
    cmpxchg(the(Box), Box.word, 0x1000, 1)
    fetch_and(the(Box), Box.word, 0)
    atomic_inc(the(Box).counter)


def test_in_words() -> None:
    assert run(failing).story == [
        "a cmpxchg Box.word fails: it is 0, not 1",
        "a xchg Box.word: 0 -> 0x1000",
        "a cmpxchg Box.word: 0x1000 -> 1",
        "a Box.word &= 0 (was 1)",
        "a Box.counter.counter += 1",
        "a ends",
    ]


def test_a_failed_cmpxchg_writes_nothing() -> None:
    drive = Drive(lambda: spawn(failing, name="a"))
    failed, succeeded = drive.step("a"), drive.step("a")
    assert failed is not None
    assert succeeded is not None
    assert not failed.writes
    assert succeeded.writes


def test_every_access_is_a_scheduling_point() -> None:
    assert len(run(exchanges).steps) == 5


@pytest.mark.parametrize(("value", "wrapped"), [(0, 0), (1 << 31, -(1 << 31)), ((1 << 32) + 5, 5), (-1, -1)])
def test_wrap(value: int, wrapped: int) -> None:
    assert wrap(value) == wrapped
