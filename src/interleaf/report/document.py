"""The result of a check for programs: JSON with a version, and the way back from it to a finding.

docs/json.md says what each field means. A change that a reader has to know of makes a new version; readers must
ignore fields that they do not know.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from interleaf import __version__
from interleaf.check import Cell, Finding, Request
from interleaf.runtime.execution import Move

from .narration import Narration
from .story import place

CHECK_SCHEMA = "interleaf/check/1"
FINDING_SCHEMA = "interleaf/finding/1"

Json: TypeAlias = dict[str, Any]


class Unreadable(Exception):
    """A file is not what it was expected to be; the text says what is wrong with it."""


def check_document(cells: Iterable[Json], findings: Iterable[Json]) -> Json:
    """The result of a whole check."""
    return {"schema": CHECK_SCHEMA, "interleaf": __version__, "cells": list(cells), "findings": list(findings)}


def finding_document(finding: Json) -> Json:
    """One finding as a file of its own."""
    return {"schema": FINDING_SCHEMA, "interleaf": __version__, "finding": finding}


def cell_entry(request: Request, cell: Cell | None, error: str, stopped: str) -> Json:
    """One cell of the matrix; `error` or `stopped` says why there is none, or only a part of an answer."""
    entry: Json = {
        "scenario": cell.scenario if cell is not None else request.scenario,
        "design": cell.design if cell is not None else request.design,
        "dropped": list(request.dropped),
        "parameters": dict(request.parameters),
        "engine": request.engine,
        "verdict": "incomplete",
        "reason": error or stopped,
        "error": error or None,
        "properties": {},
        "exhaustive": False,
        "states": 0,
        "transitions": 0,
        "executions": 0,
        "depth": 0,
        "bounds": request.bounds.given(),
        "seconds": 0.0,
        "work": {},
        "seed": request.seed,
        "certificate": None,
    }
    if cell is None:
        return entry
    verdict = cell.verdict
    entry |= {
        "verdict": str(verdict.status),
        "reason": error or verdict.reason or stopped,
        "properties": {name: str(status) for name, status in verdict.properties},
        "exhaustive": verdict.exhaustive,
        "states": cell.states,
        "transitions": cell.transitions,
        "executions": cell.executions,
        "depth": cell.depth,
        "seconds": round(cell.seconds, 3),
        "work": {done.task: {"changed": done.changed, "torn_down": done.torn_down} for done in cell.work},
    }
    certificate = verdict.certificate
    if certificate is not None:
        entry["certificate"] = {
            "digest": certificate.subject.digest,
            "engines": list(certificate.engines),
            "reductions": list(certificate.reductions),
            "states": certificate.states,
            "transitions": certificate.transitions,
            "executions": certificate.executions,
            "depth": certificate.depth,
            "seed": certificate.seed,
            "audits": certificate.audits,
            "collision": certificate.collision,
        }
    return entry


def finding_entry(finding: Finding, narration: Narration | None) -> Json:
    """One finding; `narration` is its replay, None if it could not be replayed."""
    steps = [] if narration is None else [told for told in narration.told if told.step >= 0]
    return {
        "property": finding.property,
        "message": finding.message,
        "scenario": finding.scenario,
        "design": finding.design,
        "dropped": list(finding.dropped),
        "parameters": dict(finding.parameters),
        "schedule": [[move.task, list(move.choices), move.operations] for move in finding.schedule],
        "steps": [
            {
                "step": told.step,
                "task": told.task,
                "operation": told.operation,
                "source": place(told.site),
                "text": "; ".join((*(note.text for note in told.notes), told.text)),
            }
            for told in steps
        ],
        "preemptions": finding.preemptions,
        "executions": finding.executions,
        "object": finding.object,
        "digest": finding.digest,
    }


def to_text(document: Json) -> str:
    """The document as it is written, ending with a newline."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all. Raises OSError.

    What is no regular file (a device, a pipe) is written to as it is. What UTF-8 does not have, such as a file's name
    in another encoding, is a "?".
    """
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        return
    path = path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def expect_writable(path: Path) -> None:
    """Raise OSError now if `write` would do so for a reason that can be seen beforehand."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}")
    needed = path if path.exists() and not path.is_file() else path.parent
    if not os.access(needed, os.W_OK):
        raise PermissionError(f"{needed} cannot be written to")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written to")


