"""Each benchmark makes its tables from records, and the document has a place for each of them."""

import pytest

from bench import comparing, compiled, growth, hole, ingredients, locks, memory, reductions, report, tracing
from bench.__main__ import BENCHMARKS, main
from bench.measure import Record, machine

SEARCH: Record = {
    "states": 125,
    "transitions": 301,
    "executions": 177,
    "seconds": 0.016,
    "exhaustive": True,
    "stopped": "",
    "peak": 22_000_000,
}
UNFINISHED = SEARCH | {"exhaustive": False, "stopped": "the bound of 60 seconds was reached", "seconds": 60.1}

RECORDS: dict[str, list[Record]] = {
    "locks": [
        SEARCH | {"part": "safe", "tool": locks.OURS, "size": "3x4"},
        SEARCH | {"part": "safe", "tool": locks.SPIN, "size": "3x4", "seconds": 0.008},
        {"part": "safe", "tool": locks.MUSIL, "size": "3x4", "unavailable": "there is no Python 3.12"},
        SEARCH | {"part": "racy", "tool": locks.OURS, "size": "3x4", "found": "data-race"},
        {"part": "racy", "tool": locks.FRONTRUN, "size": "3x4", "executions": 9, "seconds": 0.16, "errors": 0},
        {"part": "rate", "tool": locks.OURS, "size": "3x4", "executions": 10_000, "seconds": 1.0},
        {"part": "rate", "tool": locks.FRONTRUN, "size": "3x4", "executions": 200, "seconds": 4.0},
    ],
    "hole": [
        SEARCH | {"part": hole.TO_FIRST, "tool": "Interleaf", "size": "off-list"},
        SEARCH | {"part": hole.TO_END, "tool": "SPIN", "size": "v6.12", "generate": 0.1, "compile": 0.9},
        {"part": "process", "tool": "interleaf check", "size": "v6.12", "seconds": 1.5, "peak": 30_000_000},
        {"part": hole.TO_END, "tool": "SPIN", "size": "off-list", "unavailable": "spin is not installed"},
    ],
    "ingredients": [
        SEARCH | {"program": "locks 3 4", "without": ""},
        UNFINISHED | {"program": "locks 3 4", "without": "frames"},
        {"program": "scenario x", "without": "", "unavailable": "there is no scenario 'x'"},
    ],
    "symmetry": [{"program": "locks 3 4", "states": 125, "orbits": 75}],
    "growth": [
        SEARCH | {"ladder": "tasks", "program": "locks 3 4"},
        UNFINISHED | {"ladder": "tasks", "program": "locks 9 4"},
    ],
    "reductions": [
        SEARCH | {"ladder": "vcpus", "size": 1, "column": "none", "complete": True},
        UNFINISHED | {"ladder": "vcpus", "size": 2, "column": "none", "complete": False, "executions": 9_000},
    ],
    "memory": [
        SEARCH | {"part": "states", "program": "small"},
        SEARCH | {"part": "states", "program": "large", "states": 100_125, "peak": 32_000_000},
        {"part": "steps", "program": "locks 5 8", "samples": 9, "first": 22e6, "second": 22e6, "seconds": 20.0},
    ],
    "compiled": [
        {"part": "module", "module": "runtime/values.py", "works": True, "why": ""},
        {"part": "module", "module": "runtime/carrier.py", "works": False, "why": "it looks at call frames"},
        SEARCH | {"part": "speed", "engine": "pure", "size": "5x8", "seconds": 3.0},
        SEARCH | {"part": "speed", "engine": "compiled", "size": "5x8", "seconds": 1.2},
    ],
    "tracing": [
        {"what": tracing.GREP, "lines": 100_000, "seconds": 0.01},
        {"what": tracing.ZGREP, "lines": 100_000, "seconds": 0.1},
        {"what": tracing.READING_COMPRESSED, "lines": 100_000, "seconds": 0.6, "peak": 30_000_000},
        {"what": "reading", "lines": 100_000, "seconds": 0.5, "peak": 30_000_000},
        {"what": "other", "lines": 100_000, "seconds": None, "unavailable": "it ended with 1"},
    ],
    "comparing": [
        {"part": "speed", "workload": "w01", "changes": 1000, "events": 2000, "seconds": 0.5},
        {"part": "speed", "workload": "w02", "changes": 3000, "events": 5000, "seconds": 0.5},
        {"part": "speed", "workload": "w03", "changes": 3000, "seconds": None, "unavailable": "5 events diverge"},
        {"part": "memory", "workload": "w01", "times": 4, "changes": 4000, "events": 8000, "peak": 30_000_000},
    ],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_document_has_a_place_for_each_table(name: str) -> None:
    tables = BENCHMARKS[name].tables(RECORDS[name]) | {f"{name}-machine": report.described(machine())}
    renewed = report.renew(report.DOCUMENT.read_text(encoding="utf-8"), tables)
    assert all(text in renewed for text in tables.values())


def test_peers_are_compared_with_us_and_the_quoted_one_is_marked() -> None:
    tables = locks.tables(RECORDS["locks"])
    safe = tables["locks-safe"].splitlines()
    assert [line.split("|")[1].strip() for line in safe[2:5]] == [
        "3x4, Interleaf",
        "3x4, SPIN",
        "3x4, TLC, 1 worker (quoted)",
    ]
    assert safe[3].split("|")[-2].strip() == "0.5\N{MULTIPLICATION SIGN}"
    assert safe[-1] == "Not available: musil, because there is no Python 3.12."
    assert "200\N{MULTIPLICATION SIGN}" in tables["locks-rate"]
    racy = tables["locks-racy"].splitlines()
    assert "16 ms" in racy[2]
    assert "9 executions" in racy[3]
    assert "found nothing" in racy[3]


def test_an_unfinished_search_says_which_bound_it_met() -> None:
    assert (
        "unfinished: the bound of 60 seconds was reached, 60 s"
        in ingredients.tables(RECORDS["ingredients"])["ingredients"]
    )
    assert "unfinished: the bound of 60 seconds was reached, 60 s" in growth.tables(RECORDS["growth"])["growth"]


def test_a_search_of_a_reduction_that_is_cut_short_says_at_least_how_much_there_is() -> None:
    rows = reductions.tables(RECORDS["reductions"])["reductions-vcpus"].splitlines()
    assert "177 / 125" in rows[2]
    assert ">" not in rows[2]
    assert "> 9\N{NO-BREAK SPACE}000 / 125" in rows[3]


def test_the_cost_of_a_state_is_the_slope_between_two_sizes() -> None:
    assert memory.tables(RECORDS["memory"])["memory-states"].splitlines()[-1].endswith("   100 |")


def test_compiled_modules_say_why_not() -> None:
    tables = compiled.tables(RECORDS["compiled"])
    assert "it looks at call frames" in tables["compiled-modules"]
    assert "0.4\N{MULTIPLICATION SIGN}" in tables["compiled-speed"]


def test_reading_is_beside_grep_and_zgrep_on_the_same_file() -> None:
    lines = tracing.tables(RECORDS["tracing"])["tracing-speed"].splitlines()
    ratios = {line.split("|")[1].strip(): line.split("|")[-3].strip() for line in lines[2:]}
    assert ratios == {
        tracing.GREP: "1.0\N{MULTIPLICATION SIGN}",
        tracing.ZGREP: "1.0\N{MULTIPLICATION SIGN}",
        tracing.READING: "50\N{MULTIPLICATION SIGN}",
        tracing.READING_COMPRESSED: "6.0\N{MULTIPLICATION SIGN}",
        "other": report.NONE,
    }


def test_what_diverges_has_no_speed() -> None:
    table = comparing.tables(RECORDS["comparing"])["comparing-speed"].splitlines()
    assert "5 events diverge" in table[-2]
    assert [cell.strip() for cell in table[-1].split("|")[1:-1]] == [
        "all of them",
        report.count(7000),
        report.count(4000),
        "1.0 s",
        report.count(4000),
    ]


def test_compiling_is_stated_apart() -> None:
    table = hole.tables(RECORDS["hole"])["hole"]
    assert "1.0 s" in table
    assert table.endswith("Not available: SPIN, because spin is not installed.")


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert "no benchmark nothing" in capsys.readouterr().err
