"""The command `interleaf list`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from interleaf import bugs, designs, scenarios
from interleaf.arguments import Refused
from interleaf.bugs import Bug
from interleaf.kvm.design import RULES, Rule
from interleaf.properties import PROPERTIES
from interleaf.report.story import WIDTH

INDENT = "    "


def lines_of(what: str) -> Iterator[str]:
    """What `list` prints. Raises Refused for what there is no list of."""
    match what:
        case "scenarios":
            return _plain((name, found.title) for name, found in scenarios.library().items())
        case "designs":
            return _plain((name, design.summary) for name, design in designs.library().items())
        case "properties":
            return _plain((name, known.text) for name, known in PROPERTIES.items())
        case "bugs":
            return _bugs(bugs.library().values())
        case "rules":
            return _rules()
    raise Refused(f"there is no list of {what}.")


def _plain(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in entries:
        yield name
        yield f"{INDENT}{text}"


def _bugs(known: Iterable[Bug]) -> Iterator[str]:
    for bug in known:
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
