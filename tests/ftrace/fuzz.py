"""Feed the reading of traces with what a fuzzer makes up, guided by the code that it reaches.

    pip install atheris
    python -m tests.ftrace.fuzz [SECONDS [FOLDER]]     for how long (1200), and where the corpus is kept

It begins with tests/ftrace/fuzzed and pieces of the carried traces. What crashes, or takes longer than ten seconds, is
written to the current folder. What was worth keeping is in tests/ftrace/fuzzed, and an ordinary test reads that.
"""

from __future__ import annotations

import gzip
import itertools
import sys
import tempfile
from pathlib import Path

import atheris

from tests.ftrace.carried import trace_of

with atheris.instrument_imports(include=["interleaf.ftrace", "interleaf.report"]):
    from interleaf.ftrace.texts import known_parsers
    from tests.ftrace.everything import put_through

PIECE = 8
"""Lines of a trace that are one seed."""

SHOWN = 200
"""Of so many inputs, one is shown too."""

SEEDS = ("6.1/kprobes/w07d_1g", "6.12/icount/w06c_dirty_ring", "6.12/runA/w09_mmio", "6.1/icount/w02_read_write")


def main() -> None:
    """Fuzz until the time is over, or something crashes."""
    seconds, *folders = sys.argv[1:] or ["1200"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        file, words, seeds = work / "trace", work / "words", work / "seeds"
        seeds.mkdir()
        for name in SEEDS:
            lines = gzip.decompress(trace_of(name).read_bytes()).splitlines(keepends=True)
            for at in range(0, min(len(lines), 60 * PIECE), PIECE):
                (seeds / f"{name.replace('/', '-')}-{at}").write_bytes(b"".join(lines[at : at + PIECE]))
        names = [name.decode() for name in known_parsers()]
        words.write_text("".join(f'"{word}"\n' for word in (*names, " [001] d..1. ", "old_spte ", "8000000000000000")))

        number = itertools.count()

        def try_one(content: bytes) -> None:
            file.write_bytes(content)
            put_through(file, show=next(number) % SHOWN == 0)

        corpus = folders or [str(Path(tempfile.mkdtemp(prefix="corpus-")))]
        print(f"The corpus is kept in {corpus[0]}.")
        kept = Path(__file__).parent / "fuzzed"
        options = [f"-max_total_time={seconds}", "-timeout=10", "-max_len=4096", f"-dict={words}"]
        atheris.Setup([sys.argv[0], *options, *corpus, str(kept), str(seeds)], try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
