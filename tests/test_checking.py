"""What `check` tells of its findings."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from interleaf.check import Finding, Request, Work
from interleaf.checking import Outputs, Told, print_cell, print_stories
from interleaf.worker import Result
from tests.checkers import cell

FREED = Finding(
    *("I1", "Page0 is taken back, but it is still mapped", "zap-vs-unmap", "v5.13", (), ()),
    schedule=(),
    preemptions=1,
    executions=1,
    object="Page0",
    digest="",
)
RACE = replace(FREED, property="use-after-free", message="nothing orders the freeing of Page0", race=True)


def printed(*findings: Finding) -> str:
    file = io.StringIO()
    told = [Told(finding, None, "for a test", []) for finding in findings]
    print_stories(Console(file=file, width=100, color_system=None), told, Outputs(None, Path("findings")))
    return file.getvalue()


def test_a_lack_of_order_is_told_with_what_comes_of_it() -> None:
    text = printed(FREED, RACE)
    assert "Finding 2, nothing orders the freeing of Page0, is what finding 1 comes from." in text
    assert text.count("This cannot be replayed") == 1


def test_a_lack_of_order_with_another_object_or_alone_is_told_itself() -> None:
    assert printed(FREED, replace(RACE, object="Page1")).count("This cannot be replayed") == 2
    assert printed(RACE).count("This cannot be replayed") == 1
    assert printed(FREED, replace(RACE, design="v6.12")).count("This cannot be replayed") == 2


@pytest.mark.parametrize(("exhaustive", "ending"), [(True, "\n"), (False, ", as far as was explored\n")])
def test_a_cell_is_told_with_what_each_task_does_in_one_go(exhaustive: bool, ending: str) -> None:
    request = Request("zap", "v6.12")
    answer = replace(cell(request, exhaustive=exhaustive), work=(Work("memslot", 3, 2), Work("vcpu0", 4, 0)))
    file = io.StringIO()
    print_cell(Console(file=file, width=100, color_system=None), Result(request, answer))
    assert f"between two yield points: memslot 3 (2 torn down), vcpu0 4{ending}" in file.getvalue()
