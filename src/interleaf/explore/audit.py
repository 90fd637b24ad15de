"""Checks of the search's own assumptions, while it runs.

The search believes that model code is deterministic, that functions share nothing but fields of model objects,
and that equal states behave alike. It does not take that on trust:

* **run twice**: every n-th completed execution is run again for real, in greenlets without automata; each task must
  be in the same state after each step, and the memory at the end;
* **merge audit**: now and then, when two ways have led to one state, both are replayed, and then both are
  run on under the same random schedule; every operation on the way must be the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from interleaf.runtime.cells import World
from interleaf.runtime.execution import Execution, Move, Schedule
from interleaf.runtime.findings import ModelError, Violation
from interleaf.runtime.races import RaceDetector

from .outcome import DATA_RACE

if TYPE_CHECKING:
    from .frame import Arrival
    from .states import StateSearch

CONTINUATION = 300
"""Steps that a merge audit runs on for."""

OFTEN, SELDOM = 8, 4_096
"""The first few are audited at powers of two; later every so many."""


class Auditor:
    """Audits one search. Its random choices come from `rng`, so that a search repeats exactly."""

    def __init__(self, world: World, setup: Callable[[], object], rng: random.Random) -> None:
        self.world = world
        self.setup = setup
        self.rng = rng
        self.audits = 0
        self._ways: dict[int, Schedule] = {}
        self._completed = 0
        self._merged = 0

    def begin_pass(self) -> None:
        """The search begins again. What is audited is the model, and that states are told apart by what matters in it:
        that is the same in every pass, and the larger ones have most of the audits."""
        self._ways.clear()

    def completed(self, search: StateSearch) -> list[Violation]:
        """An execution has come to its end. Returns the data races that the happens-before detector sees in it.

        The search sees every two accesses that can be made at the same time. What one task publishes to another
        without release and acquire is never accessed at the same time here, but could be on a real machine; such
        races show in any execution, so those that are run twice are looked at.
        """
        self._completed += 1
        if not _due(self._completed):
            return []
        self.audits += 1
        run = Execution(self.world, self.setup)
        detector = run.memory.observer = RaceDetector(lambda: run.site)
        automata = search.machine.automata
        try:
            for frame in search.stack[1:]:
                name = search.machine.task(frame.arrived[0]).name
                for _ in run.replay([Move(name, *basic) for basic in frame.arrived[1]]):
                    pass
                for index, carrier in () if automata.flat else run.carriers.items():
                    if automata.nodes.get((index, carrier.state)) is not frame.snapshot.nodes[index]:
                        self._differs(f"run twice with the same schedule, task {self.world.tasks[index]} did otherwise")
            if run.memory.zobrist != search.machine.memory.zobrist or run.unfinished:
                self._differs("run twice with the same schedule, it ended in another state")
        finally:
            run.close()
        # what orders a use and a free may be more than release and acquire (a flush by IPI, say)
        return [race for race in detector.races if race.rule == DATA_RACE]

    def merged(self, key: int, search: StateSearch, arrived: Arrival) -> None:
        """The search's current path and the step `arrived` have led to a state that was seen before."""
        self._merged += 1
        known = self._ways.pop(key, None)
        if known is None:
            if _due(self._merged) or (self._merged & 255 == 0 and len(self._ways) < OFTEN):
                self._ways[key] = search.schedule(arrived)
            return
        self.audits += 1
        one, other = self._replayed(known), self._replayed(search.schedule(arrived))
        try:
            self._compare(one, other)
            for _ in range(CONTINUATION):
                running = one.unfinished
                moved = False
                for task in self.rng.sample(running, len(running)):
                    steps = (one.step(task), other.step(task))
                    if (steps[0] is None) != (steps[1] is None):
                        self._differs(f"task {task} can run after one way to a state and waits after another")
                    if steps[0] is not None:
                        moved = True
                        break
                self._compare(one, other)
                if not moved or one.steps[-1].fatal:
                    break
        finally:
            one.close()
            other.close()

    def _replayed(self, schedule: Schedule) -> Execution:
        run = Execution(self.world, self.setup)
        for _ in run.replay(schedule):
            pass
        return run

    def _compare(self, one: Execution, other: Execution) -> None:
        if one.memory.zobrist != other.memory.zobrist or one.pending.keys() != other.pending.keys():
            self._differs("two ways to one state went on to different states")
        for index, op in one.pending.items():
            twin = other.pending[index]
            if op.name != twin.name or op.site != twin.site or op.focus is not twin.focus:
                self._differs(
                    f"after two ways to one state, task {self.world.tasks[index]} does {op.name} at {op.site[0]}:"
                    f"{op.site[1]} in one and {twin.name} at {twin.site[0]}:{twin.site[1]} in the other"
                )

    def _differs(self, how: str) -> None:
        raise ModelError(
            f"the audit of the search failed: {how}. The model has state that is not in a model object (a global, a "
            "list shared between functions, time, randomness), or Interleaf has a defect. No verdict is given."
        )


def _due(count: int) -> bool:
    return count & (count - 1) == 0 if count <= SELDOM else count % SELDOM == 0
