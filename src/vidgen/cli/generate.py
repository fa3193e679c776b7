"""``vidgen generate``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from vidgen.cli import logs
from vidgen.cli.options import Device, Quiet, Verbose, model_names, span
from vidgen.errors import InvalidArgumentError

__all__ = ["generate"]

Source = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder, the folder of a run, a bundled model (`vidgen list`), or a hub id "
        "user/repo[@revision].",
        autocompletion=model_names,
    ),
]
Prompts = Annotated[list[str] | None, typer.Argument(help="One or more prompts.")]
Out = Annotated[Path, typer.Option(help="mp4, webm or gif; several videos are numbered.")]
Sheet = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also a picture: a row of frames for each video, first to last."),
]
Columns = Annotated[int, typer.Option(min=1, help="Frames in a row of --sheet.")]
Frames = Annotated[str | None, typer.Option(help="Only these frames: START:STOP.")]
First = Annotated[Path | None, typer.Option(metavar="FILE", help="A picture that is the first frame.")]
Last = Annotated[Path | None, typer.Option(metavar="FILE", help="A picture that is the last frame.")]
Given = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A video to continue, to make anew, or to change by --mask.")
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|START:STOP",
        help="What of --video is made anew: white in a picture, a folder of pictures or a video; or frames.",
    ),
]
Strength = Annotated[
    float | None, typer.Option(help="How much of --video changes, above 0 to 1; 1 starts from noise.")
]
Pins = Annotated[
    list[str] | None, typer.Option(metavar="FRAME=FILE", help="A picture that is this frame. Repeatable.")
]
Repositories = Annotated[
    list[str] | None,
    typer.Option(metavar="USER/REPO", help="Of the hub, that the checkpoint may have loaded, too. Repeatable."),
]

_NAMES = {"steps": "num_inference_steps", "num_videos": "num_videos_per_prompt", "pin": "pins"}
"""Options whose name in Python is another."""


def generate(
    checkpoint: Source,
    prompt: Prompts = None,
    out: Out = Path("video.mp4"),
    negative_prompt: Annotated[str, typer.Option(help="What guidance moves away from.")] = "",
    num_frames: Annotated[int | None, typer.Option(help="Frames of the video.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of the file.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps of every call.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 turns guidance off.")] = None,
    num_videos: Annotated[int, typer.Option(help="Videos per prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Video i of a prompt uses seed + i.")] = None,
    frames: Frames = None,
    image: First = None,
    last_image: Last = None,
    video: Given = None,
    mask: Mask = None,
    strength: Strength = None,
    pin: Pins = None,
    scheduler: Annotated[str | None, typer.Option(help="Another solver, such as UniPC.")] = None,
    eta: Annotated[float, typer.Option(help="Share of fresh noise in DDIM steps, 0 to 1.")] = 0.0,
    batch_size: Annotated[int | None, typer.Option(help="Videos made at once.")] = None,
    work: Annotated[Path | None, typer.Option(help="Keep finished calls here, to go on from.")] = None,
    sheet: Sheet = None,
    sheet_columns: Columns = 8,
    option: Annotated[list[str] | None, typer.Option(help="The strategy's own: NAME=VALUE.")] = None,
    repository: Repositories = None,
    device: Device = None,
    quiet: Quiet = 0,
    verbose: Verbose = 0,
) -> None:
    """Generate videos with a trained strategy and write them to files; say first what it will cost."""
    given = dict(locals())  # the first statement: exactly the arguments
    logs.shift(given.pop("quiet") - given.pop("verbose"))
    columns = given.pop("sheet_columns")
    _check_sheet(given.pop("sheet"))
    paths = _run(given.pop("checkpoint"), given.pop("device"), given)
    if sheet is not None:
        _draw(paths, sheet, columns)


def _check_sheet(sheet: Path | None) -> None:
    """Refuse now what could not be written after minutes of work."""
    if sheet is not None and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InvalidArgumentError(f"--sheet was given {sheet}; expected a picture: .png, .jpg or .webp.")


def _draw(paths: list[Path], sheet: Path, columns: int) -> None:
    from vidgen.video import Video
    from vidgen.video.sheets import video_sheet

    picture = video_sheet([Video.load(path) for path in paths], columns)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    part = sheet.with_name(f".{sheet.stem}.part{sheet.suffix}")
    picture.save(part)
    part.replace(sheet)
    typer.echo(str(sheet))


def _run(checkpoint: str, device: str | None, given: dict[str, Any]) -> list[Path]:
    from vidgen.cli.pictures import pictures

    assignments, repositories = given.pop("option") or [], given.pop("repository") or ()
    arguments = {_NAMES.get(name, name): value for name, value in given.items()}
    options = _options(assignments, arguments)
    arguments |= pictures(arguments)
    arguments["frames"] = span(arguments["frames"], "--frames")
    from vidgen.sampling import load

    sampler = load(checkpoint, device=device, repositories=repositories)
    if logs.is_quiet():
        sampler.set_progress_bar_config(disable=True)
    asked = {name: value for name, value in arguments.items() if value is not None}
    result: Any = sampler(**asked, **options)
    for path, used in zip(result.paths, result.seeds, strict=True):
        typer.echo(f"{path} (seed {used})")
    return [Path(path) for path in result.paths]


def _options(assignments: list[str], taken: dict[str, Any]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in assignments]
    for name, equals, value in pairs:
        if not equals:
            raise InvalidArgumentError(f"--option was given {name + value!r}; expected NAME=VALUE.")
        if name in taken or name in _arguments():
            use = _instead(name, taken)
            raise InvalidArgumentError(f"--option {name} is no option of the strategy; {use}.")
    return {name: value for name, _, value in pairs}


def _arguments() -> set[str]:
    """Return the names of the sampler's own arguments, which are none of a strategy's."""
    from vidgen.sampling import Sampler

    parameters = inspect.signature(Sampler.__call__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


def _instead(name: str, taken: dict[str, Any]) -> str:
    if name == "prompt":
        return "write prompts after the checkpoint"
    if name not in taken:
        return f"the sampler's argument {name!r} is for Python alone. Leave it out"
    flags = {python: flag for flag, python in _NAMES.items()}
    return f"use --{flags.get(name, name).replace('_', '-')}"
