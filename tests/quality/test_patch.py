"""The main job: what is found in the patch and its neighbours, how soon, and how short the story is."""

from __future__ import annotations

import functools

import pytest

from interleaf.check import Cell, Request, check
from interleaf.explore.verdict import Status


@functools.cache
def checked(scenario: str, design: str) -> Cell:
    return check(Request(scenario, design))


HOLE = ("memslot-delete-vs-unmap", "nx-huge-pages-vs-release")

EXPECTED = {
    ("memslot-delete-vs-unmap", "v5.13"): set(),
    ("memslot-delete-vs-unmap", "v5.16"): {"I1"},
    ("memslot-delete-vs-unmap", "series-v1"): {"I1"},
    ("memslot-delete-vs-unmap", "off-list"): {"I1"},
    ("last-put-vs-unmap", "v5.13"): {"use-after-free"},
    ("last-put-vs-unmap", "v5.16"): set(),
    ("last-put-vs-unmap", "series-v1"): {"I1", "I12"},
    ("last-put-vs-unmap", "off-list"): {"I1", "I12"},
    ("fault-vs-other-memslot-delete", "v5.13"): {"I8"},
    ("fault-vs-other-memslot-delete", "v5.16"): set(),
    ("nx-huge-pages-vs-release", "off-list"): {"I1"},
    ("nx-huge-pages-vs-release", "v5.18"): set(),
    ("nx-huge-pages-vs-release", "v6.12"): set(),
}


@pytest.mark.parametrize(("scenario", "design"), EXPECTED)
def test_history_is_found_by_search(scenario: str, design: str) -> None:
    cell = checked(scenario, design)
    found = {finding.property for finding in cell.findings}
    assert cell.verdict.exhaustive
    assert EXPECTED[scenario, design] <= found
    assert bool(found) == bool(EXPECTED[scenario, design])
    assert cell.verdict.status is (Status.VIOLATED if found else Status.HOLDS)


@pytest.mark.parametrize("scenario", HOLE)
def test_the_hole_of_the_patch_is_found_within_a_hundred_executions(scenario: str) -> None:
    assert min(finding.executions for finding in checked(scenario, "off-list").findings) <= 100


@pytest.mark.parametrize("scenario", HOLE)
def test_the_story_of_the_hole_needs_one_preemption_at_most(scenario: str) -> None:
    story = min(checked(scenario, "off-list").findings, key=lambda finding: len(finding.schedule))
    assert story.property == "I1"
    assert story.preemptions is not None
    assert story.preemptions <= 1
    assert len({move.task for move in story.schedule}) == 2
    assert len(story.schedule) <= 40


@pytest.mark.parametrize("design", ["v5.18", "v6.12"])
@pytest.mark.parametrize("scenario", [*HOLE, "last-put-vs-unmap"])
def test_the_kernels_after_it_hold_and_the_search_was_exhaustive(scenario: str, design: str) -> None:
    cell = checked(scenario, design)
    assert cell.verdict.status is Status.HOLDS
    assert cell.verdict.exhaustive
    assert cell.verdict.certificate is not None
