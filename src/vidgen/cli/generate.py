"""``vidgen generate``."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vidgen.cli import logs
from vidgen.cli.options import Device, Quiet, Verbose, by_level, model_names, span
from vidgen.cli.prompts import caption_file, check_captions, read_prompts, write_captions
from vidgen.cli.sheets import check_sheet, draw_sheet, mark_of
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
MorePrompts = Annotated[
    list[str] | None, typer.Option("--prompt", metavar="TEXT", help="One more prompt. Repeatable.")
]
PromptFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="More prompts: one a line, or JSON lines with a `prompt` each (.jsonl)."),
]
Steps = Annotated[
    list[str] | None,
    typer.Option(
        "--steps",
        "--num-inference-steps",
        metavar="[LEVEL=]STEPS",
        help="Solver steps of every call. Of one level: video=20. Repeatable.",
    ),
]
NumVideos = Annotated[int, typer.Option("--num-videos", "--num-videos-per-prompt", help="Videos per prompt.")]
Paste = Annotated[
    bool,
    typer.Option(
        "--paste-given/--code-given", help="Show given pixels as they were given, or as the codec shows them."
    ),
]
Prior = Annotated[
    str | None,
    typer.Option(
        metavar="KIND|JSON",
        help="Another noise prior, such as windowed-shuffle (FreeNoise), or "
        '{"kind": "windowed-shuffle", "window": 8}.',
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Replace files that were given, or that something else made.")]
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
Scales = Annotated[
    list[str] | None,
    typer.Option(metavar="[LEVEL=]SCALE", help="1 turns guidance off. Of one level: global=3. Repeatable."),
]
Solvers = Annotated[
    list[str] | None,
    typer.Option(metavar="[LEVEL=]NAME", help="Another solver, such as UniPC, also by level. Repeatable."),
]
Etas = Annotated[
    list[str] | None,
    typer.Option(metavar="[LEVEL=]SHARE", help="Share of fresh noise in DDIM steps, 0 to 1, also by level."),
]
Repositories = Annotated[
    list[str] | None,
    typer.Option(metavar="USER/REPO", help="Of the hub, that the checkpoint may have loaded, too. Repeatable."),
]

_NAMES = {"steps": "num_inference_steps", "num_videos": "num_videos_per_prompt", "pin": "pins"}
"""Options whose name in Python is another."""

_BY_LEVEL = {"num_inference_steps": int, "guidance_scale": float, "eta": float, "scheduler": str}
"""Options that may be given level by level, and what their values are."""

_APART = (
    "checkpoint",
    "repository",
    "strategy",
    "device",
    "quiet",
    "verbose",
    "more_prompts",
    "prompt_file",
    "option",
)
"""Options that are no arguments of the sampler's call."""


def generate(
    checkpoint: Source,
    prompt: Prompts = None,
    more_prompts: MorePrompts = None,
    prompt_file: PromptFile = None,
    out: Out = Path("video.mp4"),
    negative_prompt: Annotated[str, typer.Option(help="What guidance moves away from.")] = "",
    num_frames: Annotated[int | None, typer.Option(help="Frames of the video.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of the file.")] = None,
    steps: Steps = None,
    guidance_scale: Scales = None,
    num_videos: NumVideos = 1,
    seed: Annotated[int | None, typer.Option(help="Video i of a prompt uses seed + i.")] = None,
    frames: Frames = None,
    image: First = None,
    last_image: Last = None,
    video: Given = None,
    mask: Mask = None,
    strength: Strength = None,
    pin: Pins = None,
    paste_given: Paste = True,
    scheduler: Solvers = None,
    eta: Etas = None,
    noise_prior: Prior = None,
    batch_size: Annotated[int | None, typer.Option(help="Videos made at once.")] = None,
    work: Annotated[Path | None, typer.Option(help="Keep finished calls here, to go on from.")] = None,
    sheet: Sheet = None,
    sheet_columns: Columns = 8,
    captions: Annotated[bool, typer.Option(help="Also write each prompt beside its video, as .txt.")] = False,
    overwrite: Overwrite = False,
    option: Annotated[list[str] | None, typer.Option(help="The strategy's own: NAME=VALUE.")] = None,
    repository: Repositories = None,
    strategy: Annotated[
        str | None, typer.Option(help="Run the weights with this strategy, which wraps theirs.")
    ] = None,
    device: Device = None,
    quiet: Quiet = 0,
    verbose: Verbose = 0,
) -> None:
    """Generate videos with a trained strategy and write them to files; say first what it will cost."""
    given = dict(locals())  # the first statement: exactly the arguments
    logs.shift(quiet - verbose)
    given["prompt"] = [
        *(prompt or []),
        *(more_prompts or []),
        *(read_prompts(prompt_file) if prompt_file else []),
    ]
    asides = {name: given.pop(name) for name in ("sheet", "sheet_columns", "captions")}
    mark = mark_of({**given, "sheet_columns": sheet_columns, "quiet": 0, "verbose": 0, "overwrite": False})
    arguments = _arguments({name: value for name, value in given.items() if name not in _APART}, option or [])
    prompts = [text for text in given["prompt"] or [""] for _ in range(num_videos)]
    _check_places(arguments, asides, len(prompts), prompt_file)
    if sheet is not None:
        check_sheet(sheet, mark, overwrite=overwrite)
    if captions and not overwrite:
        check_captions(_paths(out, len(prompts)), prompts)
    where = {"device": device, "repositories": repository or [], "strategy": strategy}
    paths = _run(checkpoint, where, arguments)
    if captions:
        write_captions(paths, prompts)
    if sheet is not None:
        draw_sheet(paths, sheet, sheet_columns, mark)


