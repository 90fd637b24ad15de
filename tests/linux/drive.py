"""Runs a small program in the order that a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from interleaf.runtime import Execution, Object, Step, Task, Value, Violation, World, spawn
from interleaf.runtime.objects import Array, Field, singleton

O = TypeVar("O", bound=Object)  # noqa: E741 - the letter for "object"


class Drive:
    """One execution; `story` is what happened, `violations` what was violated."""

    def __init__(self, setup: Callable[[], object], world: World | None = None) -> None:
        self.execution = Execution(world or World(), setup, narrate=True)
        self.steps: list[Step] = []

    @property
    def story(self) -> list[str]:
        return [f"{event.task} {event.text}" for step in self.steps for event in step.events]

    @property
    def violations(self) -> list[Violation]:
        return [violation for step in self.steps for violation in step.violations]

    @property
    def rules(self) -> list[str]:
        return [violation.rule for violation in self.violations]

    @property
    def unfinished(self) -> list[str]:
        return [task.name for task in self.execution.unfinished]

    def task(self, name: str) -> Task:
        return next(task for task in self.execution.unfinished if task.name == name)

    def step(self, name: str, *choices: int) -> Step | None:
        """One step of a task; None if it waits."""
        step = self.execution.step(self.task(name), choices)
        if step is not None:
            self.steps.append(step)
        return step

    def until(self, name: str, operation: str) -> None:
        """Run a task until `operation` is what it does next."""
        while self.pending(name) != operation:
            assert self.step(name) is not None, f"{name} waits in {self.pending(name)}"

    def pending(self, name: str) -> str:
        """The operation that a task does next."""
        return self.execution.pending[self.task(name).index].name

    def waits(self, name: str) -> bool:
        """Does the next operation of a task have to wait? If not, it has happened now."""
        return self.step(name) is None

    def finish(self, name: str) -> None:
        """Run a task to its end."""
        while name in self.unfinished:
            step = self.step(name)
            assert step is not None, f"{name} waits in {self.pending(name)}"
            if step.fatal:
                return

    def finish_all(self) -> None:
        """Run whoever can, until all have ended or wait."""
        progress = True
        while progress:
            progress = False
            for name in self.unfinished:
                if name in self.unfinished and self.step(name) is not None:
                    progress = True
                    if self.steps[-1].fatal:
                        return

    def global_(self, cls: type[O]) -> O:
        return singleton(self.execution.world, cls)

    def peek(self, obj: Object, field: Field[Value]) -> Value:
        return self.execution.memory.peek(field.cell(obj))

    def element(self, obj: Object, array: Array[Value], index: Value) -> Value:
        return self.execution.memory.peek(array.element(obj, index))


def run(function: Callable[[], object]) -> Drive:
    """Run one function as the only task, "a", to its end."""

    def setup() -> None:
        spawn(function, name="a")

    drive = Drive(setup)
    drive.finish_all()
    return drive


def conflict(one: Step, other: Step) -> bool:
    """Does one of the steps write what the other touches?"""
    return bool(one.writes & (other.reads | other.writes) or other.writes & one.reads)
