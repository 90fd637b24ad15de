from __future__ import annotations

from collections.abc import Callable

import pytest

from interleaf.linux.list import (
    INIT_LIST_HEAD,
    LIST_POISON1,
    LIST_POISON2,
    list_add,
    list_add_rcu,
    list_add_tail,
    list_add_tail_rcu,
    list_del,
    list_del_init,
    list_del_rcu,
    list_empty,
    list_entry,
    list_first_entry_or_null,
    list_first_or_null_rcu,
    list_for_each_entry,
    list_for_each_entry_rcu,
    list_for_each_entry_safe,
    list_head,
    list_is_last,
    list_move,
    list_move_tail,
    list_next_entry,
    list_next_or_null_rcu,
    objects_on,
)
from interleaf.linux.rcu import rcu_read_lock, rcu_read_unlock
from interleaf.runtime import Const, Embedded, Marked, Memory, Object, free, new, operation, spawn, the

from .drive import Drive, run


class Entry(Object):
    freeable = True
    number = Const(int)
    link = Embedded(list_head)


class Global(Object):
    head = Embedded(list_head)
    other = Embedded(list_head)
    seen = Marked[object](None)


def heads() -> Global:
    shared = the(Global)
    INIT_LIST_HEAD(shared.head)
    INIT_LIST_HEAD(shared.other)
    return shared


def three(add: Callable[[list_head, list_head], object] = list_add_tail) -> tuple[Entry, Entry, Entry]:
    shared = heads()
    entries = (new(Entry, number=1), new(Entry, number=2), new(Entry, number=3))
    for entry in entries:
        add(entry.link, shared.head)
    return entries


def numbers(head: list_head) -> tuple[int, ...]:
    forwards = [entry.number for entry in list_for_each_entry(head, Entry)]
    backwards = []
    node = head.prev
    while node is not head:
        backwards.append(list_entry(node, Entry).number)
        node = node.prev
    assert backwards == forwards[::-1]
    return tuple(forwards)


def at_the_end() -> object:
    three()
    return numbers(the(Global).head)


def at_the_front() -> object:
    three(list_add)
    return numbers(the(Global).head)


def at_the_end_rcu() -> object:
    three(list_add_tail_rcu)
    return numbers(the(Global).head)


def at_the_front_rcu() -> object:
    three(list_add_rcu)
    return numbers(the(Global).head)


def deleting() -> object:
    first, second, third = three()
    head = the(Global).head
    list_del(second.link)
    after = numbers(head)
    list_del_rcu(first.link)
    list_del_init(third.link)
    return (after, numbers(head), list_empty(head), list_empty(third.link), list_empty(second.link))


def moving() -> object:
    first, second, third = three()
    head, other = the(Global).head, the(Global).other
    list_move(third.link, head)
    once = numbers(head)
    list_move_tail(first.link, other)
    list_move(second.link, other)
    return (once, numbers(head), numbers(other))


def looking() -> object:
    first, second, third = three()
    head = the(Global).head
    return (
        list_first_entry_or_null(head, Entry) is first,
        list_first_entry_or_null(the(Global).other, Entry),
        list_next_entry(first.link, Entry) is second,
        list_is_last(second.link, head),
        list_is_last(third.link, head),
    )


def looking_rcu() -> object:
    first, second, third = three()
    head = the(Global).head
    rcu_read_lock()
    found = (
        list_first_or_null_rcu(head, Entry) is first,
        list_first_or_null_rcu(the(Global).other, Entry),
        list_next_or_null_rcu(head, first.link, Entry) is second,
        list_next_or_null_rcu(head, third.link, Entry),
        tuple([entry.number for entry in list_for_each_entry_rcu(head, Entry)]),
    )
    rcu_read_unlock()
    return found


def poison_of_del() -> object:
    first, _, _ = three()
    list_del(first.link)
    return (first.link.next, first.link.prev)


def poison_of_del_rcu() -> object:
    first, second, _ = three()
    list_del_rcu(first.link)
    return (first.link.next is second.link, first.link.prev)


def freeing_all() -> object:
    three()
    for entry in list_for_each_entry_safe(the(Global).head, Entry):
        list_del(entry.link)
        free(entry)
    return list_empty(the(Global).head)


def condition_instead_of_reader() -> object:
    three()
    return len(list(list_for_each_entry_rcu(the(Global).head, Entry, True)))


@operation(marked=False)
def _numbers_on(memory: Memory, head: list_head) -> tuple[int, ...]:
    return tuple(entry.number for entry in objects_on(memory, head, Entry))


def seen_whole() -> object:
    three()
    return _numbers_on(the(Global).head)


def seen_up_to_poison() -> object:
    _first, second, third = three()
    list_del(third.link)
    second.link.next = third.link
    return _numbers_on(the(Global).head)


