"""The host's memory as a trace shows it: frames by their real numbers, and which of them is behind an address.

Which frame the host has behind an address is its own decision, so a model that follows a trace is told. Of the frames
themselves nothing is known, and one object stands for all of them (`HostFrame`).
"""

from __future__ import annotations

from collections.abc import Callable

from interleaf.hw.page_table import PG_LEVEL_4K, pages_per_entry
from interleaf.mm.mm_types import HUGE_LEVELS, Kind, Mm, Prot, Pte, PteKind, Vma, block_of
from interleaf.mm.page import EVERY_FRAME, HostFrame
from interleaf.runtime import Memory, World
from interleaf.runtime.objects import singleton

READABLE = Vma(Prot.READ, Kind.ANONYMOUS)
WRITABLE = Vma(Prot.WRITE, Kind.ANONYMOUS)


def follow_host(world: World) -> None:
    """Let every frame number be one of a real host's."""
    world.gathered[EVERY_FRAME] = True


class Host:
    """What the trace says of the host's mappings, put into the model's `Mm`. hvas are numbers of 4 KiB pages.

    A huge page of the host stays one until a notifier tells of it, whatever smaller pages KVM asks for meanwhile.
    """

    def __init__(self, memory: Memory, mm: Mm, note: Callable[..., None]) -> None:
        """`note(undo, *arguments)` is told how what changes beside the memory can be undone."""
        self._memory = memory
        self._note = note
        self._mm = mm
        self._frame = singleton(memory.world, HostFrame)
        self._huge: dict[tuple[int, int], int] = {}
        """Level and first hva of a huge page -> its first frame."""

    def wait(self, hva: int) -> None:
        """It is not known yet what is behind `hva`: whoever looks must wait."""
        busy = Pte(PteKind.BUSY, WRITABLE)
        for level in HUGE_LEVELS:
            if (block := block_of(level, hva)) in self._huge:
                self._memory.set(Mm.huge[block].cell(self._mm), busy)
        self._memory.set(Mm.pte[hva].cell(self._mm), busy)

    def refuse(self, hva: int) -> None:
        """The process may not make the access that it makes to `hva`."""
        self._forget(hva)
        self._memory.set(Mm.pte[hva].cell(self._mm), Pte())

    def show(self, hva: int, pfn: int, level: int, writable: bool) -> None:
        """`hva` is mapped to the frame `pfn`, by an entry of `level` at least."""
        if level > PG_LEVEL_4K:
            block = block_of(level, hva)
            self._huge_is(block, pfn - (hva - block[1]))
        present = Pte(PteKind.PRESENT, WRITABLE if writable else READABLE, self._frame, writable, pfn)
        for huge in HUGE_LEVELS:
            block = block_of(huge, hva)
            first = self._huge.get(block)
            if first is not None and first + hva - block[1] == pfn:
                self._memory.set(Mm.huge[block].cell(self._mm), present._replace(offset=first))
                return
            self._drop(block)
        self._memory.set(Mm.pte[hva].cell(self._mm), present)

    def show_huge(self, hva: int, level: int, pfn: int) -> None:
        """There is a huge page of `level` from `hva` on, in the frames from `pfn` on."""
        self._huge_is((level, hva), pfn)
        entry = Pte(PteKind.PRESENT, WRITABLE, self._frame, True, pfn)
        self._memory.set(Mm.huge[level, hva].cell(self._mm), entry)

    def take(self, start: int, end: int) -> None:
        """A notifier tells of the hvas start <= hva < end: what is there may be something else afterwards."""
        for level, first in list(self._huge):
            if first < end and start < first + pages_per_entry(level):
                self._drop((level, first))

    def _forget(self, hva: int) -> None:
        for level in HUGE_LEVELS:
            self._drop(block_of(level, hva))

    def _drop(self, block: tuple[int, int]) -> None:
        if block in self._huge:
            self._huge_is(block, None)
            self._memory.set(Mm.huge[block].cell(self._mm), Pte())

    def _huge_is(self, block: tuple[int, int], pfn: int | None) -> None:
        self._note(self._put_back, block, self._huge.get(block))
        self._put_back(block, pfn)

    def _put_back(self, block: tuple[int, int], pfn: int | None) -> None:
        if pfn is None:
            self._huge.pop(block, None)
        else:
            self._huge[block] = pfn
