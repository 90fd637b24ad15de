"""Kernel threads: started, put to sleep, woken and stopped."""

from __future__ import annotations

from interleaf.linux.kthread import kthread_create, kthread_run, kthread_should_stop, kthread_stop
from interleaf.linux.sched import (
    TASK_INTERRUPTIBLE,
    TASK_RUNNING,
    schedule,
    set_current_state,
    wake_up_process,
)
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Marked, Object, Plain, checkpoint, routine, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Worker(Object):
    """What a thread does."""

    ran = Plain(0)
    work = Marked(0)
    lock = Embedded(spinlock_t)


def run() -> None:
    the(Worker).ran = 1


@routine
def sleep_until_stopped() -> None:
    while True:
        checkpoint()
        set_current_state(TASK_INTERRUPTIBLE)
        if kthread_should_stop():
            break
        schedule()
    set_current_state(TASK_RUNNING)
    the(Worker).ran = 1


@routine
def look_before_going_to_sleep() -> None:
    while not kthread_should_stop():
        checkpoint()
        set_current_state(TASK_INTERRUPTIBLE)
        schedule()
    the(Worker).ran = 1


def sleep_under_spinlock() -> None:
    spin_lock(the(Worker).lock)
    schedule()
    spin_unlock(the(Worker).lock)


def create_and_stop() -> None:
    kthread_stop(kthread_create(run, name="thread"))


def start_and_stop() -> None:
    kthread_stop(kthread_run(run, name="thread"))


def start_sleeper_and_stop() -> None:
    kthread_stop(kthread_run(sleep_until_stopped, name="thread"))


def start_careless_sleeper_and_stop() -> None:
    kthread_stop(kthread_run(look_before_going_to_sleep, name="thread"))


def create_and_forget() -> None:
    kthread_create(run, name="thread")


def create_and_wake() -> None:
    wake_up_process(kthread_create(run, name="thread"))


@CORPUS.good(Worker, ran={0})
def a_thread_stopped_before_it_was_woken_never_runs() -> None:
    spawn(create_and_stop, name="a")


@CORPUS.good(Worker, ran={0, 1})
def a_thread_stopped_early_may_never_run() -> None:
    spawn(start_and_stop, name="a")


@CORPUS.good(Worker, ran={1})
def a_thread_runs_once_it_is_woken() -> None:
    spawn(create_and_wake, name="a")


@CORPUS.bad("deadlock")
def a_thread_that_nobody_wakes() -> None:
    spawn(create_and_forget, name="a")


@CORPUS.good(Worker, ran={0, 1})
def stopping_a_thread_that_sleeps() -> None:
    spawn(start_sleeper_and_stop, name="a")


@CORPUS.bad("deadlock")
def stopping_a_thread_that_looks_too_early() -> None:
    spawn(start_careless_sleeper_and_stop, name="a")


@CORPUS.bad("sleeping-while-atomic")
def scheduling_under_a_spinlock() -> None:
    spawn(sleep_under_spinlock, name="a")
