"""SRCU: readers that may sleep, each domain by itself."""

from __future__ import annotations

from typing import Any

from interleaf.linux.completion import complete, completion, wait_for_completion
from interleaf.linux.rcu import rcu_assign_pointer
from interleaf.linux.slab import kfree, kmem_cache_alloc
from interleaf.linux.srcu import (
    srcu_dereference,
    srcu_read_lock,
    srcu_read_unlock,
    srcu_struct,
    synchronize_srcu,
    synchronize_srcu_expedited,
)
from interleaf.runtime import Embedded, Marked, Object, Plain, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Slots(Object):
    """What the pointer points to."""

    freeable = True
    value = Plain(0)


class Vm(Object):
    """A pointer under SRCU."""

    srcu = Embedded(srcu_struct)
    other = Embedded(srcu_struct)
    slots = Plain[Any](None)
    go_on = Embedded(completion)
    seen = Marked(0)


def start() -> None:
    rcu_assign_pointer(the(Vm), Vm.slots, kmem_cache_alloc(Slots, value=1))


def read() -> None:
    vm = the(Vm)
    idx = srcu_read_lock(vm.srcu)
    vm.seen = srcu_dereference(vm, Vm.slots, vm.srcu).value
    srcu_read_unlock(vm.srcu, idx)


def read_asleep() -> None:
    vm = the(Vm)
    idx = srcu_read_lock(vm.srcu)
    slots = srcu_dereference(vm, Vm.slots, vm.srcu)
    wait_for_completion(vm.go_on)
    vm.seen = slots.value
    srcu_read_unlock(vm.srcu, idx)


def read_wrong_domain() -> None:
    vm = the(Vm)
    idx = srcu_read_lock(vm.other)
    srcu_dereference(vm, Vm.slots, vm.srcu)
    srcu_read_unlock(vm.other, idx)


def read_nested() -> None:
    vm = the(Vm)
    outer = srcu_read_lock(vm.srcu)
    inner = srcu_read_lock(vm.srcu)
    srcu_read_unlock(vm.srcu, outer)
    vm.seen = srcu_dereference(vm, Vm.slots, vm.srcu).value
    srcu_read_unlock(vm.srcu, inner)


def replace() -> Slots:
    vm = the(Vm)
    fresh = kmem_cache_alloc(Slots, value=2)
    old: Slots = srcu_dereference(vm, Vm.slots, vm.srcu, True)
    rcu_assign_pointer(vm, Vm.slots, fresh)
    return old


def replace_and_wait() -> None:
    old = replace()
    synchronize_srcu_expedited(the(Vm).srcu)
    kfree(old)


def replace_and_wait_for_the_wrong_ones() -> None:
    old = replace()
    synchronize_srcu(the(Vm).other)
    kfree(old)


def wait_then_let_go() -> None:
    synchronize_srcu(the(Vm).srcu)
    complete(the(Vm).go_on)


def wait_for_others_then_let_go() -> None:
    synchronize_srcu(the(Vm).other)
    complete(the(Vm).go_on)


def wait_in_reader() -> None:
    idx = srcu_read_lock(the(Vm).srcu)
    synchronize_srcu(the(Vm).srcu)
    srcu_read_unlock(the(Vm).srcu, idx)


def wait_in_reader_of_other() -> None:
    idx = srcu_read_lock(the(Vm).other)
    synchronize_srcu(the(Vm).srcu)
    srcu_read_unlock(the(Vm).other, idx)


def unlock_wrong_index() -> None:
    idx = srcu_read_lock(the(Vm).srcu)
    srcu_read_unlock(the(Vm).srcu, idx + 1)


def unlock_twice() -> None:
    idx = srcu_read_lock(the(Vm).srcu)
    srcu_read_unlock(the(Vm).srcu, idx)
    srcu_read_unlock(the(Vm).srcu, idx)


@CORPUS.good(Vm, seen={1, 2})
def srcu_freeing_after_a_grace_period() -> None:
    start()
    spawn(read, name="a")
    spawn(replace_and_wait, name="b")


@CORPUS.good(Vm, seen={1, 2})
def srcu_nested_readers_are_waited_for() -> None:
    start()
    spawn(read_nested, name="a")
    spawn(replace_and_wait, name="b")


@CORPUS.bad("use-after-free")
def srcu_waiting_for_the_wrong_readers() -> None:
    start()
    spawn(read, name="a")
    spawn(replace_and_wait_for_the_wrong_ones, name="b")


@CORPUS.bad("suspicious-rcu-usage")
def srcu_following_in_the_wrong_reader() -> None:
    start()
    spawn(read_wrong_domain, name="a")


@CORPUS.good(Vm, seen={1})
def srcu_readers_sleep_and_other_domains_do_not_wait() -> None:
    start()
    spawn(read_asleep, name="a")
    spawn(wait_for_others_then_let_go, name="b")


@CORPUS.bad("deadlock")
def srcu_waiting_for_a_reader_that_waits() -> None:
    start()
    spawn(read_asleep, name="a")
    spawn(wait_then_let_go, name="b")


@CORPUS.good()
def srcu_waiting_in_a_reader_of_another_domain() -> None:
    spawn(wait_in_reader_of_other, name="a")


@CORPUS.bad("lockdep")
def srcu_waiting_for_oneself() -> None:
    spawn(wait_in_reader, name="a")


@CORPUS.bad("lockdep")
def srcu_leaving_with_a_wrong_index() -> None:
    spawn(unlock_wrong_index, name="a")


@CORPUS.bad("lockdep")
def srcu_leaving_twice() -> None:
    spawn(unlock_twice, name="a")
