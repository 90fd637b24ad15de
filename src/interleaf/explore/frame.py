"""A state on the current path of the search over states, and what is still to be done there."""

from __future__ import annotations

from typing import TypeAlias

from interleaf.runtime.cells import Cell

from .machine import Basic, Choices, Snapshot

Footprint: TypeAlias = tuple[int, int, int]
"""Cells read, written, and touched by plain accesses, as bit sets."""

Arrival: TypeAlias = tuple[int, list[Basic], int]
"""A step that led to a state: the task, its schedule, and how many operations it had."""


class Frame:
    """One state on the current path, and what is still to be done there."""

    __slots__ = (
        "arrived",
        "awake",
        "done",
        "last",
        "running",
        "size",
        "sleep",
        "snapshot",
        "suspects",
        "todo",
        "union",
        "waiting",
    )

    def __init__(self, snapshot: Snapshot, last: int, arrived: Arrival) -> None:
        self.snapshot = snapshot
        self.last = last
        """The task whose step led here."""
        self.arrived = arrived
        """That step, for the schedule."""
        self.todo: list[tuple[int, Choices]] = []
        self.size = 0
        self.sleep: dict[int, Footprint] = {}
        self.done: dict[int, Footprint] = {}
        self.running = -1
        self.union: Footprint = (0, 0, 0)
        """The running task's footprint over the outcomes of its choices that have been explored."""
        self.awake = False
        """Could any task run here?"""
        self.waiting: dict[int, int] = {}
        """Tasks that cannot run here, with the cells on which that depends."""
        self.suspects: list[tuple[int, Choices, int, Cell]] = []
        """Pairs of steps from here that may race, and on which cell."""
