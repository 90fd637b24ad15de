"""The command `interleaf list`."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Iterator

from interleaf import bugs, designs, scenarios
from interleaf.arguments import Refused
from interleaf.kvm.design import RULES, Design, Rule
from interleaf.properties import PROPERTIES
from interleaf.report.story import WIDTH
from interleaf.runtime import Execution, World

INDENT = "    "


def lines_of(what: str) -> Iterator[str]:
    """What `list` prints. Raises Refused for what there is no list of."""
    match what:
        case "scenarios":
            return _plain((name, found.title) for name, found in scenarios.library().items())
        case "designs":
            return _plain((name, design.summary) for name, design in designs.library().items())
        case "properties":
            return _properties()
        case "bugs":
            return _bugs()
        case "rules":
            return _rules()
    raise Refused(f"there is no list of {what}.")


def _plain(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in entries:
        yield name
        yield f"{INDENT}{text}"


def _properties() -> Iterator[str]:
    where = exercised(list(designs.library().values())[-1])
    for name, known in PROPERTIES.items():
        yield name
        yield from _wrapped(known.text)
        yield from _wrapped(f"Otherwise: {known.reason}")
        yield from _wrapped(f"Source: {known.source}")
        checks = (name, *known.rules)
        telling = [scenario for scenario, rules in where.items() if not rules.isdisjoint(checks)]
        if telling:
            yield from _wrapped(f"Exercised in {', '.join(telling)}")


def exercised(design: Design) -> dict[str, frozenset[str]]:
    """By scenario of the library: the properties and rules that could have been violated in one execution on `design`,
    in which each task runs as far as it can before the next does."""
    return {name: _run(functools.partial(found.setup, design)) for name, found in scenarios.library().items()}


def _run(setup: Callable[[], object]) -> frozenset[str]:
    world = World()
    run = Execution(world, setup)
    try:
        while run.unfinished and any(run.step(task) is not None for task in run.unfinished):
            pass
    finally:
        run.close()
    return frozenset(name for name, times in world.exercised.items() if times)


def _bugs() -> Iterator[str]:
    for bug in bugs.library().values():
        yield f"{bug.id}  {bug.title} ({bug.kind})"
        yield from _wrapped(bug.text)
        brought = f"; brought by {bug.culprit}" if bug.culprit else ""
        yield from _wrapped(f"fixed by {bug.fix}{brought}")
        yield from _wrapped(f"shown on {bug.design} by {', '.join(bug.rules)} in {', '.join(bug.scenarios)}")


def _rules() -> Iterator[str]:
    """A table: rules down, designs across, oldest first. The head is a staircase, as that of `git show-branch`."""
    library = list(designs.library().values())
    for column, design in enumerate(library):
        yield f"{' |' * column} {design.name}".rstrip()
    yield " |" * len(library)
    for name, known in sorted(RULES.items()):
        marks = "".join(" +" if name in design.rules else " ." for design in library)
        yield f"{marks}  {name} ({_when(known)})"
        yield from _wrapped(known.text)


def _when(known: Rule) -> str:
    return f"{known.commit}, removed by {known.removed}" if known.removed else known.commit


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False)
