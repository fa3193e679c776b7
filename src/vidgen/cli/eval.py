"""``vidgen eval``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidgen.cli import logs
from vidgen.cli.options import Device, Json, Quiet, Verbose
from vidgen.errors import InvalidArgumentError, VidgenError

if TYPE_CHECKING:
    from vidgen.metrics.evaluate import Settings
    from vidgen.metrics.score import Score

__all__ = ["eval_"]

FORMAT = 1

Generated = Annotated[str, typer.Argument(help="A folder of videos to score, or `shapes`.")]
Against = Annotated[
    str | None,
    typer.Option(help="A folder of real videos, `shapes`, or statistics that --save-statistics wrote."),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="Which number, such as fvd, kvd or prompt_accuracy; default fvd and kvd. Repeatable."
    ),
]
Extractors = Annotated[
    list[str] | None,
    typer.Option(
        "--extractor",
        help="What describes videos: shapes, shapes_frames, i3d:FILE, torchscript:FILE, videomae:FOLDER, "
        "clip:FOLDER or open_clip:MODEL,pretrained=TAG; default shapes. Repeatable.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="SIDE|HEIGHTxWIDTH", help="Pixels at which videos are scored; default: their own."),
]
Seams = Annotated[
    str | None,
    typer.Option(
        metavar="FRAME,...", help="First frame of each new part, of those looked at: for seam_discontinuity."
    ),
]


def eval_(
    generated: Generated,
    against: Against = None,
    metrics: Metrics = None,
    extractors: Extractors = None,
    num_frames: Annotated[int, typer.Option(help="Frames of each video, from its first on.")] = 16,
    size: Size = None,
    crop: Annotated[str, typer.Option(help="`center`, or `none` to squeeze.")] = "center",
    stride: Annotated[int, typer.Option(help="Frames from one that is looked at to the next.")] = 1,
    fps: Annotated[
        float | None, typer.Option(help="Rate to resample both sets to, instead of a stride.")
    ] = None,
    videos: Annotated[int | None, typer.Option(help="At most this many of each set; default all.")] = None,
    captions: Annotated[
        str, typer.Option(help="auto, txt, csv, jsonl, folder, metadata (of generated videos) or none.")
    ] = "auto",
    skip_short: Annotated[
        bool, typer.Option("--skip-short", help="Leave out, and count, videos of fewer frames.")
    ] = False,
    block: Annotated[int, typer.Option(help="Frames of a block of b_fvd.")] = 16,
    splits: Annotated[int, typer.Option(help="Parts of the set for is.")] = 10,
    best_of: Annotated[
        int,
        typer.Option(help="Futures of each real video, in a folder of its name: psnr, ssim, lpips of the best"),
    ] = 1,
    seams: Seams = None,
    lpips: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Weights for lpips. Repeatable: backbone, heads.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn: videos, halves for the null, splits.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Videos in memory at once.")] = 16,
    save_statistics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the real set's statistics (.safetensors).")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the scores as JSON.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that were given, or that something else made.")
    ] = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Scores of another run (--out) to compare with.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = 0,
    verbose: Verbose = 0,
) -> None:
    """Score a folder of videos, alone or against another; each number says how it was made."""
    logs.shift(quiet - verbose)
    others = None if compare is None else _read(compare)  # before hours of work, as are the checks of files
    if out is not None:
        _check_out(out)
    if not overwrite:
        _check_files(out, save_statistics, [generated, against, compare, *(lpips or [])])
    from vidgen.metrics.evaluate import Settings
    from vidgen.metrics.sources import View

    view = View(num_frames=num_frames, size=_size(size), crop=crop, stride=stride, fps=fps)
    settings = Settings(
        view=view,
        videos=videos,
        captions=captions,
        skip_short=skip_short,
        seed=seed,
        splits=splits,
        block=block,
        best_of=best_of,
        seams=_seams(seams),
        batch_size=batch_size,
        progress=not logs.is_quiet(),
    )
    asked = [name.replace("-", "_") for name in metrics or ["fvd", "kvd"]]
    given = {"metrics": asked, "save_statistics": save_statistics}
    scores = _scores(generated, against, given, extractors, lpips, device, settings)
    if as_json:
        typer.echo(json.dumps(_document(scores), indent=2))
    else:
        typer.echo("\n".join(str(score) for score in scores))
    if out is not None:  # after they were printed: they stay if the disk is full
        _write(out, _document(scores))
    if others is not None:
        for line in _differences(scores, others, str(compare)):
            typer.echo(line, err=as_json)


def _scores(
    generated: str,
    against: str | None,
    given: dict[str, Any],
    extractors: list[str] | None,
    lpips: list[Path] | None,
    device: str | None,
    settings: Settings,
) -> list[Score]:
    from vidgen.devices import checked_device
    from vidgen.metrics.evaluate import evaluate
    from vidgen.metrics.pairs import Lpips
    from vidgen.metrics.requirements import JUDGED, OF_VIDEOS
    from vidgen.metrics.specs import open_extractor, shapes_judge

    place = checked_device(device)
    names = set(given["metrics"])
    of_features = {*OF_VIDEOS, "avg_fid"} & names
    frames = {"avg_fid"} & names
    specs = extractors or ["shapes"] * bool(of_features - frames) + ["shapes_frames"] * bool(frames)
    return evaluate(
        generated,
        against,
        **given,
        extractors=[open_extractor(spec, place) for spec in specs],
        judge=shapes_judge(device=place) if names & set(JUDGED) else None,
        lpips=Lpips(lpips, device=place) if lpips else None,
        settings=settings,
    )


def _size(text: str | None) -> int | tuple[int, int] | None:
    """Read ``SIDE`` or ``HEIGHTxWIDTH``."""
    if text is None:
        return None
    try:
        height, *width = (int(side) for side in text.lower().split("x", 1))
    except ValueError as error:
        raise InvalidArgumentError(
            f"--size was given {text!r}; expected a number of pixels, or HEIGHTxWIDTH such as 64x96."
        ) from error
    return (height, width[0]) if width else height


def _seams(text: str | None) -> tuple[int, ...]:
    """Read ``FRAME,FRAME,...``."""
    try:
        return tuple(int(frame) for frame in text.split(",")) if text else ()
    except ValueError as error:
        raise InvalidArgumentError(
            f"--seams was given {text!r}; expected numbers of frames with commas between, such as 16,32."
        ) from error


def _document(scores: Sequence[Score]) -> dict[str, Any]:
    return {"format": FORMAT, "scores": [score.to_json() for score in scores]}


def _check_files(out: Path | None, statistics: Path | None, inputs: Sequence[str | Path | None]) -> None:
    """Refuse to write over what is read, or over anything but scores and statistics of earlier evaluations."""
    from vidgen.sampling.replacing import refuse_inputs

    outputs = [path for path in (out, statistics) if path is not None]
    refuse_inputs(outputs, [Path(path) for path in inputs if path is not None])
    checks = ((out, _are_scores, "scores"), (statistics, _are_statistics, "statistics"))
    for path, is_own, kind in checks:
        if path is not None and path.exists() and not is_own(path):
            raise InvalidArgumentError(
                f"{path} exists and holds no {kind}. Write to another file, or say so: --overwrite."
            )


def _are_scores(path: Path) -> bool:
    try:
        _read(path)
    except InvalidArgumentError:
        return False
    return True


def _are_statistics(path: Path) -> bool:
    from vidgen.metrics.statistics import HalvedStatistics

    try:
        HalvedStatistics.load(path)
    except VidgenError:
        return False
    return True


def _check_out(path: Path) -> None:
    if path.is_dir():
        raise InvalidArgumentError(
            f"--out was given the folder {path}; expected a file, such as {path}/scores.json."
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def _write(path: Path, document: dict[str, Any]) -> None:
    from vidgen.config import write_json

    write_json(path, document)


def _read(path: Path) -> list[Score]:
    """Read what ``--out`` wrote."""
    from vidgen.metrics.score import Score

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise InvalidArgumentError(f"format {document['format']!r}, and this vidgen reads {FORMAT}")
        return [Score.from_json(row) for row in document["scores"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            f"{path} holds no scores that can be read ({error}). Give a file that `vidgen eval --out` wrote."
        ) from error


def _differences(scores: Sequence[Score], others: Sequence[Score], name: str) -> Iterator[str]:
    """Yield the difference to each score of ``others``.

    Raises:
        InvalidArgumentError: no key in common.
        ProtocolMismatchError: a number was made in another way there.
    """
    known = {score.key: score for score in others}
    pairs = [(score, known[score.key]) for score in scores if score.key in known]
    if not pairs:
        raise InvalidArgumentError(
            f"{name} has {', '.join(known) or 'no score'}, and none of {', '.join(s.key for s in scores)}; "
            "ask for the same metrics with the same extractors."
        )
    for score, other in pairs:
        change = score.difference(other)
        yield f"{score.key} {change:+.4g} against {name} ({other.value:.4g}): {_verdict(score, other, change)}"


def _verdict(score: Score, other: Score, change: float) -> str:
    """Say which of two comparable scores is better, where something does."""
    if not change:
        return "equal"
    better = score.improves_on(other)
    if score.higher_is_better is None and score.goal is None:
        return "different, and only real videos (--against) would say which is better"
    word = "equally good" if better is None else "better" if better else "worse"
    return word if score.goal is None else f"{word} (nearest to {score.goal:.4g} is best)"
