"""From the lines of a trace to its events. What cannot be read is counted and located, and never passed over.

A line is `COMM-PID [CPU] FLAGS TIME: EVENT: TEXT`, with a process id behind the pid and without flags where the
trace was made so; `trace-cmd report -l` prints `COMM-PID CPUFLAGS TIME` instead. Reading is laid out for the event
that traces consist of: everything before the time is the same in many lines, and is looked up; the text is read by a
function of the event's name.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import Event, Kprobe, Lost, Mark, Record, Task, Unknown
from .source import Source, Unreadable
from .texts import Parse, known_parsers

KEPT = 20
"""Troubles of each kind of which the place is remembered; all are counted."""

PREFIXES = 1 << 16
"""Beginnings of lines that are remembered."""

NAMES = 1 << 12
"""Names of events that are remembered."""


class Kind(enum.StrEnum):
    """What can be wrong with a trace."""

    LOST = "lost events"
    """The trace itself says that events are missing."""
    GARBAGE = "not a line of a trace"
    TEXT = "known event in an unknown form"
    UNKNOWN = "unknown event"
    CUT = "cut off"
    ORDER = "time runs backwards"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong in one place."""

    kind: Kind
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.kind}: {self.text}"


class Strict(Exception):
    """The trace has something wrong with it, and reading was asked to be strict."""


class Clock(enum.StrEnum):
    """What the times of a trace count."""

    NANOSECONDS = "ns"
    """Seconds with six or nine places were printed."""
    TICKS = "ticks"
    """Whole numbers were printed: cycles, or a counter."""


@dataclass(slots=True)
class Account:
    """What has been read so far, and what was wrong with it."""

    lines: int = 0
    events: Counter[str] = field(default_factory=Counter)
    """By name. Lost ones are in none."""
    clock: Clock = Clock.NANOSECONDS
    first: int | None = None
    """Time of the first event."""
    last: int = 0
    troubles: list[Trouble] = field(default_factory=list)
    """The first KEPT ones of each kind, in order."""
    counts: Counter[Kind] = field(default_factory=Counter)
    lost: int = 0
    """Events that are missing, where the trace says how many."""

    def total(self) -> int:
        """Events that were read."""
        return sum(self.events.values())

    @property
    def whole(self) -> bool:
        """Was there nothing that might have been an event, and was not read?"""
        return not any(self.counts[kind] for kind in (Kind.LOST, Kind.GARBAGE, Kind.TEXT, Kind.CUT))


