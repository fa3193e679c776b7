"""``vidgen train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vidgen import plugins
from vidgen.cli import logs
from vidgen.cli.options import Assignments, Device, Quiet, RecipeName, StrategyName, Verbose

__all__ = ["train"]


def train(
    strategy: StrategyName,
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there goes on.")],
    data: Annotated[
        str | None,
        typer.Option(help="Folder of videos, or `shapes` or `story`; default: the recipe's, `shapes`."),
    ] = None,
    recipe: RecipeName = "tiny",
    assignments: Assignments = None,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
    quiet: Quiet = 0,
    verbose: Verbose = 0,
) -> None:
    """Train a strategy by a recipe; killed or interrupted, the same command goes on."""
    logs.shift(quiet - verbose)
    from vidgen import config as configs

    changes = assignments or []
    resolved = configs.override(
        plugins.load_recipe(strategy, recipe), changes if data is None else [f"data.path={data}", *changes]
    )
    typer.echo(json.dumps(configs.to_dict(resolved), indent=2))
    if dry_run:
        return
    from vidgen.training import Trainer

    trainer = Trainer(resolved, out, device=device, progress=not logs.is_quiet())
    for name, count in trainer.strategy.num_parameters().items():
        typer.echo(f"{name}: {count:,} parameters")
    trainer.run()
    typer.echo(f"trained: {out}")
