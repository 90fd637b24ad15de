"""Small programs with one defect each, as scenarios: what a story of them must say is known."""

from interleaf.kvm.design import Design
from interleaf.linux.spinlock import spin_lock, spin_unlock, spinlock_t
from interleaf.runtime import Embedded, Marked, Object, Plain, checkpoint, free, new, routine, say, spawn, the
from interleaf.scenarios import scenario


class Inode(Object):
    """Something that is freed."""

    freeable = True
    size = Marked(0)


class Disk(Object):
    """Something with two locks and a plain field."""

    one = Embedded(spinlock_t)
    other = Embedded(spinlock_t)
    blocks = Plain(0)
    ready = Marked(False)


def use(inode: Inode) -> None:
    say("the reader looks at the inode")
    _ = inode.size


def drop(inode: Inode) -> None:
    free(inode)


@scenario("A use after free")
def use_after_free(design: Design) -> None:
    """The inode is freed under its reader."""
    inode = new(Inode, size=3)
    spawn(use, inode, name="reader")
    spawn(drop, inode, name="owner")


def one_then_other(disk: Disk) -> None:
    spin_lock(disk.one)
    spin_lock(disk.other)
    spin_unlock(disk.other)
    spin_unlock(disk.one)


def other_then_one(disk: Disk) -> None:
    spin_lock(disk.other)
    spin_lock(disk.one)
    spin_unlock(disk.one)
    spin_unlock(disk.other)


@scenario("An ABBA deadlock")
def abba(design: Design) -> None:
    """Two locks in two orders."""
    disk = new(Disk)
    spawn(one_then_other, disk, name="left")
    spawn(other_then_one, disk, name="right")


@routine
def wait_until_ready(disk: Disk) -> None:
    ready = disk.ready
    while not ready:
        checkpoint()
        ready = disk.ready


@scenario("A livelock")
def spin(design: Design) -> None:
    """Nobody makes the disk ready."""
    disk = new(Disk)
    spawn(wait_until_ready, disk, name="first")
    spawn(wait_until_ready, disk, name="second")


def write_blocks(disk: Disk) -> None:
    disk.blocks = 7


@scenario("A data race")
def race(design: Design) -> None:
    """Two plain writes without a lock."""
    disk = the(Disk)
    spawn(write_blocks, disk, name="first")
    spawn(write_blocks, disk, name="second")
