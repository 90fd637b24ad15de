"""The commands `interleaf trace ...`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from interleaf.ftrace.reader import Trace
    from interleaf.ftrace.summary import Summary

FITS, CONTRADICTED, UNUSABLE, INCOMPLETE = range(4)
"""Exit codes; 2 also for bad usage or input."""

EXIT_CODES = (
    "Exit codes: 0 each change fits what came before; 1 changes contradict each other; 2 bad usage, input or output; "
    "3 incomplete: events are lost, lines could not be read, the file is cut off, no change could be checked, or "
    "Ctrl-C. Of several, the one named first of 2, 1, 3 counts."
)

EVERY = 50_000
"""Events between two looks at the progress."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP when the terminal goes away, are KeyboardInterrupt as Ctrl-C is; ignored ones stay so."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # timeout(1) sends it twice, and what was found is still to be shown
        raise KeyboardInterrupt

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    former = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


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


@_ended_by_signals()
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
    checked = found.known.changes > 0 and not found.known.foreign
    return FITS if whole and trace.account.whole and checked else INCOMPLETE


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


@app.command(
    epilog="Exit codes: 0 the model does what the trace says; 1 they diverge; 2 bad usage, input or output; 3 not "
    "all was compared (events are lost or could not be read, or Ctrl-C), and nothing diverges in what was."
)
def compare(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="Text of ftrace or `trace-cmd report`, plain or gzip.")],
    design: Annotated[str, typer.Option(metavar="D", help="Name, or FILE.py:NAME, of the kernel that made the trace.")],
    snapshots: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Walks through the page tables. [default: .snap.gz beside .trace.gz]"),
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The host's module parameters. [default: params.txt beside the trace]"),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result as JSON; - is standard output, alone.")
    ] = None,
    formats: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The events' format files, of the kernel that wrote the trace.")
    ] = None,
) -> None:
    """Do to the model what the trace says was done to KVM, and compare each change that follows."""
    raise typer.Exit(compare_with(file, design, snapshots, params, json, formats))


@_ended_by_signals()
def compare_with(
    path: Path,
    design: str,
    snapshots: Path | None,
    params: Path | None,
    json: Path | None,
    formats: Path | None = None,
) -> int:
    """Compare a trace with the model, show and write the result; returns the exit code. Raises Refused."""
    from rich.text import Text

    from interleaf.arguments import Refused
    from interleaf.designs import load
    from interleaf.ftrace.compare import compare_trace
    from interleaf.ftrace.formats import parsers_for, read_formats
    from interleaf.ftrace.parameters import read_release
    from interleaf.ftrace.source import Unreadable
    from interleaf.report import document
    from interleaf.report.compare_report import compare_document, print_comparison
    from interleaf.report.matrix import console_for
    from interleaf.runtime import ModelError

    alone = json is not None and str(json) == "-"
    if snapshots is None:
        beside = path.with_name(path.name.replace(".trace", ".snap"))
        snapshots = beside if beside != path and beside.exists() else None
    if params is None:
        beside = path.with_name("params.txt")
        params = beside if beside.exists() else None
    if json is not None and not alone:
        try:
            document.expect_writable(json)
        except OSError as error:
            raise Refused(f"the result could not be written: {error}.") from error
    if path.exists() and not path.is_file() and not path.is_dir():
        raise Refused(f"{path} is no regular file, and this reads a trace more than once: write it into a file first.")
    try:
        parsers = None if formats is None else parsers_for(read_formats(formats))
        result = compare_trace(path, load(design), snapshots, params, parsers)
    except (Unreadable, ModelError) as error:
        raise Refused(str(error)) from error
    except KeyboardInterrupt:
        console_for(stderr=True).print(Text("interleaf: stopped before the comparison came to its end", style="yellow"))
        return INCOMPLETE
    entry = compare_document(path, result, read_release(path.with_name("uname.txt")))
    if json is not None and not alone:
        try:
            document.write(json, document.to_text(entry))
        except OSError as error:
            raise Refused(f"{error.filename or json} cannot be written: {error.strerror or error}.") from error
    if alone:
        print(document.to_text(entry), end="", flush=True)
    else:
        print_comparison(console_for(stderr=False), entry)
    if not result.equal:
        return CONTRADICTED
    return INCOMPLETE if result.gaps else FITS


@app.command(
    epilog="Exit codes: 0 recorded and restored; 2 nothing could be recorded, or something is left to restore."
)
def record(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the trace and what belongs to it.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Record for so long; Ctrl-C ends it sooner.")] = 60.0,
    megabytes: Annotated[int, typer.Option(min=1, help="Record at most so much text, before compression.")] = 1024,
    buffer_kb: Annotated[int, typer.Option(min=64, help="Buffer of each CPU in the kernel.")] = 16384,
) -> None:
    """Record what KVM's MMU does on this host. Needs root; leaves everything as it was."""
    raise typer.Exit(record_to(folder, seconds, megabytes, buffer_kb))


@_ended_by_signals()
def record_to(folder: Path, seconds: float, megabytes: int, buffer_kb: int) -> int:
    """Record into a folder, and say how that went; returns the exit code. Raises Refused."""
    from rich.text import Text

    from interleaf.arguments import Refused
    from interleaf.ftrace.record import Host
    from interleaf.ftrace.record import record as run
    from interleaf.ftrace.tracefs import Missing
    from interleaf.report.matrix import console_for

    console = console_for(stderr=True)
    try:
        with console.status("recording") as status:

            def tell(size: int, elapsed: float) -> None:
                if console.is_terminal:
                    status.update(f"{size / 1e6:.1f} MB in {elapsed:.0f} s of {seconds:.0f}; Ctrl-C ends it")

            result = run(Host(), folder, seconds, megabytes, buffer_kb, tell)
    except Missing as error:
        raise Refused(str(error)) from error
    except KeyboardInterrupt:
        raise Refused("interrupted before anything was recorded.") from None
    for text in result.missing:
        console.print(Text(f"this kernel does not tell: {text}", style="yellow"), soft_wrap=True)
    for text in result.leftovers:
        console.print(Text(f"could not be restored; do it by hand: {text}", style="bold red"), soft_wrap=True)
    if result.failure:
        console.print(Text(f"recording failed: {result.failure}", style="bold red"), soft_wrap=True)
    if not result.size:
        why = "" if result.failure else f": {result.ended}, and no VM ran until then"
        console.print(Text(f"nothing was recorded{why}", style="yellow"), soft_wrap=True)
        return UNUSABLE
    said = f"{result.size / 1e6:.1f} MB of text in {result.seconds:.1f} s ({result.ended or 'failed'})"
    console_for(stderr=False).print(
        Text(f"{said}: interleaf trace summary {folder / 'trace.gz'} --formats {folder / 'formats'}"), soft_wrap=True
    )
    return UNUSABLE if result.leftovers or result.failure else FITS
