"""The program: its commands and what they have in common."""

from __future__ import annotations

from typing import Annotated

import typer

import vidgen
from vidgen.cli import logs
from vidgen.cli.data import data
from vidgen.cli.eval import eval_
from vidgen.cli.exits import exits
from vidgen.cli.generate import generate
from vidgen.cli.options import Quiet, Verbose
from vidgen.cli.program import Program
from vidgen.cli.show import info, list_
from vidgen.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="vidgen",
    cls=Program,
    help="Video diffusion strategies: train them, sample them, compare them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, whether rich is installed or not
)
app.command()(exits(train))
app.command()(exits(generate))
app.command()(exits(info))
app.command("list")(exits(list_))
app.command("eval")(exits(eval_))
app.add_typer(data, name="data")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vidgen {vidgen.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: Quiet = 0,
    verbose: Verbose = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # answered by its callback
    logs.start()
    logs.shift(quiet - verbose)


def main() -> None:
    """Run the command line."""
    app(prog_name="vidgen")
