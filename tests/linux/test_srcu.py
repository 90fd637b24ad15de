from __future__ import annotations

from interleaf.linux.srcu import NESTING, srcu_read_lock, srcu_read_unlock, srcu_struct, synchronize_srcu
from interleaf.runtime import Embedded, Object, spawn, the

from .drive import Drive, conflict, run


class Vm(Object):
    srcu = Embedded(srcu_struct)
    other = Embedded(srcu_struct)


def stay() -> None:
    srcu_read_unlock(the(Vm).srcu, srcu_read_lock(the(Vm).srcu))


def overlap() -> None:
    srcu = the(Vm).srcu
    first = srcu_read_lock(srcu)
    second = srcu_read_lock(srcu)
    srcu_read_unlock(srcu, first)
    third = srcu_read_lock(srcu)
    srcu_read_unlock(srcu, second)
    srcu_read_unlock(srcu, third)


def wait() -> None:
    synchronize_srcu(the(Vm).srcu)


def wait_for_other() -> None:
    synchronize_srcu(the(Vm).other)


def too_deep() -> None:
    for _ in range(NESTING + 1):
        srcu_read_lock(the(Vm).srcu)


def wrong_index() -> None:
    srcu_read_lock(the(Vm).srcu)
    srcu_read_unlock(the(Vm).srcu, 1)


def program() -> None:
    spawn(stay, name="old")
    spawn(stay, name="new")
    spawn(overlap, name="overlap")
    spawn(wait, name="waiter")
    spawn(wait_for_other, name="other")


def test_it_waits_for_the_readers_that_were_inside_and_no_others() -> None:
    drive = Drive(program)
    drive.step("old")
    drive.step("waiter")
    drive.step("new")
    assert drive.waits("waiter")
    drive.finish("old")
    drive.finish("waiter")


def test_readers_of_another_domain_do_not_matter() -> None:
    drive = Drive(program)
    drive.step("old")
    drive.finish("other")


def test_each_reader_of_a_task_counts_by_itself() -> None:
    drive = Drive(program)
    drive.step("overlap")
    drive.step("overlap")
    drive.step("waiter")
    drive.step("overlap")
    drive.step("overlap")
    assert drive.waits("waiter")
    drive.step("overlap")
    assert drive.pending("overlap") == "srcu_read_unlock"
    drive.finish("waiter")
    drive.finish("overlap")
    assert drive.violations == []


def test_readers_are_independent() -> None:
    drive = Drive(program)
    one, other = drive.step("old"), drive.step("new")
    begin = drive.step("waiter")
    assert one is not None
    assert other is not None
    assert begin is not None
    assert not conflict(one, other)
    assert conflict(one, begin)


def test_the_index_must_be_the_one_that_the_lock_gave() -> None:
    [violation] = run(wrong_index).violations
    assert violation.fatal
    assert "leaves Vm.srcu in wrong_index() with index 1, which it did not get there" in violation.message


def test_readers_nest_only_so_deep() -> None:
    [violation] = run(too_deep).violations
    assert violation.message == f"readers of Vm.srcu nest more than {NESTING} deep"