class Trace:
    """One pass over a trace.

    `strict` raises Strict at the first trouble of any kind. Iterating raises Unreadable if the file cannot be read at
    all. Wherever events may be missing, an event of the record Lost stands in their place.
    """

    def __init__(self, path: Path, parsers: Mapping[bytes, Parse] | None = None, *, strict: bool = False) -> None:
        self.path = path
        self.account = Account()
        self._parsers = dict(known_parsers() if parsers is None else parsers)
        self._strict = strict
        self._tasks: dict[bytes, Task | None] = {}
        self._names = {name: name.decode() for name in self._parsers}
        self._seen_event = False

    def __iter__(self) -> Iterator[Event]:
        account, tasks, parsers, names = self.account, self._tasks, self._parsers, self._names
        source = Source(self.path)
        number, latest, counts = 0, 0, account.events
        build: Callable[[type[Event], tuple[Any, ...]], Event] = tuple.__new__
        for lines in source.blocks():
            for line in lines:
                number += 1
                head, _, rest = line.partition(b": ")
                prefix, _, clock = head.rpartition(b" ")
                task = tasks.get(prefix)
                name, _, text = rest.partition(b": ")
                parse = parsers.get(name)
                if task is not None and parse is not None and clock[-7:-6] == b"." and clock[:1].isdigit():
                    # the ordinary case; everything else goes the long way round
                    record = parse(text)
                    try:
                        time = int(clock.replace(b".", b"")) * 1000
                    except ValueError:
                        time = -1
                    if record is not None and time >= latest:
                        latest = time
                        known = names[name]
                        counts[known] += 1
                        yield build(Event, (number, time, task, known, record))
                        continue
                account.lines, account.last = number, max(account.last, latest)
                event = self._read(number, line, latest)
                if event is not None:
                    latest = event.time  # if that is earlier, it is counted once, and goes on from there
                    yield event
            account.lines, account.last = number, max(account.last, latest)
            if not self._seen_event:
                self._expect_text(lines)
        if source.cut:
            self._trouble(Kind.CUT, number + 1, source.cut)
        if not account.total():
            raise Unreadable(f"{self.path} is no trace: there is no event in its {number:,} lines.")

    def _read(self, number: int, line: bytes, latest: int) -> Event | None:
        """The long way round: any line, be it of a trace or not."""
        line = line.rstrip(b"\r")
        if not line.strip(b" \t\0"):
            return None
        if (special := self._special(number, line, latest)) is not None:
            return special or None
        found = _LINE.match(line)
        if found is None:
            return self._unreadable(Kind.GARBAGE, number, line, latest)
        task = self._task(found[1])
        if task is None:
            return self._unreadable(Kind.GARBAGE, number, line, latest)
        prefix = line.partition(b": ")[0].rpartition(b" ")[0]
        if prefix.rstrip() == found[1]:
            self._tasks[prefix] = task  # so that the next line that begins like this is an ordinary one
        time = self._time(found[9])
        raw_name, text = found[10], (found[11] or b"").strip(b" \t\0")
        name = self._names.get(raw_name) or raw_name.decode("utf-8", "replace")
        record = self._record(raw_name, text)
        if record is None:
            return self._unreadable(Kind.TEXT, number, line, latest)
        if isinstance(record, Unknown):
            self._trouble(Kind.UNKNOWN, number, name)
        if time < latest:
            self._trouble(Kind.ORDER, number, f"{name} at {found[9].decode()}")
        if self.account.first is None:
            self.account.first = time
        self._seen_event = True
        self.account.events[name] += 1
        return Event(number, time, task, name, record)

    def _record(self, name: bytes, text: bytes) -> Record | None:
        """What an event tells; None if it is not printed as it should be."""
        parse = self._parsers.get(name)
        if parse is not None:
            record = parse(text)
            if record is not None or parse is _kprobe or not text.startswith(b"("):
                return record
            # somebody has named a probe like an event of KVM
        if name in _MARKS:
            text = text.partition(b": ")[2] if name == b"print" and b": " in text else text
            return Mark(text.decode("utf-8", "replace"))
        probe = _kprobe(text)
        if probe is None:
            return Unknown(text)
        if parse is None and len(self._names) < NAMES:
            self._names[name] = name.decode("utf-8", "replace")
            self._parsers[name] = _kprobe
        return probe

    def _special(self, number: int, line: bytes, latest: int) -> Event | tuple[()] | None:
        """Lines of a trace that are no events: () for those that say nothing; None if it is none of them."""
        if line.startswith(b"#"):
            entries = _ENTRIES.match(line)
            if entries is not None and len(entries[2]) < 20 and int(entries[1]) < int(entries[2]):
                return self._lost(number, int(entries[2]) - int(entries[1]), line, latest)
            return ()
        lost = _LOST.match(line)
        if lost is not None:
            return self._lost(number, int(lost[1]) if lost[1] and len(lost[1]) < 20 else None, line, latest)
        return () if not self._seen_event and _PREAMBLE.match(line) else None

    def _lost(self, number: int, count: int | None, line: bytes, latest: int) -> Event:
        self._trouble(Kind.LOST, number, _shown(line))
        self.account.lost += count or 0
        return Event(number, latest, NOBODY, "lost", Lost(count))

    def _unreadable(self, kind: Kind, number: int, line: bytes, latest: int) -> Event:
        """A line that might have been an event: there is no telling what it would have changed."""
        self._trouble(kind, number, _shown(line))
        return Event(number, latest, NOBODY, "lost", Lost(None))

    def _task(self, prefix: bytes) -> Task | None:
        if prefix in self._tasks:
            return self._tasks[prefix]
        if len(self._tasks) >= PREFIXES:
            self._tasks.clear()
        found = _TASK.match(prefix)
        task = None
        if found is not None:
            tgid = int(found[3]) if found[3] and found[3].isdigit() else None
            flags = (found[5] or found[7] or b"").decode("utf-8", "replace")
            task = Task(found[1].decode("utf-8", "replace"), int(found[2]), tgid, int(found[4] or found[6]), flags)
        self._tasks[prefix] = task
        return task

    def _time(self, text: bytes) -> int:
        seconds, dot, fraction = text.partition(b".")
        if dot:
            return int(seconds) * 10**9 + int(fraction.ljust(9, b"0")[:9])
        self.account.clock = Clock.TICKS
        return int(seconds)

    def _trouble(self, kind: Kind, line: int, text: str) -> None:
        trouble = Trouble(kind, line, text)
        if self._strict:
            raise Strict(f"{self.path}: {trouble}.")
        account = self.account
        account.counts[kind] += 1
        if account.counts[kind] <= KEPT:
            account.troubles.append(trouble)

    def _expect_text(self, lines: list[bytes]) -> None:
        """Raise Unreadable if the first block of a file shows that it is no text."""
        sample = b"\n".join(lines[:1000])[: 1 << 16]
        odd = sum(byte < 9 or 13 < byte < 32 or byte > 126 for byte in sample)
        if odd * 10 > len(sample):
            raise Unreadable(f"{self.path} is no trace: it is not even text.")


