from __future__ import annotations

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
from interleaf.runtime import Embedded, Object, the

from .drive import Drive, run


class Global(Object):
    refs = Embedded(refcount_t)


def left(drive: Drive) -> int:
    value = drive.peek(drive.global_(Global).refs, refcount_t.refs)
    assert isinstance(value, int)
    return value


def up_and_down() -> None:
    refs = the(Global).refs
    refcount_set(refs, 1)
    refcount_inc(refs)
    assert refcount_inc_not_zero(refs)
    assert refcount_read(refs) == 3
    refcount_dec(refs)
    assert not refcount_dec_and_test(refs)
    assert refcount_dec_and_test(refs)
    assert not refcount_inc_not_zero(refs)


def inc_from_zero() -> None:
    refcount_inc(the(Global).refs)


def underflow() -> None:
    assert not refcount_dec_and_test(the(Global).refs)


def dec_to_zero() -> None:
    refcount_set(the(Global).refs, 1)
    refcount_dec(the(Global).refs)


def dec_below_zero() -> None:
    refcount_dec(the(Global).refs)


def go_on_when_saturated() -> None:
    refs = the(Global).refs
    refcount_inc(refs)
    refcount_inc(refs)
    assert refcount_inc_not_zero(refs)
    assert not refcount_dec_and_test(refs)


def test_up_and_down() -> None:
    drive = run(up_and_down)
    assert drive.violations == []
    assert left(drive) == 0


def test_increment_from_zero_saturates() -> None:
    drive = run(inc_from_zero)
    [violation] = drive.violations
    assert (violation.rule, violation.fatal) == ("refcount", False)
    assert violation.message == "Global.refs in inc_from_zero(): increment from 0; use after free"
    assert left(drive) == REFCOUNT_SATURATED


def test_underflow_saturates_and_is_not_the_last_reference() -> None:
    drive = run(underflow)
    assert [violation.message for violation in drive.violations] == [
        "Global.refs in underflow(): underflow; use after free"
    ]
    assert left(drive) == REFCOUNT_SATURATED


def test_dec_must_not_reach_zero() -> None:
    drive = run(dec_to_zero)
    assert "decrement hit 0" in drive.violations[0].message
    assert left(drive) == REFCOUNT_SATURATED
    assert "underflow" in run(dec_below_zero).violations[0].message


def test_a_saturated_count_stays_saturated() -> None:
    drive = run(go_on_when_saturated)
    assert [violation.message.partition(": ")[2] for violation in drive.violations] == [
        "increment from 0; use after free",
        "saturated; leaks memory",
        "saturated; leaks memory",
        "underflow; use after free",
    ]
    assert left(drive) == REFCOUNT_SATURATED


def test_in_words() -> None:
    assert run(up_and_down).story == [
        "a Global.refs = 1",
        "a Global.refs + 1",
        "a Global.refs + 1",
        "a Global.refs == 3",
        "a Global.refs - 1",
        "a Global.refs - 1, is not 0",
        "a Global.refs - 1, is 0 now",
        "a Global.refs is 0, no reference taken",
        "a ends",
    ]
