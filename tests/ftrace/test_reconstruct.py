"""That a trace that cannot be is found out, and that one that does not hold everything is not called wrong."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from interleaf.ftrace.changes import Explained
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.ftrace.snapshots import compare, read_snapshots, snapshot_number
from interleaf.ftrace.source import Unreadable
from interleaf.ftrace.spte import EPT, NPT, Change, change, layout_of, split_child
from tests.ftrace.carried import snapshots_of, trace_of

START = """\
a-1 [000] ..... 1.000001: kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new
a-1 [000] ..... 1.000002: load_pgd: (svm_load_mmu_pgd+0x4/0xf0 [kvm_amd]) vcpu=0x1 root=0x100000 level=0x4
"""


def lines_of(name: str) -> list[bytes]:
    return gzip.decompress(trace_of(name).read_bytes()).splitlines(keepends=True)


def rebuild(folder: Path, lines: list[bytes]) -> Reconstruction:
    path = folder / "trace"
    path.write_bytes(b"".join(lines))
    known = Reconstruction()
    for event in Trace(path):
        known.feed(event)
    known.finish()
    return known


def changed(gfn: int, level: int, old: int, new: int, pid: int = 1, time: int = 3) -> str:
    return (
        f"a-{pid} [000] ..... 1.{time:06}: kvm_tdp_mmu_spte_changed: "
        f"as id 0 gfn {gfn:x} level {level} old_spte {old:x} new_spte {new:x}\n"
    )


def synthetic(folder: Path, *lines: str) -> Reconstruction:
    return rebuild(folder, [line.encode() for line in (START, *lines)])


LINKS = (changed(0, 4, 0, 0x101827), changed(0, 3, 0, 0x102827), changed(0, 2, 0, 0x103827))


@pytest.mark.parametrize(
    "name", ["6.1/icount/w03_slot_delete", "6.12/icount/w05_dontneed", "6.12/icount/w07_thp_eager"]
)
def test_a_missing_event_is_found_out(tmp_path: Path, name: str) -> None:
    lines = lines_of(name)
    changes = [at for at, line in enumerate(lines) if b"kvm_tdp_mmu_spte_changed" in line]
    for at in random.Random(1).sample(changes, 12):
        assert rebuild(tmp_path, lines[:at] + lines[at + 1 :]).contradicted, lines[at]


@pytest.mark.parametrize(
    "name", ["6.1/runA/w03_slot_delete", "6.12/runA/w07_thp_eager", "6.12/runA/w08c_stress_notifier"]
)
def test_a_trace_that_begins_late_or_says_that_events_are_lost_is_not_wrong(tmp_path: Path, name: str) -> None:
    lines = lines_of(name)
    third = len(lines) // 3
    late = rebuild(tmp_path, lines[third:])
    assert (late.contradicted, late.unseen) == (0, True)
    lossy = rebuild(tmp_path, [*lines[:third], b"CPU:0 [LOST 100 EVENTS]\n", *lines[third + 100 :]])
    assert (lossy.contradicted, lossy.unseen) == (0, True)


def test_without_the_probe_of_root_loads_the_roots_are_told_apart_too(tmp_path: Path) -> None:
    for name in ("6.1/runA/w08_stress_dummy", "6.12/runA/w04_slot_move"):
        known = rebuild(tmp_path, [line for line in lines_of(name) if b"load_pgd" not in line])
        assert known.contradicted == 0


def test_the_tables_can_be_asked_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("".join((START, *LINKS, changed(5, 1, 0, 0x200E67))))
    known, seen = Reconstruction(), []
    for event in Trace(path):
        known.feed(event)
        seen.append(known.entry(5, 1))
    assert seen == [None, None, None, None, 0, 0x200E67]
    assert [known.entry(5, level) for level in (1, 2, 3, 4)] == [0x200E67, 0x103827, 0x102827, 0x101827]
    root = known.root(0x100)
    assert root is not None
    assert root is known.root()
    assert list(known.tables.leafs(root)) == [(1, 5, 0x200E67)]
    assert known.root(0x101) is None


def test_a_table_that_is_told_of_again_when_it_is_linked_lost_no_race(tmp_path: Path) -> None:
    made = "a-1 [000] ..... 1.000003: kvm_mmu_get_page: sp gen 0 gfn 0 l3 8-byte q0 direct wux nxe ad root 0 sync new\n"
    entry = "a-1 [000] ..... 1.000004: kvm_entry: vcpu 0, rip 0x0\n"
    assert synthetic(tmp_path, made, LINKS[0], made, entry).explained[Explained.LOST_RACE] == 0
    assert synthetic(tmp_path, made, LINKS[0], entry, made, entry).explained[Explained.LOST_RACE] == 1
    assert synthetic(tmp_path, made, entry).explained[Explained.LOST_RACE] == 1


def test_a_change_from_what_was_not_there_is_a_contradiction(tmp_path: Path) -> None:
    known = synthetic(tmp_path, *LINKS, changed(5, 1, 0, 0x200E67), changed(5, 1, 0x300E67, 0x300E65))
    [found] = known.contradictions
    assert str(found) == ("line 7: gfn 5, level 1 changes from 300e67 to 300e65, but the trace said 200e67")


def test_a_change_where_no_table_is_is_a_contradiction(tmp_path: Path) -> None:
    known = synthetic(tmp_path, changed(5, 1, 0, 0x200E67))
    assert [str(found) for found in known.contradictions] == [
        "line 3: gfn 5, level 1 changes from 0 to 200e67, but the trace knows of no table there"
    ]


def test_the_cpu_sets_bits_but_never_clears_them(tmp_path: Path) -> None:
    set_ = synthetic(tmp_path, *LINKS, changed(5, 1, 0, 0x200E07), changed(5, 1, 0x200E67, 0x200E65))
    assert (set_.contradicted, set_.explained[Explained.AD_BITS]) == (0, 1)
    cleared = synthetic(tmp_path, *LINKS, changed(5, 1, 0, 0x200E67), changed(5, 1, 0x200E07, 0x200E05))
    assert cleared.contradicted == 1


def test_events_of_two_cpus_in_the_wrong_order_fit(tmp_path: Path) -> None:
    known = synthetic(tmp_path, *LINKS, changed(5, 1, 0x200E67, 0x200E65, pid=2), changed(5, 1, 0, 0x200E67, pid=3))
    assert (known.contradicted, known.explained[Explained.SWAPPED]) == (0, 1)
    assert known.entry(5, 1) == 0x200E65


def test_a_table_that_was_removed_must_be_emptied(tmp_path: Path) -> None:
    removed = (*LINKS, changed(5, 1, 0, 0x200E67), changed(0, 2, 0x103827, 0))
    mark = "a-1 [000] ..... 1.000004: tracing_mark_write: GT w END\n"
    known = synthetic(tmp_path, *removed, mark)
    assert "has been removed, but the trace does not say so of 1 of its entries, such as gfn 5" in str(
        known.contradictions[0]
    )
    assert synthetic(tmp_path, *removed, changed(5, 1, 0x200E67, 0x5A0), mark).contradicted == 0


def test_the_children_of_a_split_follow_from_the_huge_page(tmp_path: Path) -> None:
    huge = (*LINKS[:2], changed(0, 2, 0, 0x4000EE7), changed(0, 2, 0x4000EE7, 0x103827))
    known = synthetic(tmp_path, *huge, changed(5, 1, 0x4005E67, 0x4005E65))
    assert (known.contradicted, known.explained[Explained.SPLIT_CHILDREN]) == (0, 1)
    assert known.entry(6, 1) == 0x4006E67
    assert synthetic(tmp_path, *huge, changed(5, 1, 0x4006E67, 0x4006E65)).contradicted == 1


def test_a_snapshot_that_differs_is_told_apart(tmp_path: Path) -> None:
    path = trace_of("6.12/runA/w12_mprotect")
    first = next(iter(read_snapshots(snapshots_of(path))))
    where = max(first.entries)
    first.entries[where] ^= 1 << 12
    known = Reconstruction()
    for event in Trace(path):
        known.feed(event)
        if snapshot_number(event) == first.number:
            break
    assert len(compare(first, known).differences) == 1
    del first.entries[where]
    assert len(compare(first, known).differences) == 1


@pytest.mark.parametrize(
    "text",
    ["E 1 0 1\n", "SNAP id=1 label=a root=1000 level=4\n", "hello\n", "SNAP id=1 label=a root=1000 level=4\nE 1 0 1"],
)
def test_a_damaged_file_of_snapshots_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "snap").write_text(text)
    with pytest.raises(Unreadable):
        list(read_snapshots(tmp_path / "snap"))


@pytest.mark.parametrize(
    ("old", "new", "level", "expected"),
    [
        (0, 0x200E67, 1, Change.MAP),
        (0x200E67, 1 << 63, 1, Change.ZAP),
        (0x200E67, 0x5A0, 1, Change.ZAP),
        (0, 0x103827, 2, Change.LINK),
        (0x103827, 1 << 63 | 0x5A0, 2, Change.UNLINK),
        (0x4000EE7, 0x103827, 2, Change.SPLIT),
        (0x103827, 0x4000EE7, 2, Change.COLLAPSE),
        (0x200E67, 0x200E65, 1, Change.PROTECT),
        (0x200E65, 0x200E67, 1, Change.ALLOW),
        (0x200E67, 0x300E67, 1, Change.REMAP),
        (0x200E67, 0x200E47, 1, Change.ADJUST),
        (0, 0x8000040000017, 1, Change.MMIO),
        (0, 0x5A0, 1, Change.FREEZE),
    ],
)
def test_changes_have_names(old: int, new: int, level: int, expected: Change) -> None:
    assert change(old, new, level) is expected


def test_the_format_is_told_from_a_pointer_to_a_table() -> None:
    assert layout_of(0x65AF827) is NPT
    assert layout_of(0x8000000112400907) is EPT
    assert layout_of(1 << 52 | 0x112400807) is EPT


def test_the_children_of_a_huge_page() -> None:
    assert split_child(0x0600000112400BF3, 2, 3) == 0x0600000112403B73
    assert split_child(0x0600000140000BF3, 3, 1) == 0x0600000140200BF3
