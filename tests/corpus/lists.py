"""Lists and RCU lists: corruption, poison, and readers on deleted entries."""

from __future__ import annotations

from interleaf.linux.list import (
    INIT_LIST_HEAD,
    list_add,
    list_add_rcu,
    list_add_tail,
    list_add_tail_rcu,
    list_del,
    list_del_init,
    list_del_rcu,
    list_empty,
    list_first_or_null_rcu,
    list_for_each_entry,
    list_for_each_entry_rcu,
    list_for_each_entry_safe,
    list_head,
    list_move_tail,
    list_next_entry,
    list_next_or_null_rcu,
)
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock, synchronize_rcu
from interleaf.linux.slab import kfree, kmem_cache_alloc
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Marked, Object, Plain, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Entry(Object):
    """On a list."""

    freeable = True
    link = Embedded(list_head)
    value = Plain(0)


class Lists(Object):
    """Two lists under one lock."""

    head = Embedded(list_head)
    other = Embedded(list_head)
    lock = Embedded(spinlock_t)
    seen = Marked[tuple[int, ...]](())


def empty_lists() -> Lists:
    lists = the(Lists)
    INIT_LIST_HEAD(lists.head)
    INIT_LIST_HEAD(lists.other)
    return lists


def entry_on_list(value: int = 1) -> Entry:
    entry = kmem_cache_alloc(Entry, value=value)
    list_add_tail(entry.link, the(Lists).head)
    return entry


def values() -> tuple[int, ...]:
    return tuple([entry.value for entry in list_for_each_entry(the(Lists).head, Entry)])


def add_locked(value: int) -> None:
    lists = the(Lists)
    entry = kmem_cache_alloc(Entry, value=value)
    spin_lock(lists.lock)
    list_add_tail(entry.link, lists.head)
    lists.seen = values()
    spin_unlock(lists.lock)


def add_rcu_unlocked(value: int) -> None:
    entry = kmem_cache_alloc(Entry, value=value)
    list_add_rcu(entry.link, the(Lists).head)
    if not list_empty(the(Lists).head):
        list_del_rcu(entry.link)


def add_tail_rcu(value: int) -> None:
    entry = kmem_cache_alloc(Entry, value=value)
    spin_lock(the(Lists).lock)
    list_add_tail_rcu(entry.link, the(Lists).head)
    spin_unlock(the(Lists).lock)


def move_and_take_back() -> None:
    lists = the(Lists)
    first, second = entry_on_list(1), entry_on_list(2)
    list_move_tail(first.link, lists.head)
    lists.seen = values()
    list_del_init(first.link)
    list_del(second.link)
    if not list_empty(lists.head) or not list_empty(first.link):
        lists.seen = ()


def empty_safely() -> None:
    lists = the(Lists)
    entry_on_list(1)
    entry_on_list(2)
    found = 0
    for entry in list_for_each_entry_safe(lists.head, Entry):
        found += entry.value
        list_del(entry.link)
        kfree(entry)
    lists.seen = (found,)


def empty_unsafely() -> None:
    entry_on_list(1)
    entry_on_list(2)
    for entry in list_for_each_entry(the(Lists).head, Entry):
        list_del(entry.link)


def add_twice() -> None:
    entry = entry_on_list()
    list_add(entry.link, the(Lists).head)


def add_to_two_lists() -> None:
    first = entry_on_list()
    second = entry_on_list(2)
    list_add(first.link, the(Lists).other)
    list_del(second.link)


def add_to_no_list() -> None:
    list_add(kmem_cache_alloc(Entry).link, the(Lists).head)


def delete_twice() -> None:
    entry = entry_on_list()
    list_del(entry.link)
    list_del(entry.link)


def delete_rcu_twice() -> None:
    entry = entry_on_list()
    list_del_rcu(entry.link)
    list_del_rcu(entry.link)


def delete_what_was_never_added() -> None:
    list_del(kmem_cache_alloc(Entry).link)


def next_of_deleted() -> None:
    entry = entry_on_list()
    list_del(entry.link)
    list_next_entry(entry.link, Entry)


def walk_rcu() -> None:
    rcu_read_lock()
    found = tuple([entry.value for entry in list_for_each_entry_rcu(the(Lists).head, Entry)])
    rcu_read_unlock()
    the(Lists).seen = found


