"""Writing the shapes data out as a folder of video files with captions and ground truth."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.shapes.synthetic import ShapesSource
from vidgen.video.parts import part_beside
from vidgen.video.writer import VideoWriter

__all__ = ["write_folder"]

CHUNK = 64
"""Frames drawn at a time, so that a story of any length takes little memory."""


def write_folder(
    dataset: ShapesSource,
    folder: str | os.PathLike[str],
    count: int | None = None,
    fps: int | float | None = None,
    suffix: str = ".mp4",
    *,
    progress: bool = False,
) -> Path:
    """Write the first ``count`` videos (default: all) as files that ``VideoFolder`` opens.

    Each video is ``<index><suffix>`` (H.264 for ``.mp4``) at ``fps`` (default: the data's). Its
    caption is in a text file beside it, or, if captions change, in ``captions.jsonl`` with frame
    ranges; its ground truth is ``truth/<index>.json``. The folder appears when all is written.

    Raises VideoError if ``folder`` is a file, holds something or cannot be written, and
    InvalidArgumentError for a count or suffix that cannot be.
    """
    target = Path(folder)
    number = len(dataset) if count is None else count
    if not 1 <= number <= len(dataset):
        raise InvalidArgumentError(f"{count=}; the data has {len(dataset)} videos, give 1 to that.")
    _check_target(target, suffix)
    part = part_beside(target)
    try:
        (part / "truth").mkdir(parents=True)
        for index in tqdm(range(number), "writing", unit="video", disable=not progress):
            _write_video(dataset, index, part, fps or dataset.fps, suffix)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except VideoError:
        raise
    except OSError as error:
        raise VideoError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _check_target(target: Path, suffix: str) -> None:
    """Refuse a ``target`` that holds something and a suffix that is none."""
    if not suffix.startswith("."):
        raise InvalidArgumentError(f"{suffix=}; give a suffix with its dot, such as '.mp4'.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        kind = "is not empty" if target.is_dir() else "is a file"
        raise VideoError(f"{target} {kind}; give a new or empty folder.")


def _write_video(dataset: ShapesSource, index: int, part: Path, fps: int | float, suffix: str) -> None:
    """Write one video, its caption or captions, and its ground truth."""
    name = f"{index:05d}"
    spans = dataset.captions(index)
    metadata = {"shapes": index, "caption": spans[0][2]}
    with VideoWriter(part / f"{name}{suffix}", fps, metadata=metadata) as writer:
        for frames in _chunks(dataset.num_frames):
            writer.extend(dataset.render(index, frames))
    if len(spans) == 1:
        (part / f"{name}.txt").write_text(spans[0][2] + "\n", encoding="utf-8")
    else:
        with (part / "captions.jsonl").open("a", encoding="utf-8") as file:
            for start, stop, caption in spans:
                row = {"path": f"{name}{suffix}", "frames": [start, stop], "caption": caption}
                file.write(json.dumps(row) + "\n")
    truth = dataset.truth(index, range(dataset.num_frames)).to_json()
    record = truth | {"size": dataset.size, "fps": fps, "captions": spans}
    (part / "truth" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


def _chunks(num_frames: int) -> Iterator[range]:
    return (range(at, min(at + CHUNK, num_frames)) for at in range(0, num_frames, CHUNK))
