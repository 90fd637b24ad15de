"""Whatever stands in a trace that can be read, comparing it ends with an answer, and damage is never called equal."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interleaf.designs import load
from interleaf.ftrace.compare import compare_trace
from interleaf.ftrace.matching import Rule
from interleaf.ftrace.outcome import Result
from interleaf.ftrace.source import Unreadable
from interleaf.runtime import ModelError
from tests.ftrace.carried import snapshots_of, trace_of

NAMES = (
    "6.12/icount/w02_read_write",
    "6.12/icount/w03_slot_delete",
    "6.12/icount/w06b_dirty_manual",
    "6.12/icount/w09_mmio",
    "6.1/icount/w07_thp_eager",
    "6.1/kprobes/w06c_dirty_ring",
)

LINES = 400

SAMPLES = {
    name: gzip.decompress(trace_of(name).read_bytes()).decode().splitlines(keepends=True)[:LINES] for name in NAMES
}

OTHER = [line for name in NAMES for line in SAMPLES[name][20::40]]

WORDS = (
    "",
    "zz",
    "-1",
    "0x",
    "0",
    "7",
    "1001",
    "ffffffffffffffff",
    "99999999999999999999",
    "\N{ARABIC-INDIC DIGIT THREE}",
)

MARKS = sorted({line for name in NAMES for line in SAMPLES[name] if "tracing_mark_write" in line})
"""What a driver says, which nobody has checked but us."""

place = st.integers(0, LINES - 1)

damage = st.one_of(
    st.tuples(st.just("cut"), place, place),
    st.tuples(st.just("drop"), place, st.integers(1, 20)),
    st.tuples(st.just("swap"), place, place),
    st.tuples(st.just("move"), place, place),
    st.tuples(st.just("foreign"), place, st.integers(0, len(OTHER) - 1)),
    st.tuples(st.just("number"), place, st.integers(0, 1 << 40)),
    st.tuples(st.just("word"), place, st.integers(0, 12 * len(WORDS) - 1)),
    st.tuples(st.just("mark"), st.integers(0, len(MARKS) - 1), st.integers(0, 12 * len(WORDS) - 1)),
    st.tuples(st.just("head"), place, st.just(0)),
)


def damaged(lines: list[str], damages: list[tuple[str, int, int]]) -> list[str]:
    lines = list(lines)
    for what, where, number in damages:
        if not lines:
            break
        at = where % len(lines)
        match what:
            case "cut":
                del lines[at:]
            case "drop":
                del lines[at : at + number]
            case "swap":
                other = number % len(lines)
                lines[at], lines[other] = lines[other], lines[at]
            case "move":
                lines.insert(number % len(lines), lines.pop(at))
            case "foreign":
                lines.insert(at, OTHER[number])
            case "head":
                del lines[:at]
            case "number":
                lines[at] = with_word(lines[at], number % 12, f"{number:x}")
            case "mark":
                lines.insert(number % len(lines), with_word(MARKS[where], number % 12, WORDS[number // 12]))
            case _:
                lines[at] = with_word(lines[at], number % 12, WORDS[number // 12])
    return lines


def with_word(line: str, number: int, word: str) -> str:
    """A line with another word, counted from its end."""
    words = line.rstrip("\n").split(" ")
    words[-1 - number % len(words)] = word
    return " ".join(words) + "\n"


def compared(tmp_path: Path, lines: list[str], name: str, design: str) -> Result | None:
    """The result; None if the trace is refused, with a text for the user."""
    path = tmp_path / "trace"
    path.write_text("".join(lines))
    try:
        return compare_trace(path, load(design), snapshots_of(trace_of(name)))
    except (Unreadable, ModelError):
        return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    design=st.sampled_from(["v6.12", "v6.1", "v5.13"]),
    damages=st.lists(damage, min_size=1, max_size=6),
)
def test_a_damaged_trace_is_compared_to_its_end(
    tmp_path: Path, name: str, design: str, damages: list[tuple[str, int, int]]
) -> None:
    result = compared(tmp_path, damaged(SAMPLES[name], damages), name, design)
    if result is not None:
        assert result.matched + sum(result.explained.values()) + result.divergent >= result.events
        assert bool(result.divergences) == bool(result.divergent)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), order=st.randoms(use_true_random=False), count=st.integers(1, LINES))
def test_lines_in_any_order_are_compared_to_their_end(tmp_path: Path, name: str, order: object, count: int) -> None:
    lines = SAMPLES[name][:count]
    order.shuffle(lines)  # type: ignore[attr-defined]
    compared(tmp_path, lines, name, "v6.12" if "6.12" in name else "v6.1")


@pytest.mark.parametrize("name", NAMES)
def test_the_samples_themselves_are_what_the_model_does(tmp_path: Path, name: str) -> None:
    result = compared(tmp_path, SAMPLES[name], name, "v6.12" if "6.12" in name else "v6.1")
    assert result is not None
    assert result.divergent == 0
    assert result.events > 20


@pytest.mark.parametrize("mask", ["zz", "-5", "", "f" * 17])
def test_instead_of_a_mask_that_is_none_the_pages_tell_what_was_cleared(tmp_path: Path, mask: str) -> None:
    name = "6.12/icount/w06b_dirty_manual"
    lines = gzip.decompress(trace_of(name).read_bytes()).decode().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "CLEAR_DIRTY_LOG mask " in line)
    before, _, _ = lines[at].partition("mask ")
    assert compared(tmp_path, lines[: at + 1], name, "v6.12") is not None
    result = compared(tmp_path, [*lines[:at], f"{before}mask {mask}\n", *lines[at + 1 :]], name, "v6.12")
    assert result is not None
    assert result.divergent == 0
    assert result.explained[Rule.UNNAMED] == 1
