"""Walks through real page tables, and their comparison with what the trace says.

A file of snapshots has, for each, `SNAP id=N label=TEXT root=ADDRESS level=N newest=N`, a line `E LEVEL GFN SPTE` for
each entry that is not empty, depth first from the root, and `END`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .reconstruct import Reconstruction
from .records import Event, Mark
from .source import Source, Unreadable
from .spte import FROZEN, NON_PRESENT, PRESENT

_SNAP = re.compile(rb"SNAP id=(\d{1,9}) label=(\S*) root=(?:none|([0-9a-f]{1,16}) level=([1-5]))(?: .*)?\s*\Z")
_ENTRY = re.compile(rb"E ([1-5]) ([0-9a-f]{1,16}) ([0-9a-f]{1,16})\s*\Z")
_MARK = re.compile(r"GT \S+ SNAP id=(\d{1,9}) ")


@dataclass(slots=True)
class Snapshot:
    """The entries below one root at one moment."""

    number: int
    label: str
    root: int | None
    """pfn of the root table; None if no vCPU had loaded one."""
    entries: dict[tuple[int, int], int] = field(default_factory=dict)
    """Level and gfn -> entry."""


@dataclass(slots=True)
class Comparison:
    """A snapshot beside what was reconstructed."""

    snapshot: Snapshot
    entries: int = 0
    """Entries that are in both."""
    volatile: int = 0
    """Of those, the ones in which the CPU has set A or D bits since the last event."""
    thawed: int = 0
    """Of those, the ones that were frozen and have become non-present since, without an event."""
    differences: list[str] = field(default_factory=list)


def read_snapshots(path: Path) -> Iterator[Snapshot]:
    """The snapshots of a file, in order. Raises Unreadable."""
    current: Snapshot | None = None
    source = Source(path)
    number = 0
    for lines in source.blocks():
        for line in lines:
            number += 1
            if found := _ENTRY.match(line):
                if current is None:
                    raise Unreadable(f"{path}, line {number}: an entry outside a snapshot.")
                current.entries[int(found[1]), int(found[2], 16)] = int(found[3], 16)
            elif found := _SNAP.match(line):
                if current is not None:
                    raise Unreadable(f"{path}, line {number}: a snapshot begins inside another.")
                label = found[2].decode("utf-8", "replace")
                current = Snapshot(int(found[1]), label, int(found[3], 16) >> 12 if found[3] else None)
            elif line.startswith(b"END") and current is not None:
                yield current
                current = None
            elif line.strip() and not line.startswith(b"#"):
                raise Unreadable(f"{path}, line {number}: not a line of a snapshot: {line[:60]!r}.")
    if source.cut or current is not None:
        raise Unreadable(f"{path} is cut off after line {number}.")


def snapshot_number(event: Event) -> int | None:
    """Which snapshot is taken at this moment; None if none is."""
    if not isinstance(event.record, Mark):
        return None
    found = _MARK.match(event.record.text)
    return None if found is None else int(found[1])


def compare(snapshot: Snapshot, known: Reconstruction) -> Comparison:
    """Compare a snapshot with the tables as they are now."""
    result = Comparison(snapshot)
    root = None if snapshot.root is None else known.root(snapshot.root)
    mine = {(level, gfn): spte for level, gfn, spte in known.tables.contents(root)} if root is not None else {}
    volatile = known.layout.volatile if known.layout is not None else 0
    for where in sorted({*mine, *snapshot.entries}, key=lambda entry: (-entry[0], entry[1])):
        said, real = mine.get(where, 0), snapshot.entries.get(where, 0)
        if said == real or (said in NON_PRESENT and real in NON_PRESENT):
            result.entries += 1
        elif said in FROZEN and real in NON_PRESENT:
            result.entries += 1
            result.thawed += 1
        elif said & real & PRESENT and said | real & volatile == real:
            result.entries += 1
            result.volatile += 1
        else:
            level, gfn = where
            result.differences.append(f"gfn {gfn:x}, level {level}: the trace says {said:x}, the snapshot {real:x}")
    return result
