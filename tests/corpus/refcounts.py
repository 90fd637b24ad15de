"""Reference counts: who may take one, who frees, and what saturation is for."""

from __future__ import annotations

from typing import Any

from interleaf.linux.atomic import WRITE_ONCE
from interleaf.linux.refcount import (
    REFCOUNT_SATURATED,
    refcount_dec,
    refcount_dec_and_test,
    refcount_inc,
    refcount_inc_not_zero,
    refcount_read,
    refcount_set,
    refcount_t,
)
from interleaf.linux.slab import kfree, kmem_cache_alloc
from interleaf.runtime import Embedded, Marked, Object, Plain, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Item(Object):
    """Counted, and freed by the last."""

    freeable = True
    refs = Embedded(refcount_t)
    value = Plain(0)


class Global(Object):
    """A count that nobody frees."""

    refs = Embedded(refcount_t)
    got = Marked(0)
    left = Marked[Any](None)


def put(item: Item) -> None:
    if refcount_dec_and_test(item.refs):
        WRITE_ONCE(item, Item.value, 0)
        kfree(item)


def use_and_put(item: Item) -> None:
    item.value
    put(item)


def get_and_put(item: Item) -> None:
    refcount_inc(item.refs)
    put(item)
    put(item)


def put_twice(item: Item) -> None:
    put(item)
    put(item)


def get() -> None:
    refcount_inc(the(Global).refs)


def try_to_get() -> None:
    if refcount_inc_not_zero(the(Global).refs):
        the(Global).got = 1


def drop() -> None:
    refcount_dec_and_test(the(Global).refs)


def drop_and_read() -> None:
    drop()
    the(Global).left = refcount_read(the(Global).refs)


def get_and_read() -> None:
    get()
    the(Global).left = refcount_read(the(Global).refs)


def drop_the_last_by_dec() -> None:
    refcount_dec(the(Global).refs)


def two_references() -> Item:
    item = kmem_cache_alloc(Item)
    refcount_set(item.refs, 2)
    return item


@CORPUS.good()
def the_last_frees() -> None:
    item = two_references()
    spawn(use_and_put, item, name="a")
    spawn(use_and_put, item, name="b")


@CORPUS.good()
def taking_one_more_by_an_owner() -> None:
    item = two_references()
    spawn(get_and_put, item, name="a")
    spawn(put, item, name="b")


@CORPUS.bad("use-after-free", "refcount")
def one_put_too_many() -> None:
    item = two_references()
    spawn(put_twice, item, name="a")
    spawn(put, item, name="b")


@CORPUS.good(Global, got={0, 1})
def inc_not_zero_against_the_last_put() -> None:
    refcount_set(the(Global).refs, 1)
    spawn(try_to_get, name="a")
    spawn(drop, name="b")


@CORPUS.bad("refcount")
def inc_against_the_last_put() -> None:
    refcount_set(the(Global).refs, 1)
    spawn(get, name="a")
    spawn(drop, name="b")


@CORPUS.bad("refcount")
def underflow() -> None:
    refcount_set(the(Global).refs, 1)
    spawn(drop, name="a")
    spawn(drop, name="b")


@CORPUS.bad("refcount")
def dec_that_reaches_zero() -> None:
    refcount_set(the(Global).refs, 1)
    spawn(drop_the_last_by_dec, name="a")


@CORPUS.bad("refcount")
def saturated_by_increment_from_zero() -> None:
    spawn(get_and_read, name="a")
    assert REFCOUNT_SATURATED < 0
