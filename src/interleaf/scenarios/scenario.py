"""What a scenario is, and how a function becomes one."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interleaf.runtime import ModelError


@dataclass(frozen=True, slots=True)
class Parameter:
    """A size of a scenario: a small int that may be lowered to make a story shorter."""

    name: str
    default: int
    minimum: int = 1


@dataclass(frozen=True, slots=True)
class Scenario:
    """A VM and a few tasks that race."""

    name: str
    title: str
    """What happens, in a few words."""
    text: str
    """What races, and why it matters."""
    setup: Callable[..., None]
    """Called in the set-up task with the design, and with parameters by name: builds the VM and spawns the tasks."""
    parameters: tuple[Parameter, ...] = ()


def scenario(title: str, **minima: int) -> Callable[[Callable[..., None]], Scenario]:
    """Make a scenario of the function below: its name (with hyphens), docstring and keyword-only arguments.

    Every keyword-only argument is a parameter, an int with a default; `minima` gives the smallest value that makes
    sense, where that is not 1. Raises ModelError if the function does not look like that.
    """

    def declare(function: Callable[..., None]) -> Scenario:
        where = f"scenario {function.__name__}"
        text = inspect.getdoc(function)
        if not text:
            raise ModelError(f"{where} has no docstring: say what races, and why it matters.")
        parameters = []
        arguments = list(inspect.signature(function).parameters.values())
        if not arguments or arguments[0].kind is inspect.Parameter.KEYWORD_ONLY:
            raise ModelError(f"{where} takes no design: write `def {function.__name__}(design: Design)`.")
        for argument in arguments[1:]:
            if argument.kind is not argument.KEYWORD_ONLY or not isinstance(argument.default, int):
                raise ModelError(
                    f"{where}: {argument.name} is no parameter. After the design, write `*, {argument.name}: int = 2`."
                )
            parameters.append(Parameter(argument.name, argument.default, minima.pop(argument.name, 1)))
        if minima:
            raise ModelError(f"{where} has no parameter {', '.join(minima)}, but minima for it.")
        name = function.__name__.replace("_", "-")
        return Scenario(name, title, textwrap.dedent(text), function, tuple(parameters))

    return declare


def scenarios_of(module: Any) -> dict[str, Scenario]:
    """The scenarios that a module defines, by name, in their order there."""
    return {value.name: value for value in vars(module).values() if isinstance(value, Scenario)}
