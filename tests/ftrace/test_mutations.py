"""Whatever is changed in a trace, or in the model, is reported, and where it is."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from interleaf.designs import load
from interleaf.ftrace.compare import compare_trace
from interleaf.ftrace.outcome import Divergence
from tests.ftrace.carried import snapshots_of, trace_of

DESIGNS = {"6.1": "v6.1", "6.12": "v6.12"}

BEHIND = 100
"""Lines of a trace that are left behind the change."""

NAMES = {
    "w02": "icount/w02_read_write",
    "w05": "icount/w05_dontneed",
    "w06": "icount/w06_dirtylog",
    "w06b": "icount/w06b_dirty_manual",
    "w06c": "icount/w06c_dirty_ring",
    "w07e": "icount/w07e_log_from_start",
    "w08b": "runA/w08b_stress_data",
    "w08c": "runA/w08c_stress_notifier",
    "w09": "icount/w09_mmio",
    "w12": "icount/w12_mprotect",
}

Lines = list[str]
Edit = Callable[[Lines, int], Lines]


def bit(field: str, flip: int) -> Edit:
    """Flip bits of the number behind `field`."""

    def edit(lines: Lines, at: int) -> Lines:
        before, after = lines[at].split(f"{field} ", 1)
        number, space, rest = after.partition(" ")
        return [*lines[:at], f"{before}{field} {int(number, 16) ^ flip:x}{space}{rest}", *lines[at + 1 :]]

    return edit


def without(lines: Lines, at: int) -> Lines:
    """The event is missing."""
    return lines[:at] + lines[at + 1 :]


def twice(lines: Lines, at: int) -> Lines:
    """The event comes twice."""
    return [*lines[: at + 1], *lines[at:]]


def swapped(lines: Lines, at: int) -> Lines:
    """The event and the next one change places."""
    return [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]


def of_another(lines: Lines, at: int) -> Lines:
    """Another thread has done it."""
    comm, rest = lines[at].split("-", 1)
    return [*lines[:at], f"{comm}-4{rest}", *lines[at + 1 :]]


@dataclass(frozen=True)
class Mutation:
    kernel: str
    workload: str
    word: str
    """The line that is changed has this."""
    skip: int
    """So many lines that have it come before."""
    edit: Edit
    after: int = 0
    """The divergence is reported so many lines behind the change."""

    def __str__(self) -> str:
        return f"{self.kernel}-{self.workload}-{self.word.split()[0]}-{self.skip}-{self.edit.__name__}"


def compared(tmp_path: Path, mutation: Mutation) -> tuple[int, Divergence]:
    """The line that was changed, and the first divergence."""
    trace = trace_of(f"{mutation.kernel}/{NAMES[mutation.workload]}")
    lines = gzip.decompress(trace.read_bytes()).decode().splitlines()
    at = [number for number, line in enumerate(lines) if mutation.word in line][mutation.skip]
    path = tmp_path / "mutated.trace"
    path.write_text("\n".join(mutation.edit(lines, at)[: at + BEHIND]) + "\n")
    result = compare_trace(path, load(DESIGNS[mutation.kernel]))
    assert result.divergent, "nothing was reported"
    return at + 1, result.divergences[0]


CHANGED = "kvm_tdp_mmu_spte_changed: "
SET = "kvm_mmu_set_spte: "
REQUESTED = "kvm_mmu_spte_requested: "
FAST = "fast_page_fault: "


def mutations(kernel: str) -> list[Mutation]:
    """What is changed in the traces of a kernel."""
    rows: list[tuple[str, str, int, Edit, int]] = [
        ("w02", CHANGED, 8, bit("new_spte", 2), 0),
        ("w02", CHANGED, 30, bit("new_spte", 1 << 63), 0),
        ("w02", CHANGED, 12, bit("gfn", 1), 0),
        ("w02", CHANGED, 20, bit("old_spte", 1 << 20), 0),
        ("w02", CHANGED, 40, without, 0),
        ("w02", CHANGED, 44, twice, 1),
        ("w02", CHANGED, 16, of_another, 0),
        ("w02", SET, 5, bit("level", 3), 0),
        ("w02", SET, 9, bit("at", 8), 0),
        ("w02", SET, 11, without, 0),
        ("w02", "kvm_mmu_get_page: ", 2, bit("gfn", 0x200), 0),
        ("w02", REQUESTED, 6, swapped, 0),
        ("w02", REQUESTED, 8, bit("gfn", 4), 0),
        # without its fault, what 6.12 requests could be a prefault, which only what it makes of the page tells
        ("w02", "kvm_page_fault: ", 9, without, int(kernel == "6.12")),
        ("w05", CHANGED, 40, bit("new_spte", 1 << 12), 0),
        ("w06", CHANGED, 30, bit("new_spte", 2), 0),
        ("w06", FAST, 3, bit("new", 1 << 6), 0),
        ("w06", FAST, 2, without, 0),
        ("w06b", CHANGED, 70, twice, 1),
        ("w06c", CHANGED, 80, bit("gfn", 3), 0),
        ("w07e", CHANGED, 40, bit("level", 3), 0),
        # two vCPUs and more at once: whatever the order, it does not explain these
        ("w08b", CHANGED, 3000, bit("new_spte", 2), 0),
        # who zaps waits for ever for an entry that somebody has frozen who does not go on
        ("w08b", CHANGED, 9865, of_another, 0),
        ("w08c", CHANGED, 60, bit("new_spte", 2), 0),
        ("w08c", CHANGED, 61, bit("gfn", 1), 0),
        # the next line of 6.12 is another thread's
        ("w08c", CHANGED, 90, without, int(kernel == "6.12")),
        ("w08c", CHANGED, 62, bit("old_spte", 1 << 20), 0),
        # an event before it fits in another order only, in 6.1
        ("w08c", REQUESTED, 163, bit("gfn", 4), 0),
        ("w09", "mark_mmio_spte: ", 1, bit("gen", 2), 0),
        ("w09", "check_mmio_spte: ", 0, bit("spte", 8), 0),
        ("w09", CHANGED, 6, bit("new_spte", 1 << 52), 0),
        ("w12", CHANGED, 90, without, 0),
    ]
    return [Mutation(kernel, *row) for row in rows]


@pytest.mark.parametrize("mutation", mutations("6.1") + mutations("6.12"), ids=str)
def test_what_is_changed_in_a_trace_is_reported_where_it_is(tmp_path: Path, mutation: Mutation) -> None:
    changed, divergence = compared(tmp_path, mutation)
    assert divergence.line == changed + mutation.after
    before = [int(text.partition(":")[0]) for text in divergence.before]
    assert before == sorted(set(before))
    assert before[-1] == divergence.line


DROPPED = {
    "collapse-zaps-parents": "w07d_1g",
    "eager-page-split": "w07_thp_eager",
    "fast-page-fault": "w06b_dirty_manual",
    "freeze-without-bookkeeping": "w07d_1g",
    "leaf-writable-hint": "w13c_collapse",
    "pre-fault-memory": "w17_prefault",
    "remade-spte-clean": "w09_mmio",
    "slot-zap-quirk": "w18_zap_leafs",
    "split-on-fault": "w07d_1g",
    "zap-1g-first": "w09_mmio",
    "zap-small-first": "w09_mmio",
}
"""Rules of v6.12 that one thread shows in what it does, and a workload in which it does."""


@pytest.mark.parametrize("rule", DROPPED)
def test_a_rule_that_the_model_does_not_follow_is_named(rule: str) -> None:
    result = compare_trace(trace_of(f"6.12/icount/{DROPPED[rule]}"), load(f"v6.12 without {rule}"))
    assert f"not {rule}" in result.divergences[0].rules


def test_a_split_child_that_is_missing_in_a_walk_is_reported_at_the_snapshot(tmp_path: Path) -> None:
    trace = trace_of("6.12/icount/w07e_log_from_start")
    lines = gzip.decompress(snapshots_of(trace).read_bytes()).decode().splitlines()
    third = [at for at, line in enumerate(lines) if line.startswith("SNAP ")][2]
    missing = next(at for at in range(third, len(lines)) if lines[at].startswith("E 1 "))
    walks = tmp_path / "missing.snap"
    walks.write_text("\n".join(lines[:missing] + lines[missing + 1 :]) + "\n")
    result = compare_trace(trace, load("v6.12"), walks)
    assert result.divergent == 0
    assert [len(snapshot.differences) for snapshot in result.snapshots] == [0, 0, 1, 0]
