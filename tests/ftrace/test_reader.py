"""Traces of every kind, good and bad: nothing is passed over, nothing crashes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interleaf.ftrace.reader import Clock, Kind, Strict, Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.ftrace.records import Event, KvmTdpMmuSpteChanged, Lost, Mark, Unknown
from interleaf.ftrace.source import BLOCK, Unreadable
from tests.ftrace.carried import trace_of
from tests.ftrace.test_texts import TEXTS

CHANGED = "kvm_tdp_mmu_spte_changed: as id 0 gfn 1 level 1 old_spte 0 new_spte 291ee67"
LINE = f"          gtmain-1       [001] d..1.     9.949826: {CHANGED}\n"


def read(tmp_path: Path, text: str | bytes, *, strict: bool = False) -> tuple[list[Event], Trace]:
    path = tmp_path / "trace"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    trace = Trace(path, strict=strict)
    return list(trace), trace


@pytest.mark.parametrize(
    ("line", "comm", "pid", "tgid", "cpu", "flags", "time"),
    [
        (f"          gtmain-1       [001] d..1.     9.949826: {CHANGED}", "gtmain", 1, None, 1, "d..1.", 9949826000),
        (
            f"       CPU 0/KVM-4242    [012] .....  1234.000001: {CHANGED}",
            "CPU 0/KVM",
            4242,
            None,
            12,
            ".....",
            1234000001000,
        ),
        (f" a-b: c-d-77   (   70) [000] ....   1.5: {CHANGED}", "a-b: c-d", 77, 70, 0, "....", 1500000000),
        (f"  <idle>-0     (-----) [003] d.h1.  0.000001234: {CHANGED}", "<idle>", 0, None, 3, "d.h1.", 1234),
        (f"  gtmain-1       1d..1.   9.949826: {CHANGED}", "gtmain", 1, None, 1, "d..1.", 9949826000),
        (f"   CPU 1/KVM-77    12.... 9.949826: {CHANGED}", "CPU 1/KVM", 77, None, 12, "....", 9949826000),
        (f"  <...>-5   [003] dN.2.. 9.949826123: {CHANGED}", "<...>", 5, None, 3, "dN.2..", 9949826123),
        (f"gtmain-1     [001]   9.949826: {CHANGED.replace(': ', ':      ', 1)}", "gtmain", 1, None, 1, "", 9949826000),
    ],
)
def test_a_line_is_read(
    tmp_path: Path, line: str, comm: str, pid: int, tgid: int | None, cpu: int, flags: str, time: int
) -> None:
    for text in (f"{line}\n", f"{line}\n" * 3, f"{line}\r\n"):
        events, trace = read(tmp_path, text, strict=True)
        for number, event in enumerate(events, 1):
            assert event.line == number
            assert tuple(event.task) == (comm, pid, tgid, cpu, flags)
            assert event.time == time
            assert event.record == KvmTdpMmuSpteChanged(0, 1, 1, 0, 0x291EE67)
        assert trace.account.events == {"kvm_tdp_mmu_spte_changed": text.count("\n")}


@pytest.mark.parametrize(("name", "text", "record"), TEXTS)
def test_the_first_event_of_a_thread_is_read_as_the_next_ones(
    tmp_path: Path, name: str, text: str, record: object
) -> None:
    events, trace = read(tmp_path, LINE.replace(CHANGED, f"{name}: {text}") * 3)
    assert [event.record for event in events] == [record] * 3
    assert trace.account.whole


def test_a_byte_order_mark_is_no_part_of_a_line(tmp_path: Path) -> None:
    for text in (LINE, f"# tracer: nop\n{LINE}"):
        marked = b"\xef\xbb\xbf" + text.encode()
        for content in (marked, gzip.compress(marked)):
            events, trace = read(tmp_path, content, strict=True)
            assert len(events) == 1
            assert trace.account.whole


def test_whole_numbers_are_ticks(tmp_path: Path) -> None:
    events, trace = read(tmp_path, f"a-1 [000] d..1. 123456789012: {CHANGED}\n" * 2)
    assert [event.time for event in events] == [123456789012] * 2
    assert trace.account.clock is Clock.TICKS


def test_the_head_of_a_file_is_no_event(tmp_path: Path) -> None:
    head = (
        "cpus=2\n# tracer: nop\n#\n# entries-in-buffer/entries-written: 5/5   #P:2\n##### CPU 1 buffer started ####\n"
    )
    events, trace = read(tmp_path, head + LINE, strict=True)
    assert [event.line for event in events] == [6]
    assert trace.account.whole


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("CPU:1 [LOST 123 EVENTS]", 123),
        ("CPU:1 [LOST EVENTS]", None),
        ("CPU:0 [7 EVENTS DROPPED]", 7),
        ("# entries-in-buffer/entries-written: 5/12   #P:2", 7),
    ],
)
def test_lost_events_are_counted_in_their_place(tmp_path: Path, text: str, missing: int | None) -> None:
    events, trace = read(tmp_path, f"{LINE}{text}\n{LINE}")
    assert [type(event.record) for event in events] == [KvmTdpMmuSpteChanged, Lost, KvmTdpMmuSpteChanged]
    assert events[1].record == Lost(missing)
    assert trace.account.lost == (missing or 0)
    [trouble] = trace.account.troubles
    assert (trouble.kind, trouble.line) == (Kind.LOST, 2)
    assert not trace.account.whole
    with pytest.raises(Strict, match="line 2: lost events"):
        read(tmp_path, f"{LINE}{text}\n{LINE}", strict=True)


@pytest.mark.parametrize(
    ("line", "kind", "lost"),
    [
        ("hello", Kind.GARBAGE, True),
        (LINE[:40], Kind.GARBAGE, True),
        (LINE.replace("level 1", "level 9").rstrip(), Kind.TEXT, True),
        (LINE.replace(CHANGED, "sched_switch: a ==> b").rstrip(), Kind.UNKNOWN, False),
        (LINE.replace("9.949826", "9.949825").rstrip(), Kind.ORDER, False),
    ],
)
def test_what_is_not_understood_is_counted_and_located(tmp_path: Path, line: str, kind: Kind, lost: bool) -> None:
    text = f"{LINE}{line}\n{LINE}"
    events, trace = read(tmp_path, text)
    assert len(events) == 3
    assert isinstance(events[1].record, Lost) is lost
    assert trace.account.counts == {kind: 1}
    assert [trouble.line for trouble in trace.account.troubles] == [2]
    assert trace.account.whole is not lost
    with pytest.raises(Strict, match=f"line 2: {kind}"):
        read(tmp_path, text, strict=True)


def test_time_that_jumps_back_is_counted_once(tmp_path: Path) -> None:
    later = LINE.replace("9.949826", "12.000000")
    _, trace = read(tmp_path, later + LINE * 5)
    assert trace.account.counts == {Kind.ORDER: 1}
    assert (trace.account.first, trace.account.last) == (12_000_000_000, 12_000_000_000)


def test_an_unknown_event_keeps_its_text_and_a_mark_too(tmp_path: Path) -> None:
    texts = ("sched_switch: a ==> b", "tracing_mark_write: GT w BEGIN", "print: tracing_mark_write: GT w END")
    events, _ = read(tmp_path, "".join(LINE.replace(CHANGED, text) for text in texts))
    assert [event.record for event in events] == [Unknown(b"a ==> b"), Mark("GT w BEGIN"), Mark("GT w END")]


def test_a_last_line_without_an_end_is_not_believed(tmp_path: Path) -> None:
    events, trace = read(tmp_path, LINE + LINE[:-3])
    assert len(events) == 1
    assert [str(trouble) for trouble in trace.account.troubles] == ["line 2: cut off: its last line has no end"]


def test_a_cut_gzip_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = trace_of("6.12/runA/w03_slot_delete").read_bytes()
    events, trace = read(tmp_path, whole[: len(whole) // 2])
    assert 1000 < len(events) < 6387
    assert trace.account.counts == {Kind.CUT: 1}
    assert "stream ends too early" in trace.account.troubles[0].text


def test_a_damaged_gzip_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = bytearray(trace_of("6.12/runA/w03_slot_delete").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    _, trace = read(tmp_path, bytes(whole))
    assert not trace.account.whole


def test_what_comes_through_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)  # so that it has no end
    try:
        events = iter(Trace(tmp_path / "pipe"))
        for _ in range(3):
            os.write(descriptor, LINE.encode())
            assert next(events).record == KvmTdpMmuSpteChanged(0, 1, 1, 0, 0x291EE67)
    finally:
        os.close(descriptor)


def test_gzip_files_that_were_put_together_are_one(tmp_path: Path) -> None:
    part = gzip.compress(LINE.encode())
    events, _ = read(tmp_path, part + part + b"\0" * 10, strict=True)
    assert len(events) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\x17\x08\x44tracing6\0", "trace-cmd report"),
        (b"PERFILE2", "perf's format"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"\x7fELF" + b"\0" * 100, "a program"),
        (bytes(range(256)) * 100, "not even text"),
        (b"hello\nworld\n", "no event in its 2 lines"),
        (b"x" * (BLOCK * 3), "no event"),
        (gzip.compress(b"", mtime=0), "no event in its 0 lines"),  # a parameter is the same in every worker
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(Unreadable, match=expected):
        read(tmp_path, content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        list(Trace(tmp_path / "none"))
    with pytest.raises(Unreadable, match="is a folder"):
        list(Trace(tmp_path))


SAMPLE = gzip.decompress(trace_of("6.1/kprobes/w07d_1g").read_bytes()).splitlines(keepends=True)[:400]

damage = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 399), st.integers(0, 200)),
    st.tuples(st.just("drop"), st.integers(0, 399), st.integers(0, 0)),
    st.tuples(st.just("swap"), st.integers(0, 399), st.integers(0, 399)),
    st.tuples(st.just("double"), st.integers(0, 399), st.integers(0, 0)),
    st.tuples(st.just("flip"), st.integers(0, 399), st.integers(0, 1 << 12)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(damage, max_size=8), garbage=st.lists(st.tuples(st.integers(0, 399), st.binary(max_size=60))))
def test_a_damaged_trace_is_read_and_each_line_accounted_for(
    tmp_path: Path, damages: list[tuple[str, int, int]], garbage: list[tuple[int, bytes]]
) -> None:
    lines = list(SAMPLE)
    for what, where, number in damages:
        at = where % len(lines)
        match what:
            case "cut":
                lines[at] = lines[at][:number].rstrip(b"\n") + b"\n"
            case "drop":
                del lines[at]
            case "swap":
                other = number % len(lines)
                lines[at], lines[other] = lines[other], lines[at]
            case "double":
                lines.insert(at, lines[at])
            case _:
                line = bytearray(lines[at])
                line[number % len(line)] ^= 1 << number % 8
                lines[at] = bytes(line)
    for at, text in garbage:
        lines.insert(at, text + b"\n")
    path = tmp_path / "trace"
    path.write_bytes(b"".join(lines))
    trace, known, lost = Trace(path), Reconstruction(), 0
    for event in trace:
        known.feed(event)
        lost += isinstance(event.record, Lost)
    known.finish()
    account = trace.account
    assert account.lines == path.read_bytes().count(b"\n")
    assert lost == sum(account.counts[kind] for kind in (Kind.LOST, Kind.GARBAGE, Kind.TEXT))
    assert sum(account.counts.values()) >= lost
    assert known.waiting == 0


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000))
def test_anything_at_all_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    try:
        events = list(Trace(path))
    except Unreadable:
        return
    assert events
