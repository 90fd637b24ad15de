"""The command line."""

from typing import Annotated

import typer

from interleaf import __version__

app = typer.Typer(name="interleaf", no_args_is_help=True, add_completion=False)


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


def main() -> None:
    """Run the command that the arguments name."""
    app()