def read_finding(path: Path, number: int | None) -> Finding:
    """The finding in a finding file, or the one with this number (from 1 on) in the result of a check.

    Raises Unreadable.
    """
    document = _read(path)
    schema = document.get("schema")
    if schema == FINDING_SCHEMA:
        if number not in (None, 1):
            raise Unreadable(f"{path} holds one finding, so there is no finding {number}.")
        return _finding(path, "finding", document.get("finding"))
    if schema == CHECK_SCHEMA:
        found = _typed(path, "findings", document.get("findings"), list)
        if not found:
            raise Unreadable(f"{path} is the result of a check without findings: there is nothing to show.")
        if number is None and len(found) > 1:
            raise Unreadable(f"{path} has {len(found)} findings: choose one with --finding 1 … {len(found)}.")
        chosen = 1 if number is None else number
        if not 1 <= chosen <= len(found):
            raise Unreadable(f"{path} has no finding {chosen}; it has {len(found)}, numbered from 1 on.")
        return _finding(path, f"findings[{chosen - 1}]", found[chosen - 1])
    kind = str(schema).rpartition("/")[0]
    if f"{kind}/" in (CHECK_SCHEMA.rstrip("1"), FINDING_SCHEMA.rstrip("1")):
        raise Unreadable(
            f"{path} has the schema {schema}, written by interleaf {document.get('interleaf', 'of another version')}; "
            f"this is interleaf {__version__}, which reads {CHECK_SCHEMA} and {FINDING_SCHEMA}."
        )
    raise Unreadable(f"{path} is JSON, but no finding: it has no schema {FINDING_SCHEMA} or {CHECK_SCHEMA}.")


def _read(path: Path) -> Json:
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise Unreadable(f"{path} is a directory; give the file of one finding.") from None
    except UnicodeDecodeError:
        raise Unreadable(f"{path} is not JSON: it is not even text in UTF-8.") from None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        ending = text.rstrip()[-1:]
        cut = text.lstrip().startswith("{") and ending != "}"
        what = "is cut off: the JSON in it has no end" if cut else "is not JSON"
        raise Unreadable(f"{path} {what} ({error}).") from None
    if not isinstance(document, dict):
        raise Unreadable(f"{path} is JSON, but no finding: its outermost value is no object.")
    return document


def _finding(path: Path, where: str, entry: Any) -> Finding:
    entry = _typed(path, where, entry, dict)

    def part(name: str, kind: type[Any]) -> Any:
        if name not in entry:
            raise Unreadable(f"{path} is damaged: {where} has no field {name!r}.")
        return _typed(path, f"{where}.{name}", entry[name], kind)

    parameters: Mapping[str, Any] = part("parameters", dict)
    preemptions = entry.get("preemptions")
    return Finding(
        property=part("property", str),
        message=part("message", str),
        scenario=part("scenario", str),
        design=part("design", str),
        dropped=tuple(_each(path, f"{where}.dropped", part("dropped", list), _string)),
        parameters=tuple((name, _integer(path, f"{where}.parameters", value)) for name, value in parameters.items()),
        schedule=tuple(_each(path, f"{where}.schedule", part("schedule", list), _move)),
        preemptions=None if preemptions is None else _integer(path, f"{where}.preemptions", preemptions),
        executions=part("executions", int),
        object=part("object", str),
        digest=part("digest", str),
    )


def _each(path: Path, where: str, values: list[Any], convert: Callable[[Path, str, Any], Any]) -> list[Any]:
    return [convert(path, f"{where}[{index}]", value) for index, value in enumerate(values)]


def _move(path: Path, where: str, value: Any) -> Move:
    parts = _typed(path, where, value, list)
    if len(parts) != 3:
        raise Unreadable(f"{path} is damaged: {where} must be [task, choices, operations], not {value!r:.60}.")
    choices = _typed(path, f"{where}[1]", parts[1], list)
    return Move(
        _string(path, f"{where}[0]", parts[0]),
        tuple(_each(path, f"{where}[1]", choices, _integer)),
        _integer(path, f"{where}[2]", parts[2]),
    )


def _string(path: Path, where: str, value: Any) -> str:
    return str(_typed(path, where, value, str))


def _integer(path: Path, where: str, value: Any) -> int:
    return int(_typed(path, where, value, int))


def _typed(path: Path, where: str, value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {dict: "an object", list: "a list", str: "a string", int: "an integer"}
        raise Unreadable(f"{path} is damaged: {where} must be {names[kind]}, not {value!r:.60}.")
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
