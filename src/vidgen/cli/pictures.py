"""Pictures, videos and masks named on the command line, as the sampler takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidgen.cli.options import span
from vidgen.errors import InvalidArgumentError
from vidgen.paths import expanded

__all__ = ["named_files", "pictures"]


def pictures(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``image``, ``last_image``, ``video``, ``mask`` and ``pins`` name, None where none is named.

    Files stay paths: the sampler reads them. Pictures are looked into now, before a model is loaded.

    Raises:
        InvalidArgumentError: a file is missing or is no picture, or a mask does not fit the video.
        VideoError: a video cannot be read.
    """
    read: dict[str, Any] = {"pins": _pins(arguments["pins"] or [])}
    for name in ("image", "last_image"):
        file = arguments[name]
        read[name] = None if file is None else _picture(file, f"--{name.replace('_', '-')}")
    video, mask = arguments["video"], arguments["mask"]
    read["video"] = None if video is None else _existing(video, "--video")
    if mask is not None:
        read["mask"] = _mask(mask, read["video"], arguments["num_frames"])
    return read


def named_files(read: Mapping[str, Any]) -> list[Path]:
    """Return the files among what ``pictures`` found."""
    values = [read.get(name) for name in ("image", "last_image", "video", "mask")]
    values += read.get("pins", {}).values()
    return [value for value in values if isinstance(value, Path)]


def _pins(assignments: list[str]) -> dict[int, Path] | None:
    found: dict[int, Path] = {}
    for text in assignments:
        frame, equals, file = text.partition("=")
        if not equals or not file or not re.fullmatch(r"\d+", frame.strip()):
            raise InvalidArgumentError(f"--pin was given {text!r}; expected FRAME=FILE, such as 15=end.png.")
        if int(frame) in found:
            raise InvalidArgumentError(f"--pin gives frame {int(frame)} twice; give it once.")
        found[int(frame)] = _picture(Path(file), "--pin")
    return found or None


def _picture(file: Path, option: str) -> Path:
    from vidgen.conditioning.pictures import read_pictures

    read_pictures(file, option)
    return file


def _existing(file: Path, option: str) -> Path:
    file = expanded(file)
    if not file.exists():
        raise InvalidArgumentError(f"{option} is {file}, which does not exist. Give another file.")
    return file


def _mask(mask: str, video: Path | None, num_frames: int | None) -> Path | list[bool]:
    if video is None:
        raise InvalidArgumentError(
            f"--mask {mask} was given without --video; it says what of a video is made anew."
        )
    if not re.fullmatch(r"\d+(:\d+)?", mask):
        from vidgen.conditioning.masks import read_mask

        read_mask(mask, "--mask")
        return Path(mask)
    frames = span(mask, "--mask") or range(0)
    total = num_frames or _length(video)
    if not frames or frames.stop > total:
        raise InvalidArgumentError(
            f"--mask was given {mask}, and the video has {total} frames; expected frames START:STOP with "
            f"0 <= START < STOP <= {total}."
        )
    return [frame in frames for frame in range(total)]


def _length(video: Path) -> int:
    from vidgen.video import Video, VideoReader

    if video.is_dir():
        return len(Video.load(video))
    with VideoReader(video) as reader:
        return len(reader)