def seen_once_round() -> object:
    first, second, _third = three()
    second.link.next = first.link
    return _numbers_on(the(Global).head)


def seen_up_to_another_list() -> object:
    _first, second, _third = three()
    second.link.next = the(Global).other
    return _numbers_on(the(Global).head)


def keep(function: Callable[[], object]) -> None:
    the(Global).seen = function()


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (at_the_end, (1, 2, 3)),
        (at_the_front, (3, 2, 1)),
        (at_the_end_rcu, (1, 2, 3)),
        (at_the_front_rcu, (3, 2, 1)),
        (deleting, ((1, 3), (), True, True, False)),
        (moving, ((3, 1, 2), (3,), (2, 1))),
        (looking, (True, None, True, False, True)),
        (looking_rcu, (True, None, True, None, (1, 2, 3))),
        (poison_of_del, (LIST_POISON1, LIST_POISON2)),
        (poison_of_del_rcu, (True, LIST_POISON2)),
        (freeing_all, True),
        (condition_instead_of_reader, 3),
        (seen_whole, (1, 2, 3)),
        (seen_up_to_poison, (1, 2, 3)),
        (seen_once_round, (1, 2)),
        (seen_up_to_another_list, (1, 2)),
    ],
)
def test_results(function: Callable[[], object], result: object) -> None:
    drive = Drive(lambda: spawn(keep, function, name="a"))
    drive.finish_all()
    assert drive.violations == []
    assert drive.peek(drive.global_(Global), Global.seen) == result


def add_twice() -> None:
    first, _, _ = three()
    list_add(first.link, the(Global).head)


def add_again_at_the_end() -> None:
    _, _, third = three()
    list_add_tail(third.link, the(Global).head)


def add_to_null() -> None:
    list_add(new(Entry, number=1).link, the(Global).head)


def delete_twice() -> None:
    first, _, _ = three()
    list_del(first.link)
    list_del(first.link)


def delete_rcu_twice() -> None:
    first, _, _ = three()
    list_del_rcu(first.link)
    list_del_rcu(first.link)


def delete_unlinked() -> None:
    list_del(new(Entry, number=1).link)


def delete_misplaced() -> None:
    first, second, _ = three()
    list_add(first.link, the(Global).other)
    list_del(second.link)


def delete_overtaken() -> None:
    first, _, third = three()
    first.link.next = third.link
    list_del(first.link)


def add_before_misplaced() -> None:
    first, _, _ = three()
    first.link.prev = the(Global).other
    list_add(new(Entry, number=4).link, the(Global).head)


def follow_poison() -> None:
    first, _, _ = three()
    list_del(first.link)
    for _entry in list_for_each_entry(first.link, Entry):
        pass


def walk_onto_another_list() -> None:
    first, _, _ = three()
    for _entry in list_for_each_entry(the(Global).head, Entry):
        if _entry is first:
            list_move(first.link, the(Global).other)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (add_twice, "list_add double add: a:Entry0.link is already there"),
        (add_again_at_the_end, "list_add double add: a:Entry2.link is already there"),
        (add_to_null, "list_add corruption: a:Entry0.link is added between Global.head and NULL"),
        (delete_twice, "list_del corruption: a:Entry0.link->next is LIST_POISON1"),
        (delete_rcu_twice, "list_del corruption: a:Entry0.link->prev is LIST_POISON2"),
        (delete_unlinked, "list_del corruption: a:Entry0.link->next is NULL"),
        (
            delete_misplaced,
            "list_del corruption: a:Entry0.link->next should be a:Entry1.link, but is Global.other",
        ),
        (
            delete_overtaken,
            "list_del corruption: a:Entry2.link->prev should be a:Entry0.link, but is a:Entry1.link",
        ),
        (
            add_before_misplaced,
            "list_add corruption: a:Entry0.link->prev should be Global.head, but is Global.other",
        ),
        (follow_poison, "following LIST_POISON1 from a:Entry0.link: the entry is on no list"),
        (
            walk_onto_another_list,
            "Global.other is taken for the node of a Entry: the walk has got onto another list",
        ),
    ],
)
def test_corruption(function: Callable[[], object], message: str) -> None:
    [violation] = run(function).violations
    assert violation.rule == "list-corruption"
    assert violation.fatal
    assert violation.message == message


def test_publishing_is_a_scheduling_point_and_preparing_is_none() -> None:
    def one() -> None:
        list_add_rcu(new(Entry, number=1).link, heads().head)

    drive = Drive(lambda: spawn(one, name="a"))
    assert [(drive.step("a"), drive.pending("a"))[1] for _ in range(3)][1:] == ["INIT_LIST_HEAD", "_publish"]
