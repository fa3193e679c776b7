"""Pictures, videos and masks named on the command line, as the sampler takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, ImageSequence

from vidgen.cli.options import span
from vidgen.errors import InvalidArgumentError

__all__ = ["pictures"]


def pictures(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``image``, ``last_image``, ``video``, ``mask`` and ``pins`` name, None where none is named.

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
        read |= _masked(mask, read["video"], arguments["num_frames"])
    return read


def _pins(assignments: list[str]) -> dict[int, Image.Image] | None:
    found: dict[int, Image.Image] = {}
    for text in assignments:
        frame, equals, file = text.partition("=")
        if not equals or not file or not re.fullmatch(r"\d+", frame.strip()):
            raise InvalidArgumentError(f"--pin was given {text!r}; expected FRAME=FILE, such as 15=end.png.")
        if int(frame) in found:
            raise InvalidArgumentError(f"--pin gives frame {int(frame)} twice; give it once.")
        found[int(frame)] = _picture(Path(file), "--pin")
    return found or None


def _picture(file: Path, option: str, mode: str = "RGB") -> Image.Image:
    file = _existing(file, option)
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture).convert(mode)
    except OSError as error:
        raise InvalidArgumentError(
            f"{option} was given {file}, which is no picture: {error}. Give a PNG or JPEG file, say."
        ) from error


def _existing(file: Path, option: str) -> Path:
    file = file.expanduser()
    if not file.exists():
        raise InvalidArgumentError(f"{option} was given {file}, which does not exist. Give another file.")
    return file


def _masked(mask: str, video: Path | None, num_frames: int | None) -> dict[str, Any]:
    """Return the mask and, where it had to be read to count its frames, the video."""
    if video is None:
        raise InvalidArgumentError(
            f"--mask {mask} was given without --video; it says what of a video is made anew."
        )
    if not re.fullmatch(r"\d+(:\d+)?", mask):
        return {"mask": _mask_pictures(Path(mask))}
    from vidgen.video import Video

    frames = span(mask, "--mask") or range(0)
    read = Video.load(video)
    total = num_frames or len(read)
    if not frames or frames.stop > total:
        raise InvalidArgumentError(
            f"--mask was given {mask}, and the video has {total} frames; expected frames START:STOP with "
            f"0 <= START < STOP <= {total}."
        )
    return {"mask": [frame in frames for frame in range(total)], "video": read}


def _mask_pictures(path: Path) -> Any:
    """Read one picture for all frames, or a picture per frame from a folder, an animation or a video."""
    path = _existing(path, "--mask")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in Image.registered_extensions())
        if not files:
            raise InvalidArgumentError(f"--mask was given {path}, which holds no picture. Give another folder.")
        return [_picture(file, "--mask", "L") for file in files]
    try:
        with Image.open(path) as picture:
            found = [frame.convert("L") for frame in ImageSequence.Iterator(picture)]
    except OSError:  # no picture, so perhaps a video
        from vidgen.video import Video

        found = [Image.fromarray(frame).convert("L") for frame in Video.load(path).frames]
    return found[0] if len(found) == 1 else found
