"""`python -m bench [NAME ...]`: run benchmarks, print their tables, keep the results, renew the document."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from . import comparing, compiled, growth, hole, ingredients, locks, memory, reductions, symmetry, tracing
from .measure import FULL, Record, Scale, machine
from .report import DOCUMENT, described, keep, renew


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One module of this folder: what it measures, and how that is shown."""

    run: Callable[[Scale], list[Record]]
    tables: Callable[[list[Record]], dict[str, str]]


BENCHMARKS = {
    "locks": Benchmark(locks.run, locks.tables),
    "hole": Benchmark(hole.run, hole.tables),
    "ingredients": Benchmark(ingredients.run, ingredients.tables),
    "symmetry": Benchmark(symmetry.run, symmetry.tables),
    "growth": Benchmark(growth.run, growth.tables),
    "reductions": Benchmark(reductions.run, reductions.tables),
    "memory": Benchmark(memory.run, memory.tables),
    "compiled": Benchmark(compiled.run, compiled.tables),
    "tracing": Benchmark(tracing.run, tracing.tables),
    "comparing": Benchmark(comparing.run, comparing.tables),
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; 2 if there is no such one."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"bench: no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    here = machine()
    for name in names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        records = benchmark.run(FULL)
        keep({name: {"machine": here, "records": records}})
        tables = benchmark.tables(records) | {f"{name}-machine": f"Measured on {described(here)}."}
        for text in tables.values():
            print(text, end="\n\n", flush=True)
        DOCUMENT.write_text(renew(DOCUMENT.read_text(encoding="utf-8"), tables), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
