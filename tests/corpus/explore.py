"""Every interleaving of a small program, by running it again and again: no reduction, no merging.

Each execution starts from the beginning and follows a prefix of a schedule; from there on it takes the first task
that can run and outcome 0 of every choice, and notes what else it could have done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from interleaf.runtime import Execution, Memory, Step, Value, World
from interleaf.runtime.races import RaceDetector, Site

Prefix = tuple[tuple[int, tuple[int, ...]], ...]
"""(task, outcomes of its choices), one pair a step."""

LIMIT = 20_000
"""Executions of one program; a program of this folder that needs more is too large for it."""


@dataclass
class Explored:
    """What the executions of a program did."""

    executions: int = 0
    found: dict[str, str] = field(default_factory=dict)
    """Violated rule -> a message. "deadlock" and "data-race" count as rules."""
    ends: set[Value] = field(default_factory=set)
    """What the executions that ended left behind."""


class _Run:
    """One execution, with race detection."""

    def __init__(self, world: World, setup: Callable[[], object]) -> None:
        self._running: Execution | None = None
        self.detector = RaceDetector(self._site)
        self._running = self.execution = Execution(world, setup, observer=self.detector)

    def _site(self) -> Site:
        run = self._running
        return run.pending[run.memory.task].site if run is not None else ("", 0, "setup")


def explore(setup: Callable[[], object], end: Callable[[Memory], Value] = lambda memory: None) -> Explored:
    """Run all interleavings of the program that `setup` makes; `end` says what an execution leaves behind."""
    world = World()
    explored = Explored()
    prefixes: list[Prefix] = [()]
    while prefixes:
        run = _Run(world, setup)
        try:
            _execute(run, prefixes.pop(), prefixes, explored, end)
        finally:
            run.execution.close()
        if explored.executions > LIMIT:
            raise AssertionError(f"more than {LIMIT} executions")
    return explored


def _execute(
    run: _Run, prefix: Prefix, prefixes: list[Prefix], explored: Explored, end: Callable[[Memory], Value]
) -> None:
    execution = run.execution
    path: Prefix = ()
    tasks = execution.world.tasks
    while execution.unfinished:
        step: Step | None = None
        if len(path) < len(prefix):
            task, choices = prefix[len(path)]
            step = execution.step(tasks[task], choices)
            if step is None:
                assert len(path) == len(prefix) - 1, "a replayed step is blocked"
                return
            if len(path) == len(prefix) - 1:
                _other_choices(path, task, len(choices), step, prefixes)
            path = (*path, (task, step.choices))
        else:
            candidates = [task.index for task in execution.unfinished]
            for position, task in enumerate(candidates):
                step = execution.step(tasks[task])
                if step is not None:
                    prefixes.extend((*path, (other, ())) for other in candidates[position + 1 :])
                    _other_choices(path, task, 0, step, prefixes)
                    path = (*path, (task, step.choices))
                    break
        if step is None:
            waiting = ", ".join(f"{task} in {execution.pending[task.index].name}" for task in execution.unfinished)
            explored.found.setdefault("deadlock", waiting)
            break
        for violation in step.violations:
            explored.found.setdefault(violation.rule, violation.message)
        if step.fatal:
            break
    else:
        explored.ends.add(end(execution.memory))
    for race in run.detector.races:
        explored.found.setdefault(race.rule, race.message)
    explored.executions += 1


def _other_choices(path: Prefix, task: int, given: int, step: Step, prefixes: list[Prefix]) -> None:
    """Note the outcomes that the choices of `step` could have had, after the `given` ones."""
    for position in range(given, len(step.branches)):
        before = step.choices[:position]
        prefixes.extend((*path, (task, (*before, other))) for other in range(1, step.branches[position]))
