"""The commands `interleaf trace ...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from interleaf.ftrace.reader import Trace
    from interleaf.ftrace.summary import Summary

FITS, CONTRADICTED, INCOMPLETE = 0, 1, 3
"""Exit codes, besides 2 for bad usage or input."""

EXIT_CODES = (
    "Exit codes: 0 each change fits what came before; 1 changes contradict each other; 2 bad usage, input or output; "
    "3 incomplete: events are lost, lines could not be read, the file is cut off, or Ctrl-C. Of several, the one named "
    "first of 2, 1, 3 counts."
)

EVERY = 50_000
"""Events between two looks at the progress."""

app = typer.Typer(name="trace", no_args_is_help=True, help="Traces of real kernels.")


@app.command(epilog=EXIT_CODES)
def summary(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="Text of ftrace or `trace-cmd report`, plain or gzip.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page for a browser.")] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the summary as JSON; - is standard output, alone.")
    ] = None,
    formats: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The events' format files, of the kernel that wrote the trace.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first thing that is not understood.")] = False,
) -> None:
    """Say what happened: faults, mappings, zaps and their causes, roots, over time and by gfn."""
    raise typer.Exit(summarise(file, html, json, formats, strict))


def summarise(path: Path, html: Path | None, json: Path | None, formats: Path | None, strict: bool) -> int:
    """Read a trace, show and write its summary; returns the exit code. Raises Refused."""
    from interleaf.arguments import Refused
    from interleaf.ftrace.formats import parsers_for, read_formats
    from interleaf.ftrace.reader import Strict, Trace
    from interleaf.ftrace.reconstruct import Reconstruction
    from interleaf.ftrace.source import Unreadable
    from interleaf.ftrace.summary import Summary
    from interleaf.report import document
    from interleaf.report.matrix import console_for
    from interleaf.report.trace_document import summary_document
    from interleaf.report.trace_page import trace_page
    from interleaf.report.trace_text import print_summary

    alone = json is not None and str(json) == "-"
    for output in (html, None if alone else json):
        if output is not None:
            try:
                document.expect_writable(output)
            except OSError as error:
                raise Refused(f"the result could not be written: {error}.") from error
    try:
        parsers = None if formats is None else parsers_for(read_formats(formats))
        trace = Trace(path, parsers, strict=strict)
        found = Summary(Reconstruction(), trace.account)
        whole = _read(trace, found, console_for(stderr=True))
    except (Unreadable, Strict) as error:
        raise Refused(str(error)) from error
    entry = summary_document(path, found)
    try:
        if html is not None:
            document.write(html, trace_page(entry))
        if json is not None and not alone:
            document.write(json, document.to_text(entry))
    except OSError as error:
        raise Refused(f"{error.filename or html or json} cannot be written: {error.strerror or error}.") from error
    if alone:
        print(document.to_text(entry), end="", flush=True)
    else:
        print_summary(console_for(stderr=False), entry)
    if found.known.contradicted:
        return CONTRADICTED
    return FITS if whole and trace.account.whole else INCOMPLETE


def _read(trace: Trace, found: Summary, console: Console) -> bool:
    """Take in all of the trace; False if Ctrl-C ended that."""
    from rich.text import Text

    try:
        with console.status("reading") as status:
            for number, event in enumerate(trace):
                found.feed(event)
                if console.is_terminal and number % EVERY == 0:
                    status.update(f"{number:,} events; Ctrl-C ends it and shows what was found")
    except KeyboardInterrupt:
        found.finish()
        console.print(Text(f"interleaf: stopped after line {trace.account.lines:,}", style="yellow"))
        return False
    found.finish()
    return True