NOBODY = Task("", 0, None, 0, "")
"""The task of what no task has done."""

_TASK_TEXT = (
    rb"\s{0,80}(.{1,64}?)-(\d{1,10})\s{1,40}(?:\(\s{0,10}(\d{1,10}|-+)\)\s{1,40})?"
    rb"(?:\[(\d{1,5})\](?:\s{1,40}([A-Za-z0-9.#*]{1,12}))?|(\d{1,5})([A-Za-z.#*][A-Za-z0-9.#*]{3,7}))"
)
_TASK = re.compile(_TASK_TEXT + rb"\s*\Z", re.DOTALL)
_LINE = re.compile(
    rb"(" + _TASK_TEXT + rb")\s{1,40}(\d{1,12}\.\d{1,9}|\d{1,20}):\s{1,40}([\w./-]{1,100}):?(?:\s(.*)|)\Z",
    re.DOTALL,
)
_ENTRIES = re.compile(rb"# entries-in-buffer/entries-written: (\d+)/(\d+)")
_LOST = re.compile(rb"CPU:\s*\d+ \[(?:LOST )?(?:(\d+) )?EVENTS(?: DROPPED)?\]\s*\Z")
_PREAMBLE = re.compile(rb"(?:cpus=\d+|version = \S+|CPU \d+ is empty|trace-cmd version .*)\s*\Z")
_KPROBE = re.compile(rb"\(([\w.$]+)(?:\+0x[0-9a-f]+/0x[0-9a-f]+)?(?: \[[\w-]+\])?\)[ ]?(.*)\Z", re.DOTALL)
_MARKS = frozenset({b"tracing_mark_write", b"print"})


def _kprobe(text: bytes) -> Record | None:
    """The text of a probe, whatever its event is called; None if it is something else."""
    found = _KPROBE.match(text)
    return None if found is None else Kprobe(found[1].decode("utf-8", "replace"), found[2])


def _shown(line: bytes) -> str:
    """A line for a message: short, and nothing in it that would upset a terminal."""
    text = line[:80].decode("utf-8", "replace").strip()
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
