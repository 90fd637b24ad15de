"""Completions and wait queues: nothing is missed, and nothing is waited for that never comes."""

from __future__ import annotations

from interleaf.linux.atomic import READ_ONCE, WRITE_ONCE
from interleaf.linux.completion import complete, complete_all, completion, reinit_completion, wait_for_completion
from interleaf.linux.wait import wait_event, wait_queue_head_t, wake_up
from interleaf.runtime import Embedded, Marked, Object, Plain, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Meeting(Object):
    """Somebody waits, somebody comes."""

    done = Embedded(completion)
    queue = Embedded(wait_queue_head_t)
    message = Plain(0)
    ready = Marked(False)
    seen = Marked(0)


def come() -> None:
    the(Meeting).message = 7
    complete(the(Meeting).done)


def come_alone() -> None:
    complete(the(Meeting).done)


def come_for_all() -> None:
    complete_all(the(Meeting).done)


def come_again() -> None:
    complete_all(the(Meeting).done)
    reinit_completion(the(Meeting).done)


def wait() -> None:
    wait_for_completion(the(Meeting).done)
    the(Meeting).seen = the(Meeting).message


def just_wait() -> None:
    wait_for_completion(the(Meeting).done)


def is_ready() -> bool:
    return READ_ONCE(the(Meeting), Meeting.ready)


def wait_until_ready() -> None:
    wait_event(the(Meeting).queue, is_ready)
    the(Meeting).seen = 1


def get_ready() -> None:
    WRITE_ONCE(the(Meeting), Meeting.ready, True)
    wake_up(the(Meeting).queue)


def wake_then_get_ready() -> None:
    wake_up(the(Meeting).queue)
    WRITE_ONCE(the(Meeting), Meeting.ready, True)


def get_ready_silently() -> None:
    WRITE_ONCE(the(Meeting), Meeting.ready, True)


def wake_for_nothing() -> None:
    wake_up(the(Meeting).queue)


@CORPUS.good(Meeting, seen={7})
def completion_passes_a_message() -> None:
    spawn(wait, name="a")
    spawn(come, name="b")


@CORPUS.bad("deadlock")
def one_completion_for_two() -> None:
    spawn(just_wait, name="a")
    spawn(just_wait, name="b")
    spawn(come, name="c")


@CORPUS.good()
def one_completion_each() -> None:
    spawn(just_wait, name="a")
    spawn(just_wait, name="b")
    spawn(come_alone, name="c")
    spawn(come_alone, name="d")


@CORPUS.good()
def completion_for_all() -> None:
    spawn(just_wait, name="a")
    spawn(just_wait, name="b")
    spawn(come_for_all, name="c")


@CORPUS.bad("deadlock")
def completion_taken_back() -> None:
    spawn(just_wait, name="a")
    spawn(come_again, name="b")


@CORPUS.good(Meeting, seen={1})
def waking_after_the_change() -> None:
    spawn(wait_until_ready, name="a")
    spawn(get_ready, name="b")


@CORPUS.good(Meeting, seen={1})
def waking_for_nothing_too() -> None:
    spawn(wait_until_ready, name="a")
    spawn(get_ready, name="b")
    spawn(wake_for_nothing, name="c")


@CORPUS.bad("deadlock")
def waking_before_the_change() -> None:
    spawn(wait_until_ready, name="a")
    spawn(wake_then_get_ready, name="b")


@CORPUS.bad("deadlock")
def not_waking() -> None:
    spawn(wait_until_ready, name="a")
    spawn(get_ready_silently, name="b")
