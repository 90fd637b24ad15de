"""Atomic operations, and which of them order what."""

from __future__ import annotations

from interleaf.linux.atomic import (
    READ_ONCE,
    WRITE_ONCE,
    atomic_dec_and_test,
    atomic_inc,
    atomic_inc_not_zero,
    atomic_set,
    atomic_t,
    cmpxchg,
    fetch_add,
    fetch_and,
    fetch_or,
    smp_load_acquire,
    smp_store_release,
    try_cmpxchg,
    xchg,
)
from interleaf.runtime import Embedded, Marked, Object, Plain, checkpoint, routine, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Box(Object):
    """A word, a message and a flag."""

    word = Marked(0)
    message = Plain(0)
    ready = Plain(0)
    seen = Marked(0)
    counter = Embedded(atomic_t)


def add() -> None:
    fetch_add(the(Box), Box.word, 1)


def read_then_write() -> None:
    box = the(Box)
    WRITE_ONCE(box, Box.word, READ_ONCE(box, Box.word) + 1)


@routine
def add_by_cmpxchg() -> None:
    box = the(Box)
    while True:
        checkpoint()
        old = READ_ONCE(box, Box.word)
        if try_cmpxchg(box, Box.word, old, old + 1):
            return


def claim(mine: int) -> None:
    if cmpxchg(the(Box), Box.word, 0, mine) == 0:
        the(Box).seen = mine


def swap(mine: int) -> None:
    if xchg(the(Box), Box.word, mine) == 0:
        the(Box).seen = mine


def set_high_bit() -> None:
    fetch_or(the(Box), Box.word, 0x100)


def clear_low_bits() -> None:
    fetch_and(the(Box), Box.word, ~0xFF)


def count() -> None:
    atomic_inc(the(Box).counter)
    atomic_inc(the(Box).counter)
    if atomic_dec_and_test(the(Box).counter):
        the(Box).word = 1
    if atomic_dec_and_test(the(Box).counter):
        fetch_add(the(Box), Box.seen, 1)


def take_unless_zero() -> None:
    if atomic_inc_not_zero(the(Box).counter):
        the(Box).seen = 1


def zero() -> None:
    atomic_set(the(Box).counter, 0)


def send_with_release() -> None:
    box = the(Box)
    box.message = 42
    smp_store_release(box, Box.ready, 1)


def receive_with_acquire() -> None:
    box = the(Box)
    if smp_load_acquire(box, Box.ready):
        box.seen = box.message


def send_marked() -> None:
    box = the(Box)
    box.message = 42
    WRITE_ONCE(box, Box.ready, 1)


def receive_marked() -> None:
    box = the(Box)
    if READ_ONCE(box, Box.ready):
        box.seen = box.message


def send_by_cmpxchg() -> None:
    box = the(Box)
    box.message = 42
    cmpxchg(box, Box.ready, 0, 1)


def receive_by_xchg() -> None:
    box = the(Box)
    if xchg(box, Box.ready, 2) == 1:
        box.seen = box.message


def receive_by_failed_cmpxchg() -> None:
    box = the(Box)
    if cmpxchg(box, Box.ready, 7, 8) == 1:
        box.seen = box.message


@CORPUS.good(Box, word={2})
def fetch_add_loses_nothing() -> None:
    spawn(add, name="a")
    spawn(add, name="b")


@CORPUS.good(Box, word={1, 2})
def read_and_write_lose_updates() -> None:
    spawn(read_then_write, name="a")
    spawn(read_then_write, name="b")


@CORPUS.good(Box, word={2})
def try_cmpxchg_loop_loses_nothing() -> None:
    spawn(add_by_cmpxchg, name="a")
    spawn(add_by_cmpxchg, name="b")


@CORPUS.good(Box, seen={1, 2})
def cmpxchg_has_one_winner() -> None:
    spawn(claim, 1, name="a")
    spawn(claim, 2, name="b")


@CORPUS.good(Box, seen={1, 2})
def xchg_has_one_first() -> None:
    spawn(swap, 1, name="a")
    spawn(swap, 2, name="b")


@CORPUS.good(Box, word={0x100})
def fetch_and_or_change_their_own_bits() -> None:
    the(Box).word = 0x0F
    spawn(set_high_bit, name="a")
    spawn(clear_low_bits, name="b")


@CORPUS.good(Box, seen={1, 2})
def the_last_of_atomic_dec_and_test() -> None:
    spawn(count, name="a")
    spawn(count, name="b")


@CORPUS.good(Box, seen={0, 1})
def inc_not_zero_leaves_zero_alone() -> None:
    atomic_set(the(Box).counter, 1)
    spawn(take_unless_zero, name="a")
    spawn(zero, name="b")


@CORPUS.good(Box, seen={0, 42})
def release_and_acquire_pass_a_message() -> None:
    spawn(send_with_release, name="a")
    spawn(receive_with_acquire, name="b")


@CORPUS.bad("data-race")
def write_once_and_read_once_do_not() -> None:
    spawn(send_marked, name="a")
    spawn(receive_marked, name="b")


@CORPUS.good(Box, seen={0, 42})
def cmpxchg_and_xchg_pass_a_message() -> None:
    spawn(send_by_cmpxchg, name="a")
    spawn(receive_by_xchg, name="b")


@CORPUS.bad("data-race")
def a_failed_cmpxchg_orders_nothing() -> None:
    spawn(send_by_cmpxchg, name="a")
    spawn(receive_by_failed_cmpxchg, name="b")
