"""The matrix of verdicts."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from interleaf.check import Request
from interleaf.explore.outcome import Progress
from interleaf.explore.verdict import Status
from interleaf.report.matrix import (
    Matrix,
    _share,
    console_for,
    count,
    duration,
    outcome,
    reason,
    reasons,
    summary,
    title,
    totals,
)
from interleaf.worker import Result
from tests.checkers import cell

REQUESTS = [
    Request(scenario, design) for scenario in ("zap-vs-unmap", "fault-vs-unmap") for design in ("v5.13", "v6.12")
]


def results() -> list[Result]:
    one, two, three, four = REQUESTS
    return [
        Result(one, cell(one)),
        Result(two, cell(two, Status.VIOLATED, "a message")),
        Result(three, cell(three, Status.INCOMPLETE, exhaustive=False)),
        Result(four, None, "fault-vs-unmap on v6.12: it raises ZeroDivisionError"),
    ]


def plain(encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    return Console(file=file, width=100, color_system=None, highlight=False, markup=False), raw


def drawn(encoding: str = "utf-8") -> list[str]:
    console, raw = plain(encoding)
    matrix = Matrix(REQUESTS, console)
    matrix.results = dict(enumerate(results()))
    matrix.print_to(console)
    return [line.rstrip() for line in raw.getvalue().decode(encoding).splitlines()]


def test_scenarios_go_down_and_designs_across() -> None:
    lines = drawn()
    assert lines[0].split() == ["v5.13", "v6.12"]
    assert lines[2].split() == ["zap-vs-unmap", "✓", "holds", "✗", "violated"]
    assert lines[3].split() == ["1,234", "0.5s", "I1"]
    assert lines[4].split() == ["1,234", "0.5s"]
    assert lines[5].split() == ["fault-vs-unmap", "?", "incomplete", "!", "error"]


def test_plain_text_has_no_control_codes() -> None:
    assert not any(ord(character) < 32 for line in drawn() for character in line)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = "\n".join(drawn("ascii"))
    assert "+ holds" in text
    assert "x violated" in text


def on_terminal(width: int, requests: list[Request], found: list[Result] | None = None) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    matrix = Matrix(requests, console)
    matrix.results = dict(enumerate(found or []))
    matrix.print_to(console)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


LONG = "yielding-walk-vs-invalidate-and-create"
DESIGNS = ("v5.13", "v5.16", "series-v1", "off-list", "v5.18", "series-v3", "v6.1", "v6.4", "v6.12", "v6.18", "mine")


def test_long_names_are_folded_at_hyphens() -> None:
    lines = on_terminal(60, [Request(LONG, f"v6.{number}") for number in range(6)])
    assert [line.split()[0] for line in lines[2:4]] == ["yielding-walk-vs-", "invalidate-and-create"]


def test_a_terminal_gets_wide_columns_where_they_fit() -> None:
    lines = on_terminal(80, REQUESTS, results())
    assert lines[2].split() == ["zap-vs-unmap", "✓", "holds", "✗", "violated"]


def test_eleven_designs_fit_a_terminal_in_narrow_columns() -> None:
    requests = [Request(scenario, design) for scenario in (LONG, "fault-vs-unmap") for design in DESIGNS]
    found = [
        Result(asked, cell(asked, Status.VIOLATED if asked.design == "v5.13" else Status.HOLDS, "a message"))
        for asked in requests
    ]
    lines = on_terminal(100, requests, found)
    heading, rule = lines[:3], lines[3]
    assert set(rule) == {"─"}
    assert heading[2].split() == [
        "v5.13",
        "v5.16",
        "v1",
        "list",
        "v5.18",
        "v3",
        "v6.1",
        "v6.4",
        "v6.12",
        "v6.18",
        "mine",
    ]
    assert lines[4].split() == ["yielding-walk-vs-invalidate-and-", "✗", "I1", *"✓" * 10]
    assert lines[5:7] == ["create", lines[6]]
    assert lines[6].split() == ["fault-vs-unmap", "✗", "I1", *"✓" * 10]
    assert len(lines) == 7


def test_few_designs_more_than_are_wide_keep_the_first_property() -> None:
    requests = [Request("zap", design) for design in DESIGNS[:6]]
    lines = on_terminal(60, requests, [Result(asked, cell(asked, Status.VIOLATED, "a message")) for asked in requests])
    assert lines[-1].split() == ["zap", *("✗", "I1") * 6]


def test_text_is_as_wide_as_the_matrix() -> None:
    console, raw = plain()
    designs = [f"v6.{number}" for number in range(12)]
    Matrix([Request("zap", design) for design in designs], console).print_to(console)
    assert raw.getvalue().decode().splitlines()[0].split() == designs


def test_a_terminal_gets_as_many_tables_as_are_needed() -> None:
    lines = on_terminal(40, [Request("a-scenario-with-a-name", f"v6.{number}") for number in range(5)])
    assert [line.split() for line in lines if "v6" in line] == [["v6.0", "v6.1", "v6.2"], ["v6.3", "v6.4"]]


def test_a_reason_is_given_once() -> None:
    stopped = [Result(request, None, "", "interrupted by Ctrl-C") for request in REQUESTS]
    assert reasons([*results(), *stopped[1:]]) == [
        "incomplete: fault-vs-unmap on v5.13: the bound of 9 states was reached",
        "error: fault-vs-unmap on v6.12: it raises ZeroDivisionError",
        "incomplete: 3 cells, from zap-vs-unmap on v6.12 to fault-vs-unmap on v6.12: interrupted by Ctrl-C",
    ]


def test_without_a_terminal_each_result_is_a_line() -> None:
    console, raw = plain()
    with Matrix(REQUESTS, console) as matrix:
        for position, result in enumerate(results()):
            matrix.began(position)
            matrix.progress(position, Progress(1, 2, 3, 4, 0, 0.5))
            matrix.ended(position, result)
        matrix.hunted(cell(REQUESTS[0], Status.VIOLATED, "a message"))
        matrix.hunted(cell(REQUESTS[0]))
    assert raw.getvalue().decode().splitlines() == [
        "[1/4] zap-vs-unmap on v5.13: holds (1,234 states, 0.5s)",
        "[2/4] zap-vs-unmap on v6.12: violated I1 (1,234 states, 0.5s)",
        "[3/4] fault-vs-unmap on v5.13: incomplete (1,234 states, 0.5s): the bound of 9 states was reached",
        "[4/4] fault-vs-unmap on v6.12: error: fault-vs-unmap on v6.12: it raises ZeroDivisionError",
        "hunter: found I1 after 7 executions (seed 1)",
        "hunter: nothing in 90 executions (seed 1)",
    ]


def test_a_terminal_sees_progress() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, height=40, force_terminal=True, highlight=False, markup=False)
    with Matrix(REQUESTS, console) as matrix:
        matrix.began(1)
        matrix.progress(1, Progress(4321, 2, 3, 4, 2, 0.42))
        matrix.began(2)
        console.print(matrix._moving_picture())
    text = file.getvalue()
    assert "zap-vs-unmap on v6.12: [########............] about 42%, 4,321 states" in text
    assert "fault-vs-unmap on v5.13: begins" in text
    assert "0 of 4 done" in text


@pytest.mark.parametrize(("found", "shown"), [(0, "42% 4,321"), (2, "✗ violated …")])
def test_a_cell_is_red_as_soon_as_its_search_has_found_something(found: int, shown: str) -> None:
    console, raw = plain()
    matrix = Matrix(REQUESTS, console)
    matrix.began(1)
    matrix.progress(1, Progress(4321, 2, 3, 4, found, 0.42))
    matrix.print_to(console)
    assert shown in raw.getvalue().decode()
    assert ("violated (2 found)" in _share(Progress(4321, 2, 3, 4, found, 0.42)).plain) == bool(found)


def test_words_for_results() -> None:
    lost = Result(REQUESTS[0], None, "", "its worker process was killed")
    assert [outcome(result) for result in (*results(), lost)] == [
        "holds",
        "violated",
        "incomplete",
        "error",
        "incomplete",
    ]
    assert reason(lost) == "its worker process was killed"
    assert summary(lost) == "incomplete: its worker process was killed"
    assert totals(results()) == "1 holds, 1 violated, 1 incomplete, 1 in error"
    assert totals([results()[0]] * 2) == "2 hold"


def test_an_error_hides_no_finding() -> None:
    request = REQUESTS[0]
    both = Result(request, cell(request, Status.VIOLATED, "a message"), "it does not end")
    assert summary(both) == "error I1 (1,234 states, 0.5s): it does not end"


def test_titles_tell_requests_apart() -> None:
    request = replace(REQUESTS[0], dropped=("one-rule",), parameters=(("pages", 2),))
    assert title(request) == "zap-vs-unmap pages=2 on v5.13 without one-rule"


def test_numbers_are_short() -> None:
    assert [count(number) for number in (0, 12_345, 99_999, 123_456, 999_999, 12_345_678)] == [
        "0",
        "12,345",
        "99,999",
        "123k",
        "1000k",
        "12.3M",
    ]
    assert [duration(seconds) for seconds in (0, 0.26, 99.9, 100, 3661, 36_000)] == [
        "0.0s",
        "0.3s",
        "99.9s",
        "1m40",
        "61m01",
        "10h00",
    ]


def test_output_that_is_no_terminal_has_a_fixed_width() -> None:
    console = console_for(stderr=False)
    assert console.is_terminal or console.width == 100
