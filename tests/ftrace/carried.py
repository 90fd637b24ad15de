"""The traces of real kernels that are carried with the project."""

from pathlib import Path

GROUNDTRUTH = Path(__file__).parent.parent / "groundtruth"

TRACES = sorted(GROUNDTRUTH.rglob("*.trace.gz"))


def name_of(trace: Path) -> str:
    """Kernel, run and workload, such as 6.12/runA/w03_slot_delete."""
    return trace.relative_to(GROUNDTRUTH).as_posix().removesuffix(".trace.gz")


def trace_of(name: str) -> Path:
    """The other way round."""
    return GROUNDTRUTH / f"{name}.trace.gz"


def snapshots_of(trace: Path) -> Path:
    """The file of page-table walks that belongs to a trace; w18 of 6.1, which was skipped, has none."""
    return trace.with_name(trace.name.replace(".trace.", ".snap."))
