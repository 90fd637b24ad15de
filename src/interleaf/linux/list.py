"""Doubly linked lists, and their RCU variants (include/linux/list.h, rculist.h, lib/list_debug.c, v6.12).

A list is a circle through its head; an entry is a `list_head` embedded in an object. Pointers are those of the
kernel, so corruption is real: `list_add` and `list_del` check the neighbours as CONFIG_DEBUG_LIST does (fatal,
as with CONFIG_BUG_ON_DATA_CORRUPTION), `list_del` poisons both pointers, `list_del_rcu` only `prev`, because
readers may still stand on the entry and follow `next`.

Accesses are marked where the kernel's are: writers store `next` with WRITE_ONCE (or publish it), everything else
is plain, and so two writers without a common lock are a data race. What a writer does before it publishes is one
operation, the publication another: readers, and writers without a lock, can come between.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, TypeVar

from interleaf.runtime import (
    Memory,
    Object,
    Plain,
    Violation,
    container_of,
    operation,
    read_marked,
    read_plain,
    routine,
)
from interleaf.runtime.cells import Cell
from interleaf.runtime.findings import ViolationRaised

from .rcu import rcu_dereference

T = TypeVar("T", bound=Object)


class Poison(enum.Enum):
    """What the pointers of a deleted entry hold (include/linux/poison.h)."""

    LIST_POISON1 = "LIST_POISON1"
    LIST_POISON2 = "LIST_POISON2"


LIST_POISON1 = Poison.LIST_POISON1
LIST_POISON2 = Poison.LIST_POISON2


class list_head(Object):
    """A list's head, or an entry's node. None is NULL: INIT_LIST_HEAD() a head before using it."""

    next = Plain[Any](None)
    prev = Plain[Any](None)


def _corrupt(message: str, node: Any) -> ViolationRaised:
    name = node.root.name if isinstance(node, list_head) else ""
    return ViolationRaised(Violation("list-corruption", message, True, name))


def _next(memory: Memory, node: list_head) -> Any:
    return memory.load(node, list_head.next, True)


def _prev(memory: Memory, node: list_head) -> Any:
    return memory.load(node, list_head.prev, True)


def _check_add(memory: Memory, new: list_head, prev: Any, next: Any) -> None:
    """__list_add_valid_or_report()"""
    memory.exercise("list-corruption")
    if not isinstance(prev, list_head) or not isinstance(next, list_head):
        raise _corrupt(f"list_add corruption: {new} is added between {_pointer(prev)} and {_pointer(next)}", new)
    if (found := _prev(memory, next)) is not prev:
        raise _corrupt(f"list_add corruption: {next}->prev should be {prev}, but is {_pointer(found)}", next)
    if (found := _next(memory, prev)) is not next:
        raise _corrupt(f"list_add corruption: {prev}->next should be {next}, but is {_pointer(found)}", prev)
    if new is prev or new is next:
        raise _corrupt(f"list_add double add: {new} is already there", new)


def _check_del(memory: Memory, entry: list_head) -> tuple[list_head, list_head]:
    """__list_del_entry_valid_or_report(); returns the neighbours."""
    memory.exercise("list-corruption")
    prev, next = _prev(memory, entry), _next(memory, entry)
    if not isinstance(next, list_head):
        raise _corrupt(f"list_del corruption: {entry}->next is {_pointer(next)}", entry)
    if not isinstance(prev, list_head):
        raise _corrupt(f"list_del corruption: {entry}->prev is {_pointer(prev)}", entry)
    if (found := _next(memory, prev)) is not entry:
        raise _corrupt(f"list_del corruption: {prev}->next should be {entry}, but is {_pointer(found)}", prev)
    if (found := _prev(memory, next)) is not entry:
        raise _corrupt(f"list_del corruption: {next}->prev should be {entry}, but is {_pointer(found)}", next)
    return prev, next


def _pointer(value: Any) -> str:
    return "NULL" if value is None else value.name if isinstance(value, Poison) else str(value)


def _link(memory: Memory, new: list_head, prev: Any, next: Any) -> None:
    """__list_add()"""
    _check_add(memory, new, prev, next)
    memory.store(next, list_head.prev, new, True)
    memory.store(new, list_head.next, next, True)
    memory.store(new, list_head.prev, prev, True)
    memory.store(prev, list_head.next, new)


def _unlink(memory: Memory, entry: list_head) -> None:
    """__list_del_entry()"""
    prev, next = _check_del(memory, entry)
    memory.store(next, list_head.prev, prev, True)
    memory.store(prev, list_head.next, next)


def _own(node: list_head, *_neighbours: list_head) -> Cell:
    return list_head.next.cell(node)


def _heads(_new: list_head, head: list_head) -> Cell:
    return list_head.next.cell(head)


@operation(focus=_own, words=lambda head, _: f"initialises {head}")
def INIT_LIST_HEAD(memory: Memory, head: list_head) -> None:
    """Make `head` an empty list."""
    memory.store(head, list_head.next, head)
    memory.store(head, list_head.prev, head)


@operation(focus=_heads, words=lambda new, head, _: f"adds {new} at the front of {head}")
def list_add(memory: Memory, new: list_head, head: list_head) -> None:
    """Insert `new` after `head`. The list's writers must exclude each other."""
    _link(memory, new, head, _next(memory, head))


