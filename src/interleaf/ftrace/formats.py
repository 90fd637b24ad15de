"""The `format` files of events: how the kernel that wrote a trace prints its events.

A kernel that prints an event in another way than those that `texts` knows is read all the same, if its format files
were kept with the trace (`interleaf trace record` does so). Arguments that are no plain fields, such as
`__print_flags(...)`, cannot be turned round; where a record needs one, what `texts` knows is all there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .source import Unreadable
from .texts import TEMPLATES, Parse, Unfit, compile_template, either, known_parsers

_NAME = re.compile(r"^name: (\w+)$", re.MULTILINE)
_PRINTED = re.compile(r"^print fmt: (.*)\Z", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\tfield:.*?\b(\w+)(?:\[\w*\])?;\s*offset:", re.MULTILINE)
_CONVERSION = re.compile(r"%(?:%|[-#0 +]*\d*(?:\.\d+)?(?:hh|h|ll|l|L|z)?([diuxXpsc]))")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*')


@dataclass(frozen=True, slots=True)
class Format:
    """What one format file says."""

    name: str
    fields: tuple[str, ...]
    """Without the common ones."""
    template: str | None
    """The printed text as a template of `texts`; None if it is made by a piece of C."""


def parse_format(text: str) -> Format:
    """The contents of a format file. Raises ValueError if it is none."""
    name, printed = _NAME.search(text), _PRINTED.search(text)
    if name is None or printed is None:
        raise ValueError("no name and no print fmt in it")
    fields = tuple(field for field in _FIELD.findall(text) if not field.startswith("common_"))
    return Format(name[1], fields, _template(printed[1].strip()))


def _template(printed: str) -> str | None:
    text, at = "", 0
    while quoted := _QUOTED.match(printed, at):
        text += quoted[1]
        at = quoted.end()
    arguments = list(_arguments(printed[at:].lstrip(",")))
    parts, last, number = [], 0, 0
    for conversion in _CONVERSION.finditer(text):
        parts.append(text[last : conversion.start()])
        last = conversion.end()
        if conversion[1] is None:
            parts.append("%")
            continue
        if number == len(arguments):
            return None
        plain = re.fullmatch(r"(?:\([\w ]+\))?\s*REC->(\w+)", arguments[number])
        name = plain[1] if plain is not None else "_"
        kind = {"d": "d", "i": "d", "u": "d", "s": "s", "c": "s"}.get(conversion[1], "x")
        parts.append(f"{{{name}:{'l' if name == 'level' and kind == 'd' else kind}}}")
        number += 1
    parts.append(text[last:])
    if number != len(arguments) or "({" in printed[at:]:
        return None
    return re.sub(r"(\{_:s\})+", "{_:s}", "".join(parts))


def _arguments(text: str) -> Iterator[str]:
    """The arguments of a call, separated by the commas that are in no brackets and no string."""
    depth, start, quoted = 0, 0, False
    for at, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    if rest := text[start:].strip():
        yield rest


def read_formats(folder: Path) -> list[Format]:
    """All format files in a folder: `SYSTEM__EVENT.format`, or events/SYSTEM/EVENT/format. Raises Unreadable."""
    if not folder.is_dir():
        raise Unreadable(f"there is no folder {folder} with format files.")
    files = sorted({*folder.rglob("*.format"), *folder.rglob("format")})
    found = []
    for file in files:
        try:
            found.append(parse_format(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise Unreadable(f"{file} is no format file of an event: {error}.") from None
    if not found:
        raise Unreadable(f"there are no format files of events in {folder}.")
    return found


def parsers_for(formats: list[Format]) -> dict[bytes, Parse]:
    """Event -> the reading of its text: as its format file says, or else as other kernels print it."""
    parsers = known_parsers()
    for known in formats:
        if known.template is None or known.name not in TEMPLATES:
            continue
        record, templates = TEMPLATES[known.name]
        if known.template in templates:
            continue
        name = known.name.encode()
        try:
            parsers[name] = either([compile_template(known.template, record), parsers[name]])
        except Unfit:
            continue  # what other kernels print is all that is known
    return parsers
