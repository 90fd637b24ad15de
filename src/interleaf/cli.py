"""The command line."""

from __future__ import annotations

import contextlib
import enum
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from interleaf import __version__
from interleaf.tracing import app as trace

UNUSABLE = 2

EXIT_CODES = (
    "Exit codes: 0 all properties hold; 1 a property is violated, or a claim fails; 2 bad usage, input or output, or a "
    "scenario that cannot be checked; 3 incomplete: a bound, Ctrl-C, SIGTERM or a killed worker ended it early, and "
    "nothing was found to be violated. Of several, the one named first of 2, 1, 3 counts."
)

app = typer.Typer(name="interleaf", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


app.add_typer(trace)


class Listed(enum.StrEnum):
    """What `interleaf list` lists."""

    SCENARIOS = "scenarios"
    DESIGNS = "designs"
    PROPERTIES = "properties"
    BUGS = "bugs"
    RULES = "rules"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"interleaf {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def interleaf(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Check KVM's TDP MMU under every interleaving that can matter."""


@app.command(epilog=EXIT_CODES)
def check(
    scenario: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCENARIO]...", help="Name, FILE.py or FILE.py:NAME. [default: all]"),
    ] = None,
    design: Annotated[
        list[str] | None, typer.Option(metavar="D", help="Name, or FILE.py:NAME; may be repeated. [default: all]")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Leave a rule of the designs out; may be repeated.")
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="RULE", help="Let the designs follow a rule more; may be repeated."),
    ] = None,
    swap: Annotated[
        list[str] | None,
        typer.Option(metavar="FUNCTION=D", help="Take a function from another design; may be repeated."),
    ] = None,
    bug: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Put a bug of the catalogue back, where it shows unless you say where; may be repeated.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="states: proof; steps: second opinion, which leaves livelock, starvation and data races undecided; "
            "both: they must agree; hunt: random schedules."
        ),
    ] = "states",
    preemptions: Annotated[int | None, typer.Option(min=0, help="Try at most so many preemptions.")] = None,
    states: Annotated[int | None, typer.Option(min=1, help="Visit at most so many states.")] = None,
    executions: Annotated[int | None, typer.Option(min=1, help="Run at most so many executions.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help="Search each cell for at most so long.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of hash numbers, audits and random schedules. [default: 1]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; 1 runs everything in this one. [default: one a core]")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result as JSON; - is standard output, alone.")
    ] = None,
    findings: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each finding to a file, for `interleaf show`.")
    ] = None,
    ftrace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the finding's execution, or else the first, as a trace of ftrace."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=N", help="Set a parameter of the scenarios.")
    ] = None,
    claims: Annotated[
        bool,
        typer.Option(
            "--claims",
            help='Decide what the patch "Take TDP MMU roots off list" says about itself; 1 if a claim fails.',
        ),
    ] = False,
) -> None:
    """Check scenarios on designs: every interleaving, a verdict for each cell, a story for each finding."""
    from interleaf.arguments import Changes, requests_for
    from interleaf.checking import Outputs
    from interleaf.checking import check as run
    from interleaf.explore.outcome import Bounds

    if claims:
        from interleaf.deciding import check_claims, expect_no_others

        others = {
            "the scenarios": scenario,
            "--design": design,
            "--drop": drop,
            "--with": with_,
            "--swap": swap,
            "--bug": bug,
            "--engine": None if engine == "states" else engine,
            "--preemptions": preemptions,
            "--states": states,
            "--executions": executions,
            "--seconds": seconds,
            "--ftrace": ftrace,
            "--set": set_,
        }
        expect_no_others([name for name, value in others.items() if value not in (None, [])])
        raise typer.Exit(check_claims(workers, seed, Outputs(json, findings)))
    bounds = Bounds(states, executions, seconds, preemptions)
    changes = Changes(with_ or [], swap or [], bug or [], drop or [])
    requests = requests_for(scenario or [], design or [], changes, engine, bounds, seed, set_ or [])
    raise typer.Exit(run(requests, workers, Outputs(json, findings, ftrace)))


@app.command(epilog=EXIT_CODES)
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A finding, or the JSON result of a check.")],
    finding: Annotated[
        int | None, typer.Option(metavar="N", help="Which finding of the result of a check, from 1 on.")
    ] = None,
    ftrace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the replay as a trace of ftrace.")] = None,
) -> None:
    """Replay a finding step for step, and tell its story."""
    from interleaf.showing import show as tell

    raise typer.Exit(tell(file, finding, ftrace))


@app.command()
def fuzz(
    design: Annotated[str, typer.Option(metavar="D", help="Name, or FILE.py:NAME.")] = "v6.12",
    drop: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Leave a rule of the design out; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same scenarios.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="For how long.")] = 60,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; 1 runs everything in this one. [default: one a core]")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where scenario files of what is found go.")] = Path(),
) -> None:
    """Compose random scenarios, check each, and shrink what is found to a scenario file that `check` runs.

    Exit codes: 0 nothing was found, 1 something was found, 2 bad usage, input or output.
    """
    from interleaf.fuzzing import fuzz as run

    raise typer.Exit(run(design, drop or [], seed, seconds, workers, output))


@app.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
) -> None:
    """List what there is to check, and what is checked."""
    from interleaf.listing import lines_of

    for line in lines_of(what):
        typer.echo(line)


def main() -> None:
    """Run the command that the arguments name. Whatever happens, the user sees a message and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what the terminal's encoding does not have is a "?" in it
    try:
        app()
    except SystemExit as end:
        # Typer and Rich exit with 1 when the output is closed; that would say that something is violated
        if not _over_a_closed_pipe(end):
            raise
        _close_output()
        sys.exit(UNUSABLE)
    except OSError as error:
        _close_output()
        _give_up(f"{error.filename or 'the output'}: {error.strerror or error}")
    except Exception as error:
        _give_up(_in_words(error))


def _over_a_closed_pipe(error: BaseException) -> bool:
    """Did the reader of the output go away, so that this came of it?"""
    context = error.__context__
    return isinstance(error, BrokenPipeError) or (context is not None and _over_a_closed_pipe(context))


def _close_output() -> None:
    """Nothing more can be written to standard output, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_words(error: Exception) -> str:
    from interleaf.arguments import Refused
    from interleaf.runtime import ModelError

    if isinstance(error, Refused | ModelError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"internal error: {type(error).__name__}: {error} ({where.filename}:{where.lineno}). Please report it."


def _give_up(text: str) -> None:
    with contextlib.suppress(OSError):  # the exit code says it, too
        print(f"interleaf: {text}", file=sys.stderr)
    sys.exit(UNUSABLE)
