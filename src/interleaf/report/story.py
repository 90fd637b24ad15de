"""A finding as a story: one column for each task, one line for each thing that matters.

slots                            | munmap
---------------------------------+---------------------------------
kvm_mmu_zap_all_fast():          |
  takes mmu_lock for writing     |
                                 | kvm_mmu_notifier_...():
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import interleaf
from interleaf.check import Finding
from interleaf.properties import property_of

from .narration import Life, Narration, Stack, Told
from .roots import Root
from .selection import ROLE, Selection, becomes_invalid, short_names

WIDTH = 100
"""Characters of a line, unless the caller knows better."""

LEAST_COLUMN = 22
"""Narrower columns cannot be read; then all tasks share one."""

LEAST_WIDTH = 30
"""Lines are no shorter than this: a narrower terminal breaks them itself."""

LEAST_FOLDED = 5
"""Fewer operations in a row that do not matter are not even counted."""

STACK_DEPTH = 6
"""Functions of a stack that are shown."""

STACKS_FOR = ("use-after-free", "double-free", "I1", "I2")

PLAIN, HEADING, FAINT, ALARM = "", "bold", "dim", "bold red"
"""Styles, as Rich calls them."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text and its style."""

    text: str
    style: str = PLAIN


@dataclass(slots=True)
class _Entry:
    """One thing that a task does, or a remark on the roots (task is empty)."""

    task: str
    function: str
    text: str
    style: str = PLAIN
    folded: int = 0


def tell(
    finding: Finding,
    narration: Narration,
    *,
    width: int = WIDTH,
    replay: str = "",
    others: Sequence[str] = (),
    explained: bool = True,
) -> list[Line]:
    """The story of a finding. `replay` is the command that shows it again, `others` are the other cells with it.

    Without `explained`, what the property means is left out: the reader has seen it.
    """
    width = max(width, LEAST_WIDTH)
    shorten = short_names(narration)
    known = property_of(finding.property)
    lines = [Line(text, ALARM) for text in _wrap(f"{finding.property}: {shorten(finding.message)}", width)]
    lines += [Line(f"  {text}") for text in _wrap(where(finding), width - 2)]
    if others:
        lines += [Line(f"  {text}") for text in _wrap(f"found as well: {', '.join(others)}", width - 2)]
    if known is not None and explained:
        lines.append(Line(""))
        for label, text in (("must hold", known.text), ("because", known.reason), ("source", known.source)):
            lines += [Line(piece, FAINT) for piece in _labelled(label, text, width)]
    lines.append(Line(""))
    lines += _before(narration, shorten, width)
    lines += _columns(_entries(narration, shorten), width)
    lines += _after(finding, narration, shorten, width)
    if replay:
        lines += [Line(""), Line(f"replay it: {replay}")]
    return lines


def where(finding: Finding) -> str:
    """The cell that a finding is from, and how much it takes to see it."""
    text = f"{finding.scenario} on {finding.design}"
    text += "".join(f" without {rule}" for rule in finding.dropped)
    if finding.parameters:
        text += f" ({', '.join(f'{name}={value}' for name, value in finding.parameters)})"
    if finding.preemptions is not None:
        text += f", {finding.preemptions or 'no'} preemption{'' if finding.preemptions == 1 else 's'}"
    return f"{text}, {len(finding.schedule)} steps"


def place(site: tuple[str, int, str]) -> str:
    """File and line, from the package on or relative to the working directory."""
    file, line, _function = site
    for base in (Path(interleaf.__file__).parent.parent, Path.cwd()):
        if Path(file).is_relative_to(base):
            return f"{Path(file).relative_to(base)}:{line}"
    return f"{file}:{line}"


def describe(root: Root, shorten: Callable[[str], str]) -> str:
    """A root in one line."""
    leafs = [f"gfn {gfn:#x} -> pfn {pfn:#x}" for gfn, pfn in root.mapped[:3]]
    more = f" and {len(root.mapped) - 3} more" if len(root.mapped) > 3 else ""
    return (
        f"{shorten(root.name)}: {'INVALID' if root.invalid else 'valid'}, refcount {root.references}, "
        f"{'on' if root.listed else 'NOT on'} the list, maps {', '.join(leafs) or 'nothing'}{more}"
    )


