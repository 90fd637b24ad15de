from __future__ import annotations

from interleaf.linux.lockdep import lock
from interleaf.linux.rwlock import (
    cond_resched_rwlock_read,
    cond_resched_rwlock_write,
    read_lock,
    read_unlock,
    rwlock_needbreak,
    rwlock_t,
    write_lock,
    write_unlock,
)
from interleaf.runtime import Embedded, Marked, Memory, Object, operation, spawn, the

from .drive import Drive, conflict, run


class Shared(Object):
    lock = Embedded(rwlock_t)
    answer = Marked(False)


def read() -> None:
    read_lock(the(Shared).lock)
    read_unlock(the(Shared).lock)


def write() -> None:
    write_lock(the(Shared).lock)
    write_unlock(the(Shared).lock)


def two_readers_and_a_writer() -> None:
    spawn(read, name="a")
    spawn(read, name="b")
    spawn(write, name="w")


def yield_read() -> None:
    read_lock(the(Shared).lock)
    the(Shared).answer = cond_resched_rwlock_read(the(Shared).lock)
    read_unlock(the(Shared).lock)


def yield_write() -> None:
    write_lock(the(Shared).lock)
    the(Shared).answer = cond_resched_rwlock_write(the(Shared).lock)
    write_unlock(the(Shared).lock)


def reader_yields() -> None:
    spawn(yield_read, name="a")
    spawn(write, name="w")


def writer_yields() -> None:
    spawn(yield_write, name="a")
    spawn(read, name="b")


def twice() -> None:
    read_lock(the(Shared).lock)
    read_lock(the(Shared).lock)
    read_unlock(the(Shared).lock)
    write_unlock(the(Shared).lock)


def ask() -> None:
    the(Shared).answer = rwlock_needbreak(the(Shared).lock)


@operation(marked=False)
def note(memory: Memory, held: rwlock_t) -> None:
    memory.set(rwlock_t.done.element(held, memory.task), 1)


def read_and_note() -> None:
    read_lock(the(Shared).lock)
    note(the(Shared).lock)
    the(Shared).answer = True
    read_unlock(the(Shared).lock)


def write_and_note() -> None:
    write_lock(the(Shared).lock)
    note(the(Shared).lock)
    the(Shared).answer = rwlock_needbreak(the(Shared).lock)
    note(the(Shared).lock)
    write_unlock(the(Shared).lock)


def two_with_notes() -> None:
    spawn(read_and_note, name="a")
    spawn(read_and_note, name="b")
    spawn(write_and_note, name="w")


def noted(drive: Drive, *names: str) -> list[object]:
    held = drive.global_(Shared).lock
    tasks = [task for name in names for task in drive.execution.world.tasks if task.name == name]
    return [drive.execution.memory.peek(rwlock_t.done.element(held, task.index)) for task in tasks]


def test_what_is_noted_of_a_holder_is_forgotten_with_its_lock_and_not_with_that_of_another() -> None:
    drive = Drive(two_with_notes)
    for name in ("a", "b"):
        drive.until(name, "read_unlock")
    assert noted(drive, "a", "b") == [1, 1]
    drive.finish("a")
    assert noted(drive, "a", "b") == [None, 1]
    drive.finish("b")
    drive.finish("w")
    assert noted(drive, "a", "b", "w") == [None, None, None]


def test_what_is_noted_is_forgotten_where_the_lock_could_be_given_up() -> None:
    drive = Drive(two_with_notes)
    drive.step("w")
    assert noted(drive, "w") == [None]
    drive.step("w")
    assert noted(drive, "w") == [1]


def test_readers_share_and_a_writer_waits_for_all_of_them() -> None:
    drive = Drive(two_readers_and_a_writer)
    drive.step("a")
    assert drive.waits("w")
    drive.step("b")
    drive.finish("a")
    assert drive.waits("w")
    drive.finish("b")
    assert not drive.waits("w")
    assert drive.peek(drive.global_(Shared).lock, lock.holders) < 0


def test_a_writer_keeps_readers_out() -> None:
    drive = Drive(two_readers_and_a_writer)
    drive.step("w")
    assert drive.waits("a")
    drive.finish("w")
    assert not drive.waits("a")


def test_holders_are_the_readers() -> None:
    drive = Drive(two_readers_and_a_writer)
    a, b = drive.task("a"), drive.task("b")
    drive.step("a")
    drive.step("b")
    assert drive.peek(drive.global_(Shared).lock, lock.holders) == a.bit | b.bit


def test_readers_are_independent_of_each_other_and_not_of_a_writer() -> None:
    drive = Drive(two_readers_and_a_writer)
    lock_a, lock_b = drive.step("a"), drive.step("b")
    unlock_a, unlock_b = drive.step("a"), drive.step("b")
    write = drive.step("w")
    assert lock_a is not None
    assert lock_b is not None
    assert unlock_a is not None
    assert unlock_b is not None
    assert write is not None
    for one in (lock_a, unlock_a):
        for other in (lock_b, unlock_b):
            assert not conflict(one, other)
        assert conflict(one, write)


def test_a_reader_that_yields_lets_a_writer_in() -> None:
    drive = Drive(reader_yields)
    drive.step("a", 1)
    assert drive.pending("a") == "read_unlock"
    drive.step("a")
    drive.step("w")
    assert drive.waits("a")
    drive.finish("w")
    drive.finish("a")
    assert drive.peek(drive.global_(Shared), Shared.answer) is True


def test_a_reader_that_does_not_yield_says_so() -> None:
    drive = Drive(reader_yields)
    drive.step("a", 0)
    assert drive.waits("w")
    drive.finish("a")
    assert drive.peek(drive.global_(Shared), Shared.answer) is False


def test_a_writer_that_yields_lets_a_reader_in() -> None:
    drive = Drive(writer_yields)
    drive.step("a", 1)
    drive.step("a")
    drive.step("b")
    assert drive.waits("a")
    drive.finish("b")
    drive.finish("a")
    assert drive.peek(drive.global_(Shared), Shared.answer) is True
    assert drive.violations == []


def test_needbreak_is_a_choice() -> None:
    def setup() -> None:
        spawn(ask, name="a")

    for outcome in (0, 1):
        drive = Drive(setup)
        [first] = [drive.execution.step(drive.task("a"), (outcome,))]
        assert first is not None
        assert first.branches == [2]
        drive.finish("a")
        assert drive.peek(drive.global_(Shared), Shared.answer) is bool(outcome)


def test_a_recursive_reader_is_reported_and_counted() -> None:
    drive = run(twice)
    recursion, balance = drive.violations
    assert not recursion.fatal
    assert recursion.message.startswith("recursive read lock: a takes Shared.lock again in twice()")
    # one read_unlock() later it still holds the lock for reading
    assert balance.message.endswith("but holds it for reading")
