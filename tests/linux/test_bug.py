from __future__ import annotations

from interleaf.linux.bug import BUG_ON, WARN_ON, WARN_ON_ONCE
from interleaf.runtime import Marked, Object, the

from .drive import run


class Global(Object):
    went_on = Marked(False)


def warn() -> None:
    assert WARN_ON(True, "first")
    assert WARN_ON_ONCE(True, "second")
    assert not WARN_ON(False, "third")
    assert not WARN_ON_ONCE(False, "fourth")
    BUG_ON(False, "fifth")
    the(Global).went_on = True


def bug() -> None:
    BUG_ON(True, "over")
    the(Global).went_on = True


def test_a_warning_goes_on() -> None:
    drive = run(warn)
    assert [(found.rule, found.message, found.fatal) for found in drive.violations] == [
        ("WARN", "WARN_ON(first)", False),
        ("WARN", "WARN_ON_ONCE(second)", False),
    ]
    assert drive.peek(drive.global_(Global), Global.went_on) is True


def test_a_bug_ends_it() -> None:
    drive = run(bug)
    assert [(found.rule, found.message, found.fatal) for found in drive.violations] == [("BUG", "BUG_ON(over)", True)]
    assert drive.peek(drive.global_(Global), Global.went_on) is False


def test_each_look_counts_as_a_chance_to_fail() -> None:
    exercised = run(warn).execution.world.exercised
    assert (exercised["WARN"], exercised["BUG"]) == (4, 1)
