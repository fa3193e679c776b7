"""The command line: ``vidgen train``, ``generate``, ``data`` and ``list``.

Heavy modules are imported inside the commands, so that ``vidgen --help`` answers at once.
Exit codes: 0 done, 2 wrong use, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

import vidgen
from vidgen import plugins
from vidgen.errors import InvalidArgumentError, UnknownNameError, VidgenError

__all__ = ["app", "main"]

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    name="vidgen",
    help="Video diffusion strategies: train them, sample them, compare them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Make, index and inspect clips to train on.", no_args_is_help=True)
app.add_typer(data, name="data")

_WRONG_USE = (InvalidArgumentError, UnknownNameError)


def _exits(command: Callable[P, T]) -> Callable[P, T]:
    """Turn vidgen's errors into one line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except VidgenError as error:
            typer.echo(f"vidgen: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, _WRONG_USE) else 1) from error
        except KeyboardInterrupt as error:
            typer.echo("vidgen: interrupted", err=True)
            raise typer.Exit(130) from error

    return wrapped


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vidgen {vidgen.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what happens.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # answered by its callback
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("vidgen").setLevel(logging.DEBUG if verbose else logging.INFO)


Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field of the recipe: NAME=VALUE. Repeatable.")
]
Device = Annotated[str | None, typer.Option(help="Where to run, such as cpu or cuda; default: the best there.")]


def _recipe(strategy: str, name: str, path: str | None, assignments: list[str]) -> Any:
    from vidgen import config as configs

    plugins.check(plugins.STRATEGIES, strategy)
    recipe = plugins.load(plugins.RECIPES, name if "/" in name else f"{strategy}/{name}")()
    if recipe.strategy != strategy:
        raise InvalidArgumentError(
            f"recipe {name!r} trains {recipe.strategy!r}, not {strategy!r}. Give a recipe of {strategy!r}."
        )
    if path is not None:
        assignments = [f"data.path={path}", *assignments]
    return configs.override(recipe, assignments)


@app.command()
@_exits
def train(
    strategy: Annotated[str, typer.Argument(help="Which strategy, see `vidgen list`.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run there goes on.")],
    data: Annotated[
        str | None,
        typer.Option(help="Folder of videos, or `shapes` or `story`; default: the recipe's, `shapes`."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Which recipe, see `vidgen list`.")] = "tiny",
    assignments: Assignments = None,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
) -> None:
    """Train a strategy by a recipe; killed or interrupted, the same command goes on."""
    from vidgen import config as configs

    resolved = _recipe(strategy, recipe, data, assignments or [])
    typer.echo(json.dumps(configs.to_dict(resolved), indent=2))
    if dry_run:
        return
    from vidgen.training import Trainer

    trainer = Trainer(resolved, out, device=device)
    for name, count in trainer.strategy.num_parameters().items():
        typer.echo(f"{name}: {count:,} parameters")
    trainer.run()
    typer.echo(f"trained: {out}. Generate with: vidgen generate {out}")


def _span(text: str | None) -> range | None:
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        return range(int(start), int(stop)) if colon else range(int(start), int(start) + 1)
    except ValueError as error:
        raise InvalidArgumentError(
            f"--frames was given {text!r}; expected START:STOP, such as 100:132, or one frame."
        ) from error


def _options(assignments: list[str], taken: dict[str, Any]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in assignments]
    for name, equals, value in pairs:
        if not equals:
            raise InvalidArgumentError(f"--option was given {name + value!r}; expected NAME=VALUE.")
        if name in taken:
            raise InvalidArgumentError(f"--option {name} is no option of the strategy; use --{name}.")
    return {name: value for name, _, value in pairs}


@app.command()
@_exits
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or the folder of a run.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="One or more prompts.")] = None,
    out: Annotated[Path, typer.Option(help="mp4, webm or gif; several videos are numbered.")] = Path(
        "video.mp4"
    ),
    negative_prompt: Annotated[str, typer.Option(help="What guidance moves away from.")] = "",
    num_frames: Annotated[int | None, typer.Option(help="Frames of the video.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of the file.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps of every call.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 turns guidance off.")] = None,
    num_videos: Annotated[int, typer.Option(help="Videos per prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Video i of a prompt uses seed + i.")] = None,
    frames: Annotated[str | None, typer.Option(help="Only these frames: START:STOP.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Another solver, such as UniPC.")] = None,
    eta: Annotated[float, typer.Option(help="Share of fresh noise in DDIM steps, 0 to 1.")] = 0.0,
    batch_size: Annotated[int | None, typer.Option(help="Videos made at once.")] = None,
    work: Annotated[Path | None, typer.Option(help="Keep finished calls here, to go on from.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="The strategy's own: NAME=VALUE.")] = None,
    device: Device = None,
) -> None:
    """Generate videos with a trained strategy and write them to files."""
    from vidgen.sampling import load

    sampler = load(checkpoint, device=device)
    arguments: dict[str, Any] = {
        "prompt": prompt or "",
        "negative_prompt": negative_prompt,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "fps": fps,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "num_videos_per_prompt": num_videos,
        "seed": seed,
        "frames": _span(frames),
        "scheduler": scheduler,
        "eta": eta,
    }
    arguments |= {"batch_size": batch_size, "out": out, "work": work}
    result: Any = sampler(**arguments, **_options(option or [], arguments))
    for path, used in zip(result.paths, result.seeds, strict=True):
        typer.echo(f"{path} (seed {used})")


@app.command("list")
@_exits
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List strategies and recipes, with the package each comes from."""
    found = {
        "strategies": plugins.available(plugins.STRATEGIES),
        "recipes": plugins.available(plugins.RECIPES),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for kind, names in found.items():
        typer.echo(f"{kind}:")
        for name, distribution in names.items():
            typer.echo(f"  {name}  ({distribution})")


@data.command("make")
@_exits
def make(
    kind: Annotated[str, typer.Argument(help="`shapes` or `story`.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    count: Annotated[int, typer.Option(help="How many videos.")] = 16,
    num_frames: Annotated[int | None, typer.Option(help="Frames of each.")] = None,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 64,
    fps: Annotated[float, typer.Option(help="Frames per second.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Other videos with another seed.")] = 0,
) -> None:
    """Write procedural videos as H.264 files with captions and ground truth."""
    from vidgen.video.dataset import PROCEDURAL, DataConfig, procedural
    from vidgen.video.export import write_folder

    if kind not in PROCEDURAL:
        raise UnknownNameError("kind of data", kind, PROCEDURAL)
    config = DataConfig(path=kind, size=size, fps=fps, seed=seed, videos=count, frames=num_frames)
    write_folder(procedural(config), folder, progress=True)
    typer.echo(f"{count} videos in {folder}")


def _summary(folder: str) -> dict[str, Any]:
    from vidgen.video.dataset import DataConfig, open_dataset, summarize

    return summarize(open_dataset(DataConfig(path=folder, clip_length=1)))


@data.command("index")
@_exits
def index(folder: Annotated[str, typer.Argument(help="A folder of videos.")]) -> None:
    """Read through a folder once, so that training starts at once; report broken files."""
    found = _summary(folder)
    typer.echo(f"{found['videos']} videos indexed, {len(found['broken'])} broken")
    for name, reason in found["broken"].items():
        typer.echo(f"  {name}: {reason}")


@data.command("inspect")
@_exits
def inspect(folder: Annotated[str, typer.Argument(help="A folder of videos, `shapes` or `story`.")]) -> None:
    """Print what a folder holds, as JSON."""
    typer.echo(json.dumps(_summary(folder), indent=2, default=str))


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
