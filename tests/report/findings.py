"""Findings to tell stories of: searched for once in a test process."""

from __future__ import annotations

import functools
from pathlib import Path

from interleaf.check import Cell, Finding, Request, check
from interleaf.checking import narrated
from interleaf.report.narration import Narration

MODELS = Path(__file__).with_name("models.py")


@functools.cache
def cell_of(scenario: str, *dropped: str) -> Cell:
    return check(Request(scenario, "v6.12", dropped))


@functools.cache
def finding(scenario: str, rule: str, *dropped: str) -> Finding:
    """The first finding of the property `rule`; `scenario` without a path is one of `models`."""
    spec = scenario if "-" in scenario else f"{MODELS}:{scenario}"
    return next(found for found in cell_of(spec, *dropped).findings if found.property == rule)


@functools.cache
def narration(scenario: str, rule: str, *dropped: str) -> Narration:
    return narrated(finding(scenario, rule, *dropped))


def stale_fault() -> tuple[Finding, Narration]:
    """A fault that maps a page that the host has taken back."""
    known = ("fault-vs-unmap", "I1", "notifier-retry")
    return finding(*known), narration(*known)
