"""Counting over time in bounded memory: bins that become wider as a trace becomes longer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

BINS = 240
"""More bins than this are merged in pairs."""

ROWS = 96
"""More ranges of gfns than this are merged."""

FIRST_WIDTH = 1000
"""Nanoseconds (or ticks) of a bin in the beginning."""


@dataclass(slots=True)
class Timeline:
    """Counts of things that happen, and the latest values of things that stand, by time."""

    start: int | None = None
    width: int = FIRST_WIDTH
    counts: dict[int, Counter[str]] = field(default_factory=dict)
    """Bin -> how often each thing happened in it."""
    levels: dict[int, dict[str, int]] = field(default_factory=dict)
    """Bin -> the values at its end, where they changed."""

    def bin_of(self, time: int) -> int:
        """The bin of a moment, merging bins if it lies behind the last."""
        if self.start is None:
            self.start = time
        position = max(0, time - self.start) // self.width
        while position >= BINS:
            self._merge()
            position = max(0, time - self.start) // self.width
        return position

    def count(self, time: int, what: str, number: int = 1) -> None:
        """Something happened."""
        position = self.bin_of(time)
        counter = self.counts.get(position)
        if counter is None:
            counter = self.counts[position] = Counter()
        counter[what] += number

    def set(self, time: int, what: str, value: int) -> None:
        """Something has a new value."""
        self.levels.setdefault(self.bin_of(time), {})[what] = value

    def _merge(self) -> None:
        self.width *= 2
        counts: dict[int, Counter[str]] = {}
        for position, counter in self.counts.items():
            counts.setdefault(position // 2, Counter()).update(counter)
        levels: dict[int, dict[str, int]] = {}
        for position in sorted(self.levels):
            levels.setdefault(position // 2, {}).update(self.levels[position])
        self.counts, self.levels = counts, levels


@dataclass(slots=True)
class Heat:
    """How often something happened, by time and by range of gfns."""

    start: int | None = None
    width: int = FIRST_WIDTH
    shift: int = 0
    """A row covers 2**shift gfns."""
    cells: dict[tuple[int, int], int] = field(default_factory=dict)
    """(bin of time, gfn >> shift) -> how often."""
    rows: Counter[int] = field(default_factory=Counter)
    """gfn >> shift -> how often."""

    def add(self, time: int, gfn: int, number: int = 1) -> None:
        """Something happened to a gfn."""
        if self.start is None:
            self.start = time
        while (position := max(0, time - self.start) // self.width) >= BINS:
            self._rebin(1, 0)
        row = gfn >> self.shift
        self.cells[position, row] = self.cells.get((position, row), 0) + number
        self.rows[row] += number
        while len(self.rows) > ROWS:
            self._rebin(0, 1)

    def _rebin(self, time: int, gfn: int) -> None:
        self.width <<= time
        self.shift += gfn
        cells: dict[tuple[int, int], int] = {}
        rows: Counter[int] = Counter()
        for (position, row), number in self.cells.items():
            place = (position >> time, row >> gfn)
            cells[place] = cells.get(place, 0) + number
            rows[row >> gfn] += number
        self.cells, self.rows = cells, rows


@dataclass(slots=True)
class Spread:
    """How a duration is spread, to an eighth of its size."""

    number: int = 0
    total: int = 0
    longest: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        """One duration, in the units of the trace."""
        value = max(0, value)
        self.number += 1
        self.total += value
        self.longest = max(self.longest, value)
        shift = max(0, value.bit_length() - 4)
        self.buckets[shift << 4 | value >> shift] += 1

    def quantile(self, share: float) -> int:
        """The duration that `share` of all do not exceed, to an eighth of its size; 0 if there is none."""
        wanted, seen = share * self.number, 0
        for bucket in sorted(self.buckets, key=lambda key: (key & 15) << (key >> 4)):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return min(self.longest, ((bucket & 15) + 1 << (bucket >> 4)) - 1)
        return self.longest
