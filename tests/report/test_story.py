"""A finding as text in columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interleaf.report.roots import Root
from interleaf.report.story import describe, tell, where
from tests.report.findings import finding, narration, stale_fault


def story(scenario: str, rule: str, width: int = 100) -> str:
    return "\n".join(line.text for line in tell(finding(scenario, rule), narration(scenario, rule), width=width))


def stale_story(width: int = 100) -> list[str]:
    found, told = stale_fault()
    return [line.text for line in tell(found, told, width=width, replay="interleaf show it.json", others=["a on b"])]


@pytest.mark.parametrize("width", [75, 100])
def test_a_story_fits_its_width(width: int) -> None:
    lines = stale_story(width)
    assert max(map(len, lines)) <= width
    assert len(lines) < 110


def test_a_story_says_what_must_hold_and_why() -> None:
    text = "\n".join(stale_story())
    assert text.startswith("I1: ")
    assert "fault-vs-unmap on v6.12 without notifier-retry, 1 preemption" in text
    assert "found as well: a on b" in text
    assert "must hold: After invalidate_range_start has returned" in text
    assert "because: The host frees the page" in text
    assert "source: Documentation/mm/mmu_notifier.rst" in text
    assert text.endswith("replay it: interleaf show it.json")


def test_each_task_has_a_column() -> None:
    lines = stale_story()
    header = next(line for line in lines if line.startswith(("vcpu0 ", "munmap ")))
    border = header.index("|")
    assert header.split("|")[1].strip() in ("vcpu0", "munmap")
    left, right = header[:border].strip(), header[border + 1 :].strip()
    body = lines[lines.index(header) + 2 : lines.index("At this moment:")]
    columns = {left: [line[:border] for line in body], right: [line[border + 1 :] for line in body]}
    assert any("takes mmu_lock for writing" in text for text in columns["munmap"])
    assert any("takes mmu_lock for reading" in text for text in columns["vcpu0"])
    assert not any("takes mmu_lock for writing" in text for text in columns["vcpu0"])


def test_the_roots_and_the_violation_are_shown() -> None:
    text = "\n".join(stale_story())
    assert "= root A: valid, refcount 2, on the list, maps nothing" in text
    assert "!! I1 violated" in text
    assert "At this moment:\n  root A: valid, refcount 2, on the list, maps gfn 0x0 -> pfn 0x1000" in text


def test_long_runs_are_folded() -> None:
    assert any("… " in line and line.rstrip(" |").endswith("operations") for line in stale_story())


def test_a_use_after_free_shows_three_stacks() -> None:
    text = story("use_after_free", "use-after-free")
    allocated, freed, used = (
        text.index("Inode0 was allocated by setup:"),
        text.index("Inode0 was freed by owner:"),
        text.index("used by reader:"),
    )
    assert allocated < freed < used
    assert "models.py:" in text[used:]
    assert "the reader looks at the inode" in text


def test_a_deadlock_shows_who_waits() -> None:
    text = story("abba", "deadlock")
    end = text[text.index("At the end:") :]
    assert "left waits in spin_lock (one_then_other)" in end
    assert "right waits in spin_lock (other_then_one)" in end


def test_a_story_that_does_not_replay_says_so() -> None:
    found = finding("use_after_free", "use-after-free")
    told = replace(narration("use_after_free", "use-after-free"), violation=None)
    assert "The replay does not show this violation." in [line.text for line in tell(found, told)]


def test_what_was_explained_can_be_left_out() -> None:
    found, told = stale_fault()
    assert not any("must hold" in line.text for line in tell(found, told, explained=False))


def test_too_many_tasks_share_a_column() -> None:
    found, told = stale_fault()
    lines = [line.text for line in tell(found, told, width=40)]
    assert max(len(line) for line in lines if " | " in line) <= 40
    assert any(line.startswith("munmap | ") for line in lines)


@pytest.mark.parametrize("width", [40, 5])
def test_a_name_as_wide_as_the_terminal_stands_above_what_the_task_does(width: int) -> None:
    found, told = stale_fault()
    name = "rcu:tdp_mmu_free_sp_rcu_callback(KvmMmuPage0)"
    renamed = replace(told, told=[replace(one, task=name) if one.task == "munmap" else one for one in told.told])
    lines = [line.text for line in tell(found, renamed, width=width)]
    assert max(len(line) for line in lines if " | " in line) <= max(width, 30)
    assert lines[lines.index(name) + 1].partition(" | ")[0].strip() == ""


def test_where_a_finding_is_from() -> None:
    found = replace(
        finding("use_after_free", "use-after-free"),
        scenario="zap",
        parameters=(("pages", 2),),
        dropped=("one", "two"),
        preemptions=0,
    )
    assert where(found).startswith("zap on v6.12 without one without two (pages=2), no preemptions, ")
    assert "preemption" not in where(replace(found, preemptions=None))


def test_a_root_with_many_pages_is_one_line() -> None:
    mapped = tuple((gfn, 0x1000 + gfn) for gfn in range(5))
    text = describe(Root("KvmMmuPage0", True, 1, False, mapped), str)
    assert text == (
        "KvmMmuPage0: INVALID, refcount 1, NOT on the list, maps gfn 0x0 -> pfn 0x1000, gfn 0x1 -> pfn 0x1001, "
        "gfn 0x2 -> pfn 0x1002 and 2 more"
    )
