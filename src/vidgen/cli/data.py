"""``vidgen data``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from vidgen.cli import logs
from vidgen.cli.exits import exits
from vidgen.cli.options import dataset_names
from vidgen.errors import InvalidArgumentError

__all__ = ["data"]

data = typer.Typer(
    help="Make, index and inspect clips to train on.", no_args_is_help=True, rich_markup_mode=None
)


@data.command("make")
@exits
def make(
    kind: Annotated[
        str, typer.Argument(help="Which dataset, see `vidgen list`.", autocompletion=dataset_names)
    ],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    count: Annotated[int, typer.Option(help="How many videos.")] = 16,
    num_frames: Annotated[int | None, typer.Option(help="Frames of each.")] = None,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 64,
    fps: Annotated[float, typer.Option(help="Frames per second.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Other videos with another seed.")] = 0,
) -> None:
    """Write a dataset that is made on the fly as video files with captions."""
    from vidgen import plugins
    from vidgen.video.dataset import DataConfig, source_of

    plugins.check(plugins.DATASETS, kind)
    if not 0 < fps < math.inf:
        raise InvalidArgumentError(f"--fps is {fps}; expected a number above 0.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidArgumentError(f"{folder} is there and not an empty folder; give a new one.")
    config = DataConfig(kind, size=size, fps=fps, seed=seed)
    source_of(kind).make(config, folder, count=count, num_frames=num_frames, progress=not logs.is_quiet())
    typer.echo(f"{count} videos in {folder}")


def _summary(folder: str) -> dict[str, Any]:
    from vidgen.video.dataset import DataConfig, check_data, open_dataset, summarize

    check_data(folder)
    return summarize(open_dataset(DataConfig(folder, clip_length=1), progress=not logs.is_quiet()))


@data.command("index")
@exits
def index(folder: Annotated[str, typer.Argument(help="A folder of videos.")]) -> None:
    """Read through a folder once, so that training starts at once; report broken files."""
    found = _summary(folder)
    typer.echo(f"{found['videos']} videos indexed, {len(found['broken'])} broken")
    for name, reason in found["broken"].items():
        typer.echo(f"  {name}: {reason}")


@data.command("inspect")
@exits
def inspect(
    folder: Annotated[
        str, typer.Argument(help="A folder of videos, or a dataset's name.", autocompletion=dataset_names)
    ],
) -> None:
    """Print what a folder holds, as JSON."""
    typer.echo(json.dumps(_summary(folder), indent=2, default=str))
