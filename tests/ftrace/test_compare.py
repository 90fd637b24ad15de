"""The model does what real kernels did, event for event; the model of another kernel does not."""

import gzip
import os
from pathlib import Path

import pytest

from interleaf.designs import load
from interleaf.ftrace.compare import compare_trace
from tests.ftrace.carried import TRACES, name_of, snapshots_of, trace_of

DESIGNS = {"6.1": "v6.1", "6.12": "v6.12"}
LARGE = "w08"
"""Two vCPUs at once."""

TOGETHER = [
    f"{kernel}/{run}" for kernel in ("6.1", "6.12") for run in ("icount/w08_stress_dummy", "icount/w08e_race_fresh")
] + ["6.1/runA/w08e_race_fresh"]
"""Threads that act at the same time, in the order of their events."""

RACES = [
    f"{kernel}/{run}"
    for kernel in ("6.1", "6.12")
    for run in (
        "icount/w08c_stress_notifier",
        "runA/w08c_stress_notifier",
        "runA/w08_stress_dummy",
        "kprobes/w08e_race_fresh",
    )
] + [
    "6.1/runA/w08b_stress_data",
    "6.12/runA/w08e_race_fresh",
    "6.12/kprobes/w08_stress_dummy",
    "6.12/kprobes/w08b_stress_data",
    "6.12/kprobes/w08c_stress_notifier",
]
"""Only other orders than that of the events explain all of them."""

LONG = [
    "6.1/kprobes/w08_stress_dummy",
    "6.1/kprobes/w08b_stress_data",
    "6.1/kprobes/w08c_stress_notifier",
    "6.1/icount/w08b_stress_data",
    "6.12/icount/w08b_stress_data",
    "6.12/runA/w08b_stress_data",
]
"""Such ones for which it takes long to find them."""

SINGLE = [name for name in map(name_of, TRACES) if LARGE not in name]
QUICK = [name for name in SINGLE if "/icount/" in name]
"""All but the repetitions on two CPUs and with probes."""

ALL = bool(os.environ.get("INTERLEAF_ALL_TRACES"))
CHOSEN = TOGETHER + RACES + (LONG + SINGLE if ALL else QUICK)


def test_every_trace_is_named_once() -> None:
    assert sorted([*TOGETHER, *RACES, *LONG, *SINGLE]) == sorted(map(name_of, TRACES))


@pytest.mark.parametrize("name", CHOSEN)
def test_the_model_does_what_the_kernel_did(name: str) -> None:
    trace = trace_of(name)
    snapshots = snapshots_of(trace)
    result = compare_trace(
        trace, load(DESIGNS[name.split("/", maxsplit=1)[0]]), snapshots if snapshots.exists() else None
    )
    assert not result.divergences
    assert result.divergent == 0
    assert [snapshot.label for snapshot in result.snapshots if snapshot.differences] == []
    assert result.matched + sum(result.explained.values()) == result.events
    assert (result.orders > 0) == (name in RACES + LONG)
    assert result.events > 50 or name == "6.1/icount/w18_zap_leafs"


def test_another_kernel_diverges_and_the_rule_is_named() -> None:
    trace = trace_of("6.12/icount/w03_slot_delete")
    result = compare_trace(trace, load("v5.18"), snapshots_of(trace))
    assert result.divergent
    assert "non-present value" in result.divergences[0].reason
    assert result.divergences[0].rules


def _without(tmp_path: Path, name: str, word: str) -> Path:
    """A copy of a trace without the lines that have `word`."""
    lines = gzip.decompress(trace_of(name).read_bytes()).decode().splitlines()
    path = tmp_path / "without.trace"
    path.write_text("\n".join(line for line in lines if word not in line) + "\n")
    return path


@pytest.mark.parametrize("word", ["SLOT ", "tracing_mark_write"])
def test_a_trace_that_does_not_tell_of_the_vm_does_not_fit(tmp_path: Path, word: str) -> None:
    result = compare_trace(_without(tmp_path, "6.12/icount/w01_demand", word), load("v6.12"))
    assert result.divergent == result.events > 0
    assert "no memslot was set" in result.divergences[0].reason


def test_what_was_not_compared_is_told(tmp_path: Path) -> None:
    name = "6.12/icount/w01_demand"
    result = compare_trace(_without(tmp_path, name, " SNAP "), load("v6.12"), snapshots_of(trace_of(name)))
    assert result.equal
    assert result.gaps == ["the trace did not come to the snapshots 1, 2"]
    nothing = compare_trace(_without(tmp_path, name, "kvm_"), load("v6.12"))
    assert nothing.gaps == ["the trace has no event to compare"]


def test_a_notifier_that_does_not_come_is_missed_whatever_the_order(tmp_path: Path) -> None:
    name = "6.1/icount/w08c_stress_notifier"
    path = _without(tmp_path, name, "kvm_unmap_hva_range")
    result = compare_trace(path, load("v6.1"))
    lines = path.read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if "gtmain" in line and "spte_changed" in line)
    assert result.divergences[0].line == first


@pytest.mark.parametrize("threads", [1, 100])
def test_threads_come_and_go(tmp_path: Path, threads: int) -> None:
    lines = gzip.decompress(trace_of("6.12/icount/w05_dontneed").read_bytes()).decode().splitlines()
    middle = next(at for at, line in enumerate(lines) if "kvm_mmu_set_spte" in line)
    _, stamp = lines[middle].split("] ", 1)
    aged = f"{stamp.split(': ')[0]}: kvm_age_hva: mmu notifier age hva: 0x00007f0000000000 -- 0x00007f0000001000"
    others = [f"          other-{90_000 + n} [000] {aged}" for n in range(threads)]
    path = tmp_path / "twice.trace"
    path.write_text("\n".join([*lines[:middle], *others, *lines[middle:]] * 2) + "\n")
    result = compare_trace(path, load("v6.12"))
    assert not result.divergences
    assert result.events == 2 * 1173
