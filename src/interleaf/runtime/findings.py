"""What a run can discover: a violated property, or a model that breaks the rules of the game."""

from __future__ import annotations

from dataclasses import dataclass


class ModelError(Exception):
    """The model or the scenario is at fault, not the design under test.

    Raised for hidden mutable state, a replay that diverges, an access outside a task, and the like. The
    message says what was expected, what was found, where, and what to do.
    """


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated property at one place.

    `fatal` violations (use-after-free, BUG) end the execution there; the others (WARN) are recorded and the
    execution goes on, as the kernel does.
    """

    rule: str
    """Name of the property."""
    message: str
    fatal: bool = True
    object: str = ""
    """Name of the freed or corrupted object, for the allocated/freed/used stacks."""

    @property
    def signature(self) -> tuple[str, str]:
        """What makes two violations the same finding."""
        return (self.rule, self.message)


class ViolationRaised(Exception):
    """Carries a fatal `Violation` out of an operation to whoever drives the execution."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation.message)
        self.violation = violation
