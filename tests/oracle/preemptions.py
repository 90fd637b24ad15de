"""How many preemptions each violation of a program needs, by brute force."""

from __future__ import annotations

from interleaf.explore.bounded import BoundedSearch, deadlock
from interleaf.explore.brute import Unreduced
from interleaf.explore.livelock import alternatives
from interleaf.explore.machine import Choices
from interleaf.explore.outcome import Bounds, Found, Outcome
from interleaf.runtime import Violation, World

from .compare import Findings, findings
from .programs import Program

Position = tuple[int, int]
"""A state and the task that ran last: what a preemption depends on."""


def fewest(program: Program, limit: int) -> dict[int, Findings]:
    """What can be found with at most 0, 1, … `limit` preemptions, deadlocks and violations."""
    machine = Unreduced(World(), program.setup)
    found = {budget: Outcome("brute force") for budget in range(limit + 1)}
    known: dict[Position, int] = {}
    """The fewest preemptions with which a position was reached; reached with fewer, it is explored again."""

    def report(violation: Violation, used: int) -> None:
        for budget in range(used, limit + 1):
            found[budget].add(Found(violation, ()))

    def moves(task: int) -> list[tuple[Choices, bool, list[Violation]]]:
        """All outcomes of a step from here: the choices, whether it is fatal, and what it violates."""
        here = machine.snapshot()
        reached: list[tuple[Choices, bool, list[Violation]]] = []
        todo: list[Choices] = [()]
        while todo:
            choices = todo.pop()
            machine.restore(here)
            if machine.step(task, choices):
                todo.extend(alternatives(choices, machine.branches))
                reached.append((choices, machine.dead, list(machine.violations)))
        machine.restore(here)
        return reached

    def explore(last: int, used: int) -> None:
        position = (machine.key(), last)
        if known.get(position, limit + 1) <= used:
            return
        known[position] = used
        here = machine.snapshot()
        steps = {task: moves(task) for task in machine.unfinished}
        if steps and not any(steps.values()):
            report(deadlock(machine), used)
        for task, reached in steps.items():
            now = used + (task != last and bool(steps.get(last)))
            if now > limit:
                continue
            for choices, dead, violations in reached:
                for violation in violations:
                    report(violation, now)
                if not dead:
                    machine.restore(here)
                    machine.step(task, choices)
                    explore(task, now)
        machine.restore(here)

    try:
        explore(-1, 0)
    finally:
        machine.close()
    return {budget: findings(outcome, set()) for budget, outcome in found.items()}


def bounded(program: Program, budget: int, search: type[BoundedSearch] = BoundedSearch) -> Findings:
    """What a bounded search finds."""
    running = search(program.setup, Bounds(preemptions=budget))
    try:
        return findings(running.run(), set())
    finally:
        running.close()
