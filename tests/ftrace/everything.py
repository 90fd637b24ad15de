"""All that is done with a trace but to compare it, and what must be true of that whatever the file holds."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from interleaf.ftrace.reader import Kind, Strict, Trace
from interleaf.ftrace.reconstruct import Reconstruction
from interleaf.ftrace.records import Lost
from interleaf.ftrace.source import Unreadable
from interleaf.ftrace.summary import Summary
from interleaf.report.document import to_text
from interleaf.report.trace_document import summary_document
from interleaf.report.trace_page import trace_page
from interleaf.report.trace_text import print_summary


def put_through(path: Path, *, show: bool = True) -> bool:
    """Read, rebuild, sum up and (which takes the longest) show a trace; False if it is refused as none."""
    trace = Trace(path)
    summary = Summary(Reconstruction(), trace.account)
    events = lost = 0
    try:
        for event in trace:
            summary.feed(event)
            events += 1
            lost += isinstance(event.record, Lost)
    except Unreadable:
        return False
    summary.finish()
    account, known = trace.account, summary.known
    assert events == account.total() + lost
    assert lost == sum(account.counts[kind] for kind in (Kind.LOST, Kind.GARBAGE, Kind.TEXT))
    assert known.waiting == 0
    assert known.changes + known.contradicted <= account.total()
    assert _stops(path) == bool(account.counts)
    entry = summary_document(path, summary)
    json.loads(to_text(entry))
    if show:
        trace_page(entry)
        print_summary(Console(file=io.StringIO()), entry)
    return True


def _stops(path: Path) -> bool:
    """Does reading stop at something, if it is strict?"""
    try:
        for _ in Trace(path, strict=True):
            pass
    except Strict:
        return True
    return False
