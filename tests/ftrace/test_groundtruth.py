"""Every trace of a real kernel is explained, and equals every walk through the real page tables."""

from pathlib import Path

import pytest

from interleaf.ftrace.changes import Explained
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.ftrace.records import KvmMmuPage
from interleaf.ftrace.snapshots import compare, read_snapshots, snapshot_number
from interleaf.ftrace.spte import Change
from tests.ftrace.carried import TRACES, name_of, snapshots_of, trace_of

ONLY_RACES = {Explained.SWAPPED, Explained.LOST_RACE}


def rebuild(path: Path) -> tuple[Trace, Reconstruction, list[str]]:
    """The trace, all of it taken in, and how its snapshots differ."""
    file = snapshots_of(path)
    snapshots = {snapshot.number: snapshot for snapshot in read_snapshots(file)} if file.exists() else {}
    trace, known, wrong, seen = Trace(path, strict=True), Reconstruction(), [], set()
    for event in trace:
        known.feed(event)
        number = snapshot_number(event)
        if number is not None and snapshots[number].root is not None:
            seen.add(number)
            wrong += compare(snapshots[number], known).differences
    known.finish()
    assert seen == {number for number, snapshot in snapshots.items() if snapshot.root is not None}
    return trace, known, wrong


def test_all_are_carried() -> None:
    assert len(TRACES) == 138
    assert sum(snapshots_of(trace).exists() for trace in TRACES) == 135


@pytest.mark.parametrize("path", TRACES, ids=name_of)
def test_each_event_fits_and_each_snapshot_is_equal(path: Path) -> None:
    trace, known, wrong = rebuild(path)
    assert known.contradictions == []
    assert wrong == []
    assert known.contradicted == 0
    assert known.waiting == 0
    assert not known.unseen
    assert known.explained[Explained.UNSEEN] == 0
    fixed = known.explained[Explained.FAST_PAGE_FAULT]
    assert known.changes == trace.account.events["kvm_tdp_mmu_spte_changed"] + fixed
    racing = "/w08" in name_of(path) and "icount" not in name_of(path)
    assert racing or not ONLY_RACES & {reason for reason, count in known.explained.items() if count}


def test_lost_races_are_the_tables_that_were_never_linked() -> None:
    lost = 0
    for name in ("6.1/kprobes/w08e_race_fresh", "6.12/kprobes/w08e_race_fresh"):
        known, allocated, linked = Reconstruction(), 0, 0
        for event in Trace(trace_of(name)):
            if isinstance(event.record, KvmMmuPage) and event.record.created and event.record.level < 4:
                allocated += 1
            linked += sum(applied.change is Change.LINK for applied in known.feed(event))
        assert known.explained[Explained.LOST_RACE] == allocated - linked
        lost += allocated - linked
    assert lost == 32
