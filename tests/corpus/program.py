"""How a program of the corpus is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interleaf.runtime import Memory, Object, Value
from interleaf.runtime.objects import singleton


@dataclass(frozen=True)
class Program:
    """A program, and all that its interleavings may do."""

    name: str
    setup: Callable[[], object]
    rules: frozenset[str]
    """The rules that some interleaving breaks; a good program breaks none."""
    watched: tuple[tuple[type[Object], str], ...]
    """(class, field) of global objects."""
    ends: frozenset[Value] | None
    """The values of the watched fields at the ends of the executions, all of them; None: not watched."""

    def end(self, memory: Memory) -> Value:
        """The values of the watched fields."""
        return tuple(memory.peek(cls.fields[name].cell(singleton(memory.world, cls))) for cls, name in self.watched)


class Corpus:
    """The programs of one module."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def good(
        self, cls: type[Object] | None = None, **ends: Any
    ) -> Callable[[Callable[[], object]], Callable[[], object]]:
        """A program that breaks no rule. `field={values}`: the fields of the global `cls` that end in just these."""
        return self._add((), cls, ends)

    def bad(self, *rules: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
        """A program that breaks just these rules."""
        return self._add(rules, None, {})

    def _add(
        self, rules: tuple[str, ...], cls: type[Object] | None, ends: dict[str, Any]
    ) -> Callable[[Callable[[], object]], Callable[[], object]]:
        def declare(setup: Callable[[], object]) -> Callable[[], object]:
            watched = tuple((cls, name) for name in ends) if cls is not None else ()
            expected = None
            if ends:
                (values,) = ends.values()
                expected = frozenset((value,) for value in values)
            self.programs.append(Program(setup.__name__, setup, frozenset(rules), watched, expected))
            return setup

        return declare
