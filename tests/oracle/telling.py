"""Programs written by hand, each of which tells a right engine from a wrong one."""

from __future__ import annotations

from .primitives import Dispose, Locked, Publish, Put, RcuReader, Trylock, Use, UseLater
from .programs import NOTHING, Assert, Block, Program, Read, Retry, Statement, Store, Write


def of(*bodies: tuple[Statement, ...]) -> Program:
    """A program with these tasks."""
    return Program(tuple(Block(body) for body in bodies))


LOST_UPDATE = of(
    (Locked("read", "v", Block((Read(0), Write(0, 1)))),),
    (Locked("read", "v", Block((Read(0), Write(0, 1)))),),
)
"""Two readers of a lock change the same field."""

ALONE = of((Write(0, 1), Store(1, 2)), (Read(0), Write(0, 0), Assert(0, 1), Write(1, 0)))
"""The second task gets as far as the field that both write only after the first one has written it, or in between."""

FREED_EAGERLY = of((UseLater(),), (Locked("spin", "a", Block((Dispose("callback"),))),))
"""If the object is freed as soon as it can be, the first use of it hides what comes after."""

ONCE_WRONG = [
    # a second freeing was not seen to come from the first one, so the freeing was not tried before the other's use
    of((Put(),), (Read(1), Dispose("callback"))),
    # a task that dies in the step that took a lock was not seen to hold it
    of((Trylock("a", NOTHING), Assert(2, 1)), (Locked("spin", "a", Block((Store(1, 2), Assert(0, 2)))),)),
    # a lock that another task frees was taken without a scheduling point before
    of((Read(1), Dispose("at once")), (RcuReader(Block((Use("lock"),))),)),
    of((Put(),), (Use("lock"), Put())),
    # an access made only after all others had ended was not counted as one that could conflict
    ALONE,
    # what a callback will do was not foreseen where it was yet to be queued
    of((Use("plain"), Use("plain")), (Dispose("callback"), Publish())),
    # an eager callback made the search over steps begin again for ever
    of((RcuReader(Block((Dispose("callback"),))),), (Use("marked"), Write(0, 1))),
    # each reader waits in the lock for the other one, so that their sections always overlap
    of(
        (Locked("read", "v", Block((Store(0, 1), Retry(1, Block((Read(1),)))))),),
        (Locked("read", "v", Block((Store(1, 1), Retry(1, Block((Read(0),)))))),),
        (Locked("write", "v", Block((Read(0), Write(2, 1)))),),
    ),
]