@operation(focus=_heads, words=lambda new, head, _: f"adds {new} at the end of {head}")
def list_add_tail(memory: Memory, new: list_head, head: list_head) -> None:
    """Insert `new` before `head`, so at the end. The list's writers must exclude each other."""
    _link(memory, new, _prev(memory, head), head)


@operation(focus=_own, words=lambda entry, _: f"takes {entry} off its list")
def list_del(memory: Memory, entry: list_head) -> None:
    """Take `entry` off its list and poison its pointers. Nobody may stand on it."""
    _unlink(memory, entry)
    memory.store(entry, list_head.next, LIST_POISON1, True)
    memory.store(entry, list_head.prev, LIST_POISON2, True)


@operation(focus=_own, words=lambda entry, _: f"takes {entry} off its list and makes it an empty one")
def list_del_init(memory: Memory, entry: list_head) -> None:
    """Take `entry` off its list and leave it as an empty list of its own."""
    _unlink(memory, entry)
    memory.store(entry, list_head.next, entry)
    memory.store(entry, list_head.prev, entry)


@operation(focus=_heads, words=lambda entry, head, _: f"moves {entry} to the front of {head}")
def list_move(memory: Memory, entry: list_head, head: list_head) -> None:
    """Take `entry` off its list and insert it after `head`."""
    _unlink(memory, entry)
    _link(memory, entry, head, _next(memory, head))


@operation(focus=_heads, words=lambda entry, head, _: f"moves {entry} to the end of {head}")
def list_move_tail(memory: Memory, entry: list_head, head: list_head) -> None:
    """Take `entry` off its list and insert it before `head`."""
    _unlink(memory, entry)
    _link(memory, entry, _prev(memory, head), head)


def list_empty(head: list_head) -> bool:
    """Is there no entry? READ_ONCE(head->next), so it may be asked without a lock."""
    return read_marked(head, list_head.next) is head


def list_entry(node: list_head, cls: type[T]) -> T:
    """The object that `node` is embedded in."""
    return container_of(node, cls)


@operation(marked=False)
def _follow(memory: Memory, node: list_head, pointer: Any) -> None:
    """Follow a pointer that is no list node: an oops."""
    raise _corrupt(f"following {_pointer(pointer)} from {node}: the entry is on no list", node)


def _node(found: Any, came_from: list_head) -> list_head:
    if not isinstance(found, list_head):
        _follow(came_from, found)
    return found  # type: ignore[no-any-return]


@operation(marked=False)
def _stray(memory: Memory, node: list_head, cls: type[Object]) -> None:
    """Take for an entry what is none: an oops, or worse."""
    raise _corrupt(f"{node} is taken for the node of a {cls.__name__}: the walk has got onto another list", node)


def _entry(node: list_head, cls: type[T]) -> T:
    if not isinstance(node.__dict__.get("container"), cls):
        _stray(node, cls)
    return container_of(node, cls)


def list_first_entry_or_null(head: list_head, cls: type[T]) -> T | None:
    """The first object on the list, None if it is empty."""
    node = _node(read_marked(head, list_head.next), head)
    return None if node is head else _entry(node, cls)


def list_next_entry(node: list_head, cls: type[T]) -> T:
    """The object after `node`. At the end of the list there is none: ask list_is_last() before."""
    return _entry(_node(read_plain(node, list_head.next), node), cls)


