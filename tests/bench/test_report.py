"""Tables, the document, and the results that are kept."""

from pathlib import Path

import pytest

from bench import report


def test_a_table_is_aligned_markdown() -> None:
    assert report.table(("tool", "states"), [("SPIN", "12"), ("musil", "345")]).splitlines() == [
        "| tool  | states |",
        "|-------|-------:|",
        "| SPIN  |     12 |",
        "| musil |    345 |",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, report.NONE),
        (0.000_123_4, "123 µs"),
        (0.000_012_3, "12 µs"),
        (0.0123, "12 ms"),
        (0.00123, "1.2 ms"),
        (3.4449, "3.4 s"),
        (34.5, "34 s"),
    ],
)
def test_times(seconds: float | None, text: str) -> None:
    assert report.duration(seconds) == text


def test_counts_ratios_rates_and_sizes() -> None:
    assert report.count(59_049) == "59\N{NO-BREAK SPACE}049"
    assert report.size(97_476_000) == "97 MB"
    assert report.ratio(10, 4) == "2.5\N{MULTIPLICATION SIGN}"
    assert report.ratio(10, None) == report.NONE
    assert report.rate(59_049, 3.0) == "20\N{NO-BREAK SPACE}000"
    assert report.rate(59_049, None) == report.NONE


def test_the_document_is_renewed_where_it_says_so() -> None:
    text = "before\n<!-- one -->\nold\n<!-- end -->\nbetween\n<!-- two -->\nkept\n<!-- end -->\nafter\n"
    renewed = report.renew(text, {"one": "| new |"})
    assert renewed == text.replace("old", "\n| new |\n")
    assert report.renew(renewed, {"one": "| new |"}) == renewed


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place for two"):
        report.renew("<!-- one -->\n<!-- end -->\n", {"two": ""})


def test_results_of_other_benchmarks_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    report.keep({"locks": {"records": [1]}}, path)
    report.keep({"hole": {"records": [2]}}, path)
    assert report.kept(path) == {"locks": {"records": [1]}, "hole": {"records": [2]}}