def _paths(out: Path, count: int) -> tuple[Path, ...]:
    from vidgen.sampling.output import output_paths

    return output_paths(out, count)


def _arguments(given: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return the arguments of the sampler."""
    from vidgen.cli.pictures import pictures

    arguments = {_NAMES.get(name, name): value for name, value in given.items()}
    options = _options(assignments, arguments)
    for name, kind in _BY_LEVEL.items():
        arguments[name] = by_level(arguments[name], f"--{name.replace('_', '-')}", kind)
    arguments["prompt"] = arguments["prompt"] or None
    arguments |= pictures(arguments)
    arguments["frames"] = span(arguments["frames"], "--frames")
    arguments["noise_prior"] = _prior(arguments["noise_prior"])
    return {name: value for name, value in {**arguments, **options}.items() if value is not None}


def _prior(text: str | None) -> str | dict[str, Any] | None:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"--noise-prior was given {text!r}, which is no JSON ({error}); expected a kind, or "
            '{"kind": ...}.'
        ) from error
    return found


def _check_places(
    arguments: dict[str, Any], asides: dict[str, Any], count: int, prompt_file: Path | None
) -> None:
    """Refuse files that would be written over each other, or over what is read."""
    from vidgen.cli.pictures import named_files
    from vidgen.sampling.replacing import refuse_inputs

    outputs = list(_paths(arguments["out"], count))
    if asides["captions"]:
        outputs += [caption_file(path) for path in outputs]
    if asides["sheet"] is not None:
        outputs.append(asides["sheet"])
    inputs = [*named_files(arguments), *([] if prompt_file is None else [prompt_file])]
    refuse_inputs(outputs, () if arguments["overwrite"] else inputs)


def _run(checkpoint: str, where: dict[str, Any], arguments: dict[str, Any]) -> list[Path]:
    from vidgen.sampling import load

    sampler = load(checkpoint, **where)
    if logs.is_quiet():
        sampler.set_progress_bar_config(disable=True)
    result: Any = sampler(**arguments)
    for path, used in zip(result.paths, result.seeds, strict=True):
        typer.echo(f"{path} (seed {used})")
    return [Path(path) for path in result.paths]


def _options(assignments: list[str], taken: dict[str, Any]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in assignments]
    for name, equals, value in pairs:
        if not equals:
            raise InvalidArgumentError(f"--option was given {name + value!r}; expected NAME=VALUE.")
        if name in taken or name in _sampler_arguments():
            use = _instead(name, taken)
            raise InvalidArgumentError(f"--option {name} is no option of the strategy; {use}.")
    return {name: _number_or_text(value) for name, _, value in pairs}


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _sampler_arguments() -> set[str]:
    """Return the names of the sampler's own arguments, which are none of a strategy's."""
    from vidgen.sampling import Sampler

    parameters = inspect.signature(Sampler.__call__).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


def _instead(name: str, taken: dict[str, Any]) -> str:
    if name == "prompt":
        return "write prompts after the checkpoint, or use --prompt"
    if name not in taken:
        return f"the sampler's argument {name!r} is for Python alone. Leave it out"
    flags = {python: flag for flag, python in _NAMES.items()}
    return f"use --{flags.get(name, name).replace('_', '-')}"
