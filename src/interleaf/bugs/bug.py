"""What an entry of the catalogue is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from interleaf.designs import changed, load
from interleaf.kvm.design import Design


@dataclass(frozen=True, slots=True)
class Bug:
    """A historical bug: a design that did not have it, and what is to be changed to put it back."""

    id: str
    title: str
    text: str
    """What goes wrong, in a sentence or two."""
    fix: str
    """The kernel commit (or mail, or version) that fixed it."""
    culprit: str
    """The one that brought it, where that is known."""
    kind: str
    """What comes of it: a use-after-free, a lost flush, a leak …"""
    design: str
    """A design without it, as `designs.load` takes it: the one on which it is shown."""
    deviation: str | Callable[[Design], Design]
    """How it is put back: changes as in the name of a design ("without stale-root-check"), or a function."""
    scenarios: tuple[str, ...]
    """The scenarios of the library that show it, the most telling first."""
    rules: tuple[str, ...]
    """What it violates there: each of these scenarios has a violation of one of them, at least."""
    preemptions: int | None = None
    """The search for it stops at so many preemptions; None is a search of all interleavings."""

    def put_back(self, design: Design) -> Design:
        """`design` with the bug. Raises ModelError if it is not what it can be put into, or has it already."""
        deviation = self.deviation
        found = changed(design, deviation) if isinstance(deviation, str) else deviation(design)
        return replace(found, name=f"{design.name} bug {self.id}")

    def base(self) -> Design:
        """The design on which it is shown, without it."""
        return load(self.design)
