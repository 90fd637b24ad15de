"""The states on the current path of the search over steps, and what is still to be done at each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .footprint import NOTHING, Footprint
from .machine import Choices, Machine, Snapshot
from .path import Round


@dataclass(slots=True)
class Frame:
    """A state on the current path, and what is to be done there."""

    snapshot: Snapshot
    key: int
    last: int
    """The task whose step led here."""
    sleep: dict[int, Footprint]
    """Tasks that need not be run here until something that they depend on has happened, with their steps."""
    spoilt: int
    """Tasks that ended by a fatal violation."""
    wanted: int = 0
    """Tasks that are to be run here."""
    waiting: dict[int, int] = field(default_factory=dict)
    """Tasks that cannot run here, with the cells that they looked at."""
    rounds: dict[int, Round | None] = field(default_factory=dict)
    """For each task, the steps that brought it back to where it was, if it is to be run only in spite of them."""
    spinning: int = 0
    """Tasks that would do the same again, and are not run here."""
    eager: int = -1
    """The only task that is run here, because it only frees what nobody may use any more."""
    running: int = -1
    todo: list[Choices] = field(default_factory=list)
    """Outcomes of choices with which the running task's step is still to be made."""
    union: Footprint = NOTHING
    """Of the running task's step, over the outcomes that were tried."""

    def ready(self, unfinished: Iterable[int]) -> Iterator[int]:
        """Those of the tasks that are to be run here: if none is asked for yet, all that neither sleep nor wait."""
        for task in unfinished:
            asked = not self.wanted or self.wanted >> task & 1
            if asked and task not in self.sleep and task not in self.waiting and not self.spoilt >> task & 1:
                yield task

    def started(self, machine: Machine) -> list[int]:
        """The tasks of `machine`, a step further, that were not there yet."""
        old = self.snapshot.nodes
        return [
            child
            for child, node in enumerate(machine.nodes)
            if node is not None and (child >= len(old) or old[child] is None)
        ]

    def resting(self) -> str:
        """Who goes round for ever and who waits, in words."""
        words = []
        for node in self.snapshot.nodes:
            if node is not None:
                doing = "retries for ever" if node.task.index not in self.waiting else f"waits in {node.op.name}"
                words.append(f"{node.task} {doing} ({node.op.site[2]})")
        return "; ".join(words)


def fraction(stack: Sequence[Frame]) -> float:
    """Share of the search tree that is finished, each branch of a state counted as equally large (Knuth 1975).

    As far as it is known: branches are still being added, so it may become smaller.
    """
    share = 1.0
    done = 0.0
    for frame in stack:
        if frame.running < 0:
            break
        over = sum(1 for task in frame.sleep if frame.wanted >> task & 1)
        left = sum(
            1
            for task, node in enumerate(frame.snapshot.nodes)
            if node is not None
            and frame.wanted >> task & 1
            and task != frame.running
            and task not in frame.sleep
            and task not in frame.waiting
        )
        share /= over + 1 + left
        done += share * over
        share /= 1 + len(frame.todo)
    return min(done, 1.0)