def _entries(narration: Narration, shorten: Callable[[str], str]) -> list[_Entry]:
    """What happens, in order, without what does not matter."""
    selection = Selection(narration)
    entries: list[_Entry] = []
    known: dict[str, tuple[bool, bool]] = {}
    played = [told for told in narration.told if told.step >= 0]
    for told in narration.told:
        if told.step < 0:
            known = _standing(told.roots, known)
    repeats = narration.repeats
    for told in played:
        if repeats is not None and told.step >= repeats:
            last = played[-1].step
            again = f"step {last + 1} repeats" if repeats == last else f"steps {repeats + 1} to {last + 1} repeat"
            entries.append(_Entry("", "", f"= from here on, {again} for ever:", ALARM))
            repeats = None
        style = ALARM if told.violations else PLAIN
        entries += [_Entry(told.task, note.function, shorten(note.text)) for note in told.notes]
        if selection.matters(told) or told is played[-1]:
            entries.append(_Entry(told.task, told.function, shorten(_sentence(told)), style))
        elif not told.notes:
            _fold(entries, told)
        entries += [
            _Entry(told.task, told.function, f"!! {violation.rule} violated", ALARM) for violation in told.violations
        ]
        standing = _standing(told.roots, known)
        if standing != known:
            entries += [
                _Entry("", "", f"= {describe(root, shorten)}", FAINT)
                for root in told.roots
                if known.get(root.name) != standing.get(root.name)
            ]
            entries += [_Entry("", "", f"= {shorten(name)}: freed", FAINT) for name in known if name not in standing]
            known = standing
    return entries


def _sentence(told: Told) -> str:
    if told.chosen:
        return told.text.partition(": ")[0]
    for change in told.changes:
        if change.cell.domain.name == ROLE and becomes_invalid(change.before, change.after):
            return f"{change.cell.owner.name} becomes invalid (role.invalid = 1)"
    return told.text


def _standing(found: Iterable[Root], known: Mapping[str, tuple[bool, bool]]) -> dict[str, tuple[bool, bool]]:
    """Which of the roots is invalid, and on the list; without those that have not been on it yet."""
    return {root.name: (root.invalid, root.listed) for root in found if root.listed or root.name in known}


def _fold(entries: list[_Entry], told: Told) -> None:
    """Add an operation that is not told to the line for those."""
    if entries and entries[-1].task == told.task and entries[-1].folded:
        entries[-1].folded += 1
    else:
        entries.append(_Entry(told.task, "", "", FAINT, 1))


def _before(narration: Narration, shorten: Callable[[str], str], width: int) -> list[Line]:
    """What the set-up has made."""
    notes = [shorten(note.text) for told in narration.told if told.step < 0 for note in told.notes]
    lines = [Line(text, FAINT) for text in _labelled("set-up", "; ".join(notes), width)] if notes else []
    made = [told for told in narration.told if told.step < 0]
    if made:
        for root in made[-1].roots:
            lines += [Line(text, FAINT) for text in _wrap(f"= {describe(root, shorten)}", width, "    ")]
    return [*lines, Line("")] if lines else []


def _after(finding: Finding, narration: Narration, shorten: Callable[[str], str], width: int) -> list[Line]:
    """How things stand at the end: the roots, who waits, and the stacks."""
    lines: list[Line] = []
    if narration.violation is None:
        lines += [Line(""), Line("The replay does not show this violation.", ALARM)]
    if narration.told and narration.told[-1].roots:
        lines += [Line(""), Line("At this moment:", HEADING)]
        for root in narration.told[-1].roots:
            lines += [Line(f"  {text}") for text in _wrap(describe(root, shorten), width - 2)]
    if finding.property in ("deadlock", "livelock", "starvation") and narration.waiting:
        lines += [Line(""), Line("At the end:", HEADING)]
        lines += [Line(f"  {shorten(text)}") for text in narration.waiting]
    name = narration.violation.object if narration.violation is not None else ""
    life = narration.lives.get(name)
    if finding.property in STACKS_FOR:
        if life is not None:
            lines += _life(shorten(name), life)
        if narration.used is not None:
            lines += _stack("used by" if life is not None and life.freed else "violated by", narration.used)
    elif narration.used is not None:
        lines += _stack("violated by", narration.used)
    return lines


