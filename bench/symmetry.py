"""What merging states would buy that differ by an exchange of like tasks: how many there are beside each other.

Every state of a search is reached again with the tasks exchanged in its schedule. States that are each other's images
are one orbit; a search that knew of the symmetry would need one state of each. Time is not measured: this is the most
that could be had, if finding out which state stands for its orbit cost nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from interleaf.explore.states import Options, StateSearch

from .measure import Record, Scale
from .programs import load
from .report import count, ratio, table

Exchange = dict[str, str]

LIKE: tuple[tuple[tuple[str, ...], tuple[tuple[str, ...], ...]], ...] = (
    (("locks", "3", "4"), (("task0", "task2"),)),
    (("locks", "4", "8"), (("task0", "task2"), ("task1", "task3"))),
    (("scenario", "two-vcpus-fault-same-page", "v6.12"), (("vcpu0", "vcpu1"),)),
    (("scenario", "two-vcpus-fault-different-pages", "v6.12"), (("vcpu0", "vcpu1"),)),
    (("scenario", "unload-reload-storm", "v5.18"), (("vcpu0", "vcpu1"),)),
)
"""Programs, with groups of tasks that do alike."""

SMALL = ((("locks", "2", "2"), ()), (("locks", "3", "2"), (("task0", "task2"),)))


class _Recording(StateSearch):
    """Keeps a schedule of each state: (task, outcomes of its choices, operations) for each step."""

    ways: dict[int, list[tuple[int, tuple[int, ...], int]]]

    def _pass(self) -> bool:
        self.ways = {}
        return super()._pass()

    def _arrive(self, sleep: Any, waiting: Any, last: int, arrived: Any) -> None:
        key = self.machine.key()
        if key not in self.ways:
            passed = [frame.arrived for frame in self.stack[1:]] + ([arrived] if last >= 0 else [])
            self.ways[key] = [
                (task, tuple(outcome for choices, _ in steps for outcome in choices), length)
                for task, steps, length in passed
            ]
        super()._arrive(sleep, waiting, last, arrived)


def exchanges(groups: tuple[tuple[str, ...], ...]) -> Iterator[Exchange]:
    """All ways to exchange the tasks within each group, but to leave all as they are."""
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        exchange = dict(zip(itertools.chain(*groups), itertools.chain(*orders), strict=True))
        if any(name != other for name, other in exchange.items()):
            yield exchange


def orbits(words: tuple[str, ...], groups: tuple[tuple[str, ...], ...]) -> tuple[int, int]:
    """States of a program's search, and orbits of them. States that have no image count as an orbit each."""
    program = load(words)
    search = _Recording(program.setup, final=program.final, options=Options(audit=False))
    search.run()
    found = set()
    for key, way in search.ways.items():
        images = (_image(search, way, exchange) for exchange in exchanges(groups))
        found.add(min([key, *(image for image in images if image is not None)]))
    search.close()
    return len(search.ways), len(found)


def _image(search: StateSearch, way: list[tuple[int, tuple[int, ...], int]], exchange: Exchange) -> int | None:
    """The state that a schedule leads to after an exchange; None if it cannot be followed so."""
    machine = search.machine
    machine.restore(machine.initial)
    for task, choices, length in way:
        name = _renamed(machine.task(task).name, exchange)
        other = next((task for task in search.world.tasks if task.name == name), None)
        if other is None or other.index not in machine.unfinished or not machine.step(other.index, choices, length):
            return None
    return machine.key()


def _renamed(name: str, exchange: Exchange) -> str:
    """A task's name after the exchange: tasks that others start are called after what they were given."""
    for old in exchange:
        name = name.replace(old, f"\0{old}\0")
    for old, new in exchange.items():
        name = name.replace(f"\0{old}\0", new)
    return name


def run(scale: Scale) -> list[Record]:
    """Count the orbits of each program."""
    records: list[Record] = []
    for words, groups in LIKE if scale.full else SMALL:
        states, classes = orbits(words, groups)
        records.append({"program": " ".join(words), "states": states, "orbits": classes})
    return records


def tables(records: list[Record]) -> dict[str, str]:
    """The table of this benchmark, by its place in the document."""
    rows = [
        (
            str(record["program"]),
            *(count(record["states"]), count(record["orbits"]), ratio(record["states"], record["orbits"])),
        )
        for record in records
    ]
    return {"symmetry": table(("program", "states", "orbits", "at most"), rows)}
