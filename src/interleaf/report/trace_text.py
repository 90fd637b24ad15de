"""The summary of a trace on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .document import Json

SPARKS = " ▁▂▃▄▅▆▇█"
ASCII_SPARKS = " .:-=+*#%"
SPARK_WIDTH = 60
BESIDE_SPARKS = 30
"""Columns for the other two of that table."""
ROWS = 8
"""Rows of a table before the rest is left to --json."""


def moment(clock: str, value: int | None) -> str:
    """A time or a duration for people."""
    if value is None:
        return "-"
    if clock != "ns":
        return f"{value:,} ticks"
    if value < 1_000:
        return f"{value} ns"
    if value < 1_000_000:
        return f"{value / 1e3:.3g} us"
    if value < 1_000_000_000:
        return f"{value / 1e6:.3g} ms"
    return f"{value / 1e9:.3f} s"


def verdict(document: Json) -> tuple[str, bool]:
    """What the trace is worth, and whether that is good."""
    continuity, counts = document["continuity"], document["troubles"]["counts"]
    if continuity["contradictions"]:
        text = (
            f"{continuity['contradictions']:,} contradictions beside {continuity['changes']:,} changes that fit: "
            "something is missing from the trace, or this is a bug of KVM's or of this program's"
        )
        return text, False
    if continuity["not_understood"]:
        text = (
            f"{continuity['not_understood']:,} changes are of entries as 5.12 and older kernels write them, which are "
            "not understood: only faults and notifiers can be told"
        )
        return text, False
    if not continuity["changes"]:
        return "there is no kvm_tdp_mmu_spte_changed in it: only faults and notifiers can be told", False
    text = f"each of {continuity['changes']:,} changes fits what came before"
    if not continuity["from_the_beginning"]:
        return f"{text}, but the trace does not hold everything: tables are known in part", False
    if set(counts) - {"unknown event", "time runs backwards"}:
        return f"{text}, but not all of the trace could be read", False
    if "time runs backwards" in counts:
        return f"{text}, but time runs backwards in it: durations are not to be trusted", False
    return text, True


def print_summary(console: Console, document: Json) -> None:
    """Print the summary of a trace."""
    sparks = max(8, min(SPARK_WIDTH, console.width - BESIDE_SPARKS))
    for part in _parts(document, sparks, ascii_only=not console.encoding.lower().startswith("utf")):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(document: Json, sparks: int, ascii_only: bool) -> Iterator[RenderableType]:
    clock = document["clock"]
    events = sum(document["events"].values())
    yield Text(document["file"], style="bold")
    paging = f", {document['paging'].upper()}" if document["paging"] else ""
    yield Text(f"{events:,} events in {document['lines']:,} lines, {moment(clock, document['duration'])}{paging}")
    text, good = verdict(document)
    yield Text(text, style="green" if good else "yellow")
    for reason, count in document["continuity"]["explained"].items():
        yield Text(f"  {count:,}: {reason}", style="dim")
    for found in document["continuity"]["first_contradictions"][:ROWS]:
        yield Text(f"  line {found['line']}: {found['text']}", style="red")
    yield from _troubles(document)
    yield from _timeline(document, sparks, ascii_only)
    yield from _tables(document, clock)


def _troubles(document: Json) -> Iterator[RenderableType]:
    troubles = document["troubles"]
    for kind, count in troubles["counts"].items():
        extra = f" ({troubles['lost_events']:,} events)" if kind == "lost events" and troubles["lost_events"] else ""
        yield Text(f"{kind}: {count:,}{extra}", style="yellow")
        for place in [place for place in troubles["places"] if place["kind"] == kind][:3]:
            yield Text(f"  line {place['line']}: {place['text']}", style="yellow")


def _timeline(document: Json, width: int, ascii_only: bool) -> Iterator[RenderableType]:
    timeline = document["timeline"]
    if not timeline["counts"] and not timeline["mapped"]:
        return
    table = _table("over time", "", "most in a bin")
    for name, values in timeline["counts"].items():
        table.add_row(name, spark(_fewer(values, width, sum), ascii_only), f"{max(values):,}")
    for size, values in timeline["mapped"].items():
        table.add_row(f"{size} mapped", spark(_fewer(values, width, max), ascii_only), f"{max(values):,}")
    yield table


def _fewer(values: Sequence[int], width: int, merge: Callable[[Sequence[int]], int]) -> list[int]:
    """At most `width` values."""
    step = max(1, -(-len(values) // width))
    return [merge(values[at : at + step]) for at in range(0, len(values), step)]


def spark(values: Sequence[int], ascii_only: bool) -> str:
    """A line of bars."""
    sparks = ASCII_SPARKS if ascii_only else SPARKS
    top = max([*values, 1])
    return "".join(sparks[-(-max(0, value) * (len(sparks) - 1) // top)] for value in values)


def _tables(document: Json, clock: str) -> Iterator[RenderableType]:
    def time(value: int | None) -> str:
        return moment(clock, value)

    latency = {(found["access"], found["outcome"]): found for found in document["latency"]}
    table = _table("faults", "outcome", "count", "median", "99 %", "longest")
    for fault in document["faults"]:
        known = latency[fault["access"], fault["outcome"]]
        table.add_row(
            fault["access"],
            fault["outcome"],
            f"{fault['count']:,}",
            *(time(known[name]) for name in ("median", "p99", "longest")),
        )
    yield from _unless_empty(table)

    table = _table("mapped", "now", "most")
    for size in document["mapped"]:
        table.add_row(size["size"], f"{size['now']:,}", f"{size['most']:,}")
    yield from _unless_empty(table)

    table = _table("changes", "level", "count")
    for change in document["changes"]:
        table.add_row(change["change"], str(change["level"]), f"{change['count']:,}")
    yield from _unless_empty(table)

    table = _table("zaps by cause", "size", "count")
    for zap in document["zaps"]:
        table.add_row(zap["cause"], zap["size"], f"{zap['count']:,}")
    yield from _unless_empty(table)

    table = _table("mapped again after", "zapped", "mapped again", "median", "99 %")
    for found in document["refaults"]:
        share = found["refaulted"] / found["zapped"] if found["zapped"] else 0
        after = (time(found["median"]), time(found["p99"])) if found["refaulted"] else ("-", "-")
        table.add_row(found["cause"], f"{found['zapped']:,}", f"{found['refaulted']:,} ({share:.0%})", *after)
    yield from _unless_empty(table)

    table = _table("zap storms", "at", "takes", "zaps", "gfns", "task")
    for storm in document["storms"][:ROWS]:
        gfns = f"{storm['low_gfn']:x}-{storm['high_gfn']:x}"
        table.add_row(
            storm["cause"], time(storm["at"]), time(storm["duration"]), f"{storm['zaps']:,}", gfns, storm["task"]
        )
    yield from _unless_empty(table)

    table = _table("one task's changes without a pause", "count", "median", "99 %", "longest")
    for stretch in document["stretches"]:
        durations = (time(stretch[name]) for name in ("median", "p99", "longest"))
        table.add_row(stretch["doing"], f"{stretch['count']:,}", *durations)
    yield from _unless_empty(table)

    roots = document["roots"]
    title = f"roots ({roots['created']:,} created, {roots['zap_alls']:,} zap-alls)"
    table = _table(title, "created", "invalid", "gone", "leafs")
    for root in roots["lives"][:ROWS]:
        where = "?" if root["pfn"] is None else f"{root['pfn']:x}"
        table.add_row(
            f"{root['number']} at pfn {where}",
            *(time(root[name]) for name in ("created", "invalid", "gone")),
            f"{root['leafs']:,}",
        )
    if len(roots["lives"]) > ROWS:
        table.add_row(f"... {len(roots['lives']) - ROWS:,} more", "", "", "", "")
    yield from _unless_empty(table)

    table = _table("busiest gfns", "slots", "changes")
    for busy in document["busiest"][:ROWS]:
        gfns = f"{busy['gfn']:x}-{busy['gfn'] + busy['pages'] - 1:x}"
        table.add_row(gfns, ", ".join(map(str, busy["slots"])) or "-", f"{busy['changes']:,}")
    yield from _unless_empty(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(title, overflow="fold", min_width=min(len(title), 36))
    for column in columns:
        number = column in ("count", "now", "most", "changes", "zapped", "zaps", "leafs", "most in a bin")
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _unless_empty(table: Table) -> Iterator[RenderableType]:
    if table.row_count:
        yield Text("")
        yield table