def _life(name: str, life: Life) -> list[Line]:
    lines = _stack(f"{name} was allocated by", life.allocated)
    if life.freed is not None:
        lines += _stack(f"{name} was freed by", life.freed)
    return lines


def _stack(what: str, stack: Stack) -> list[Line]:
    calls = stack.calls[:STACK_DEPTH]
    widest = max((len(function) for _, _, function in calls), default=0)
    lines = [Line(""), Line(f"{what} {stack.task}:", HEADING)]
    lines += [Line(f"  {site[2]:{widest}}  {place(site)}") for site in calls]
    if len(stack.calls) > STACK_DEPTH:
        lines.append(Line(f"  … {len(stack.calls) - STACK_DEPTH} more", FAINT))
    return lines


def _columns(entries: list[_Entry], width: int) -> list[Line]:
    """The entries side by side, one column for each task."""
    tasks = list(dict.fromkeys(entry.task for entry in entries if entry.task))
    if not tasks:
        return []
    each = (width - 3 * (len(tasks) - 1)) // len(tasks)
    if each < LEAST_COLUMN:
        return _one_column(entries, width)
    lines = [
        Line(" | ".join(f"{task:{each}}" for task in tasks).rstrip(), HEADING),
        Line("-+-".join("-" * each for _ in tasks), FAINT),
    ]
    functions: dict[str, str] = {}
    for entry in entries:
        if not entry.task:
            lines += [Line(text, entry.style) for text in _wrap(entry.text, width, "    ")]
            continue
        column = tasks.index(entry.task)
        for text in _cell(entry, functions, each):
            pieces = ["" for _ in tasks]
            pieces[column] = text
            lines.append(Line(" | ".join(f"{piece:{each}}" for piece in pieces).rstrip(), entry.style))
    return lines


def _one_column(entries: list[_Entry], width: int) -> list[Line]:
    """The entries one below the other, each with its task; for more tasks than there is room for columns.

    A name that leaves no room beside it stands above what its task does.
    """
    widest = max((size for entry in entries if (size := len(entry.task)) + 3 + LEAST_COLUMN <= width), default=0)
    lines: list[Line] = []
    functions: dict[str, str] = {}
    last = ""
    for entry in entries:
        if not entry.task:
            lines += [Line(text, entry.style) for text in _wrap(entry.text, width, "    ")]
            continue
        for text in _cell(entry, functions, width - widest - 3):
            name = entry.task if entry.task != last else ""
            if len(name) > widest:
                lines.append(Line(name, HEADING))
                name = ""
            lines.append(Line(f"{name:{widest}} | {text}", entry.style))
            last = entry.task
    return lines


def _cell(entry: _Entry, functions: dict[str, str], width: int) -> list[str]:
    """The lines of one entry in its column; the function's name above it if it is another than before."""
    if entry.folded:
        return [f"  … {entry.folded} operations"] if entry.folded >= LEAST_FOLDED else []
    lines = []
    if functions.get(entry.task) != entry.function and entry.function:
        functions[entry.task] = entry.function
        lines += _wrap_name(f"{entry.function}():", width)
    return [*lines, *(f"  {text}" for text in _wrap(entry.text, width - 2, "  "))]


def _wrap_name(name: str, width: int) -> list[str]:
    """A name that is too long, broken after underscores."""
    lines = [""]
    for piece in re.split(r"(?<=_)(?=[^_])", name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("    ")
        lines[-1] += piece
    return lines


def _labelled(label: str, text: str, width: int) -> list[str]:
    indent = " " * (len(label) + 2)
    return textwrap.wrap(f"{label}: {text}", width, subsequent_indent=indent)


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
