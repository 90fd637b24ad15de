from __future__ import annotations

from interleaf.linux.completion import (
    COMPLETED_FOR_ALL,
    complete,
    complete_all,
    completion,
    reinit_completion,
    wait_for_completion,
)
from interleaf.runtime import Embedded, Object, spawn, the

from .drive import Drive


class Global(Object):
    done = Embedded(completion)


def wait() -> None:
    wait_for_completion(the(Global).done)


def come() -> None:
    complete(the(Global).done)


def come_for_all() -> None:
    complete_all(the(Global).done)
    complete(the(Global).done)


def again() -> None:
    reinit_completion(the(Global).done)


def program() -> None:
    spawn(wait, name="a")
    spawn(wait, name="b")
    spawn(come, name="c")
    spawn(come_for_all, name="all")
    spawn(again, name="again")


def test_one_completion_lets_one_go() -> None:
    drive = Drive(program)
    drive.step("a")
    assert drive.waits("a")
    drive.finish("c")
    drive.finish("b")
    assert drive.waits("a")


def test_complete_all_lets_all_go_until_it_is_taken_back() -> None:
    drive = Drive(program)
    drive.finish("all")
    assert drive.peek(drive.global_(Global).done, completion.done) == COMPLETED_FOR_ALL
    drive.finish("a")
    drive.finish("again")
    drive.step("b")
    assert drive.waits("b")
