"""The lines of a file, plain or gzip, in blocks and in bounded memory.

A file that was cut, in the middle of a line or of its compressed stream, is read up to there, and the end says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

BLOCK = 1 << 18
"""Bytes that are read at once."""

LONGEST_LINE = 1 << 16
"""Bytes. What is longer is no line of a trace: it is handed on in pieces."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors put before a text."""

MAGIC = {
    b"\x17\x08\x44tracing": "trace-cmd's own format: run `trace-cmd report FILE > FILE.txt` and give that",
    b"PERFILE2": "perf's format: this reads what ftrace and trace-cmd write as text",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it, or use gzip",
    b"\xfd7zXZ": "compressed with xz: decompress it, or use gzip",
    b"BZh": "compressed with bzip2: decompress it, or use gzip",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x7fELF": "a program",
}
"""How files begin that are mistaken for a trace, and what they are."""

LONGEST_MAGIC = max(map(len, MAGIC))


class Unreadable(Exception):
    """A file is not what it was expected to be; the text says what is wrong with it."""


@dataclass(slots=True)
class Source:
    """The lines of one file, once. `cut` is known when they have all been read."""

    path: Path
    cut: str = field(default="", init=False)
    """Why the end of the file is missing; empty if it is not."""

    def blocks(self) -> Iterator[list[bytes]]:
        """Lists of lines without their ends. The last line is left out if it is cut. Raises Unreadable."""
        try:
            with self.path.open("rb") as file:
                yield from self._lines(self._bytes(file))
        except IsADirectoryError:
            raise Unreadable(
                f"{self.path} is a folder; give one file of text, as ftrace or trace-cmd wrote it."
            ) from None
        except OSError as error:
            raise Unreadable(f"{self.path} cannot be read: {error.strerror or error}.") from None

    def _bytes(self, file: BufferedReader) -> Iterator[bytes]:
        first = b""
        while len(first) < LONGEST_MAGIC and (block := file.read1(BLOCK)):
            first += block
        if not first:
            raise Unreadable(f"{self.path} is empty.")
        for magic, what in MAGIC.items():
            if first.startswith(magic):
                raise Unreadable(f"{self.path} is no text: it is {what}.")
        if not first.startswith(b"\x1f\x8b"):
            yield first
            while block := file.read1(BLOCK):  # a pipe's lines as they come: Ctrl-C must not lose those before it
                yield block
            return
        yield from self._decompressed(file, first)

    def _decompressed(self, file: BufferedReader, block: bytes) -> Iterator[bytes]:
        """The contents of a gzip file of one or several members."""
        stream = zlib.decompressobj(wbits=31)
        while True:
            try:
                while block:
                    if text := stream.decompress(block, BLOCK):
                        yield text
                    block = stream.unconsumed_tail
                    if stream.eof:
                        block = stream.unused_data.lstrip(b"\0")  # padding
                        stream = zlib.decompressobj(wbits=31)
                        if not block:
                            block = file.read1(BLOCK).lstrip(b"\0")
                            if not block:
                                return
            except zlib.error as error:
                self.cut = f"its compression is damaged ({error})"
                return
            block = file.read1(BLOCK)
            if not block:
                if text := stream.flush():
                    yield text
                self.cut = "its compressed stream ends too early"
                return

    def _lines(self, blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
        rest, mark = b"", BYTE_ORDER_MARK
        for block in blocks:
            lines = (rest + block.removeprefix(mark)).split(b"\n")
            mark = b""
            rest = lines.pop()
            if len(rest) > LONGEST_LINE:
                lines += [rest[at : at + LONGEST_LINE] for at in range(0, len(rest), LONGEST_LINE)]
                rest = b""
            if lines:
                yield lines
        if rest:
            self.cut = self.cut or "its last line has no end"
