"""``vidgen models``: the bundled models, and how they are made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vidgen.cli import logs
from vidgen.cli.exits import exits
from vidgen.cli.options import Assignments, Device, Quiet, Verbose, recipe_names
from vidgen.errors import InvalidArgumentError

__all__ = ["models"]

models = typer.Typer(name="models", help="Make bundled models again, by their recipes.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        help="Which model: a recipe of `vidgen list`, such as shapes/vdm.", autocompletion=recipe_names
    ),
]


def train(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run and the model; an unfinished run goes on. Default: runs/NAME."),
    ] = None,
    assignments: Assignments = None,
    device: Device = None,
    quality: Annotated[
        bool, typer.Option(help="Also measure the model and put the numbers on its card: minutes on a CPU.")
    ] = True,
    quiet: Quiet = 0,
    verbose: Verbose = 0,
) -> None:
    """Train a model by its recipe and write it as the package has its models: half precision, record, card."""
    logs.shift(quiet - verbose)
    from vidgen import config as configs
    from vidgen.shapes.bench import build_model
    from vidgen.shapes.bench.build import model_recipe

    recipe = configs.override(model_recipe(name), assignments or [])
    build = build_model(
        name,
        out or Path("runs") / name.replace("/", "-"),
        recipe=recipe,
        device=device,
        progress=not logs.is_quiet(),
        quality=quality,
    )
    typer.echo(f"made: {build.folder} ({build.record['bytes']:,} bytes of weights)")


def assess(
    folder: Annotated[Path, typer.Argument(help="The folder of a model that `vidgen models train` made.")],
    device: Device = None,
    quiet: Quiet = 0,
    verbose: Verbose = 0,
) -> None:
    """Measure such a model anew, print the numbers, and write them to its record and card."""
    logs.shift(quiet - verbose)
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder} is no folder; expected one that `vidgen models train` made.")
    from vidgen.shapes.bench import renew_card

    build = renew_card(folder, device=device, progress=not logs.is_quiet())
    quality = build.record["quality"]
    for name, value in quality["values"].items():
        typer.echo(f"{name}: {value:.4g}")
    for group, scores in quality["scores"].items():
        for score in scores:
            null = "" if score.get("null") is None else f" (null {score['null']:.4g})"
            typer.echo(f"{group} {score['key']}: {score['value']:.4g}{null}")


models.command()(exits(train))
models.command()(exits(assess))