def list_is_last(node: list_head, head: list_head) -> bool:
    """Is `node` the last entry of the list?"""
    return read_plain(node, list_head.next) is head


def list_for_each_entry(head: list_head, cls: type[T]) -> Iterator[T]:
    """The objects on the list, in order. The current one must stay on its list until the next step."""
    node = _node(read_plain(head, list_head.next), head)
    while node is not head:
        yield _entry(node, cls)
        node = _node(read_plain(node, list_head.next), node)


def list_for_each_entry_safe(head: list_head, cls: type[T]) -> Iterator[T]:
    """The objects on the list, in order; the current one may be deleted, the one after it may not."""
    node = _node(read_plain(head, list_head.next), head)
    while node is not head:
        following = _node(read_plain(node, list_head.next), node)
        yield _entry(node, cls)
        node = following


@operation(marked=False, words=lambda new, head, tail, _: f"prepares {new} for {head}")
def _prepare(memory: Memory, new: list_head, head: list_head, tail: bool) -> None:
    prev = _prev(memory, head) if tail else head
    next = head if tail else _next(memory, head)
    _check_add(memory, new, prev, next)
    memory.store(new, list_head.next, next, True)
    memory.store(new, list_head.prev, prev, True)


@operation(focus=_heads, words=lambda new, head, _: f"publishes {new} on {head}")
def _publish(memory: Memory, new: list_head, head: list_head) -> None:
    prev = _prev(memory, new)
    memory.store(prev, list_head.next, new)
    memory.order(list_head.next.cell(prev), release=True)
    memory.store(_next(memory, new), list_head.prev, new, True)


def list_add_rcu(new: list_head, head: list_head) -> None:
    """Insert `new` after `head`, where RCU readers may walk. Writers must exclude each other."""
    _prepare(new, head, False)
    _publish(new, head)


def list_add_tail_rcu(new: list_head, head: list_head) -> None:
    """Insert `new` before `head`, where RCU readers may walk. Writers must exclude each other."""
    _prepare(new, head, True)
    _publish(new, head)


@operation(marked=False, words=lambda entry, _: f"looks at the neighbours of {entry}")
def _neighbours(memory: Memory, entry: list_head) -> tuple[list_head, list_head]:
    prev, next = _check_del(memory, entry)
    memory.store(next, list_head.prev, prev, True)
    return prev, next


@operation(focus=_own, words=lambda entry, prev, next, _: f"takes {entry} off its list; readers may still stand on it")
def _retract(memory: Memory, entry: list_head, prev: list_head, next: list_head) -> None:
    memory.store(prev, list_head.next, next)
    memory.store(entry, list_head.prev, LIST_POISON2, True)


@routine
def list_del_rcu(entry: list_head) -> None:
    """Take `entry` off its list. Readers may stand on it: do not free or reuse it before a grace period."""
    prev, next = _neighbours(entry)
    _retract(entry, prev, next)


def list_first_or_null_rcu(head: list_head, cls: type[T], condition: bool = False) -> T | None:
    """The first object on the list, None if it is empty. In an RCU reader, or with `condition`."""
    node = _node(rcu_dereference(head, list_head.next, condition), head)
    return None if node is head else _entry(node, cls)


def list_next_or_null_rcu(head: list_head, node: list_head, cls: type[T], condition: bool = False) -> T | None:
    """The object after `node`, None at the end of the list. In an RCU reader, or with `condition`."""
    following = _node(rcu_dereference(node, list_head.next, condition), node)
    return None if following is head else _entry(following, cls)


def list_for_each_entry_rcu(head: list_head, cls: type[T], condition: bool = False) -> Iterator[T]:
    """The objects on the list, in order, while writers may change it. In an RCU reader, or with `condition`."""
    node = _node(rcu_dereference(head, list_head.next, condition), head)
    while node is not head:
        yield _entry(node, cls)
        node = _node(rcu_dereference(node, list_head.next, condition), node)


def objects_on(memory: Memory, head: list_head, cls: type[T]) -> Iterator[T]:
    """For the checks of properties, inside an operation: the objects on the list, up to where it is broken, if it
    is. No access of the model."""
    node, seen = memory.look(list_head.next.cell(head)), {head}
    while isinstance(node, list_head) and node not in seen and isinstance(node.root, cls):
        yield node.root
        seen.add(node)
        node = memory.look(list_head.next.cell(node))
