"""``vidgen train``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidgen import plugins
from vidgen.cli import logs
from vidgen.cli.options import Assignments, Device, Quiet, RecipeName, StrategyName, Verbose, dataset_names

if TYPE_CHECKING:
    from vidgen.training import Trainer

__all__ = ["train"]

_WORDS_SHOWN = 12


def train(
    strategy: StrategyName,
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there goes on.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of videos, or the name of a dataset (`vidgen list`); default: the recipe's.",
            autocompletion=dataset_names,
        ),
    ] = None,
    recipe: RecipeName = "tiny",
    assignments: Assignments = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option(help="Read the data, print the whole resolved recipe as JSON, and stop.")
    ] = False,
    quiet: Quiet = 0,
    verbose: Verbose = 0,
) -> None:
    """Train a strategy by a recipe; killed or interrupted, the same command goes on."""
    logs.shift(quiet - verbose)
    from vidgen import config as configs

    changes = assignments or []
    chosen = configs.override(
        plugins.load_recipe(strategy, recipe), changes if data is None else [f"data.path={data}", *changes]
    )
    from vidgen.training import Trainer, resolve
    from vidgen.video.dataset import check_data

    check_data(chosen.data.path)

    if dry_run:
        resolved = resolve(chosen, progress=not logs.is_quiet())
        typer.echo(json.dumps(configs.to_dict(resolved), indent=2))
        return
    trainer = Trainer(chosen, out, device=device, progress=not logs.is_quiet())
    says = trainer.processes.main and not logs.is_quiet()
    if says:
        name = recipe if "/" in recipe else f"{strategy}/{recipe}"
        typer.echo("\n".join(_summary(trainer, name, out)))
    _run(trainer)
    if says:
        typer.echo(f"trained: {out}")
        if strategy in plugins.available(plugins.STRATEGIES):
            typer.echo(f"now: {_generate(trainer, out)}")


def _run(trainer: Trainer) -> None:
    try:
        trainer.run()
    except KeyboardInterrupt as error:
        again = shlex.join(["vidgen", *sys.argv[1:]])
        raise KeyboardInterrupt(f"{trainer.kept()}. To go on from there: {again}") from error


def _generate(trainer: Trainer, out: Path) -> str:
    """Return a command that shows what was trained."""
    prompt = next(iter(trainer.dataset.texts()), "")
    words = ["vidgen", "generate", str(out), *([prompt] if prompt else []), "--out", "video.mp4"]
    return shlex.join(words)


def _summary(trainer: Trainer, name: str, out: Path) -> Iterator[str]:
    """Yield, line by line, what is trained on what and how, as it was resolved."""
    recipe, config = trainer.recipe, trainer.config
    data, model = recipe.data, recipe.model
    size = data.size if isinstance(data.size, tuple) else (data.size, data.size)
    yield f"{recipe.strategy} by the recipe {name}, on {len(trainer.dataset)} videos of {data.path}"
    yield f"  clips of {data.clip_length} frame(s) of {size[1]} x {size[0]}{_known(model)}"
    for component, count in trainer.strategy.num_parameters().items():
        yield f"  {component}: {count:,} parameters"
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    for stage in trainer.strategy.stages():
        own = recipe.training_of(stage.name)
        yield (
            f"  {own.steps} steps of {stage.name}, {own.batch_size} clips each, learning rate "
            f"{own.learning_rate:g} ({own.lr_schedule}), on {trainer.processes.device} in {precision}"
        )
    yield f"  saved every {config.checkpoint_every} steps in {out}; all settings: {out / 'recipe.json'}"


def _known(model: object) -> str:
    """Say which words or classes the captions gave, where the model has any."""
    for kind in ("words", "classes"):
        names = getattr(model, kind, ())
        if names:
            more = ", ..." if len(names) > _WORDS_SHOWN else ""
            return f", {len(names)} {kind} in captions: {', '.join(names[:_WORDS_SHOWN])}{more}"
    return ", no captions" if hasattr(model, "words") else ""