def walk_rcu_by_hand() -> None:
    lists = the(Lists)
    rcu_read_lock()
    found: tuple[int, ...] = ()
    entry = list_first_or_null_rcu(lists.head, Entry)
    while entry is not None:
        found += (entry.value,)
        entry = list_next_or_null_rcu(lists.head, entry.link, Entry)
    rcu_read_unlock()
    lists.seen = found


def walk_rcu_without_reader() -> None:
    for _entry in list_for_each_entry_rcu(the(Lists).head, Entry):
        pass


def delete(entry: Entry) -> None:
    list_del(entry.link)


def delete_wait_free(entry: Entry) -> None:
    spin_lock(the(Lists).lock)
    list_del_rcu(entry.link)
    spin_unlock(the(Lists).lock)
    synchronize_rcu()
    kfree(entry)


def delete_free(entry: Entry) -> None:
    list_del_rcu(entry.link)
    kfree(entry)


@CORPUS.good(Lists, seen={(1, 2), (2, 1)})
def adding_under_a_lock() -> None:
    empty_lists()
    spawn(add_locked, 1, name="a")
    spawn(add_locked, 2, name="b")


@CORPUS.bad("list-corruption", "data-race")
def adding_without_a_lock() -> None:
    empty_lists()
    spawn(add_rcu_unlocked, 1, name="a")
    spawn(add_rcu_unlocked, 2, name="b")


@CORPUS.good(Lists, seen={(2, 1)})
def moving_and_taking_off() -> None:
    empty_lists()
    spawn(move_and_take_back, name="a")


@CORPUS.good(Lists, seen={(3,)})
def deleting_in_a_safe_walk() -> None:
    empty_lists()
    spawn(empty_safely, name="a")


@CORPUS.bad("list-corruption")
def deleting_in_an_unsafe_walk() -> None:
    empty_lists()
    spawn(empty_unsafely, name="a")


@CORPUS.bad("list-corruption")
def adding_twice() -> None:
    empty_lists()
    spawn(add_twice, name="a")


@CORPUS.bad("list-corruption")
def adding_to_two_lists() -> None:
    empty_lists()
    spawn(add_to_two_lists, name="a")


@CORPUS.bad("list-corruption")
def adding_to_an_uninitialised_list() -> None:
    spawn(add_to_no_list, name="a")


@CORPUS.bad("list-corruption")
def deleting_twice() -> None:
    empty_lists()
    spawn(delete_twice, name="a")


@CORPUS.bad("list-corruption")
def deleting_twice_with_rcu() -> None:
    empty_lists()
    spawn(delete_rcu_twice, name="a")


@CORPUS.bad("list-corruption")
def deleting_what_is_on_no_list() -> None:
    spawn(delete_what_was_never_added, name="a")


@CORPUS.bad("list-corruption")
def going_on_from_a_deleted_entry() -> None:
    empty_lists()
    spawn(next_of_deleted, name="a")


@CORPUS.good(Lists, seen={(), (1,)})
def publishing_to_readers() -> None:
    empty_lists()
    spawn(walk_rcu, name="a")
    spawn(add_tail_rcu, 1, name="b")


@CORPUS.good(Lists, seen={(2,), (1, 2)})
def deleting_under_readers() -> None:
    empty_lists()
    first = entry_on_list(1)
    entry_on_list(2)
    spawn(walk_rcu, name="a")
    spawn(delete_wait_free, first, name="b")


@CORPUS.good(Lists, seen={(2,), (1, 2)})
def deleting_under_a_reader_that_walks_by_hand() -> None:
    empty_lists()
    first = entry_on_list(1)
    entry_on_list(2)
    spawn(walk_rcu_by_hand, name="a")
    spawn(delete_wait_free, first, name="b")


@CORPUS.bad("list-corruption", "data-race")
def poisoning_next_under_readers() -> None:
    empty_lists()
    entry = entry_on_list(1)
    spawn(walk_rcu, name="a")
    spawn(delete, entry, name="b")


@CORPUS.bad("use-after-free")
def freeing_under_readers() -> None:
    empty_lists()
    entry = entry_on_list(1)
    spawn(walk_rcu, name="a")
    spawn(delete_free, entry, name="b")


@CORPUS.bad("suspicious-rcu-usage")
def walking_without_being_a_reader() -> None:
    empty_lists()
    entry_on_list(1)
    spawn(walk_rcu_without_reader, name="a")
