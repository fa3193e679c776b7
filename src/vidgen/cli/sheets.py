"""The contact sheet of ``vidgen generate``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from vidgen.errors import InvalidArgumentError

__all__ = ["check_sheet", "draw_sheet", "mark_of"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_DESCRIPTION = 0x010E  # EXIF's ImageDescription


def mark_of(command: Mapping[str, Any]) -> str:
    """Return what a sheet says of itself: which command made it."""
    text = json.dumps(command, sort_keys=True, default=str)
    return f"vidgen {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def check_sheet(sheet: Path, mark: str, *, overwrite: bool) -> None:
    """Refuse now what could not, or should not, be written after minutes of work.

    Raises:
        InvalidArgumentError: ``sheet`` is no picture's name, or exists and was not made by the same command.
    """
    if sheet.suffix.lower() not in _SUFFIXES:
        raise InvalidArgumentError(f"--sheet was given {sheet}; expected a picture: .png, .jpg or .webp.")
    if sheet.exists() and not overwrite and _mark(sheet) != mark:
        raise InvalidArgumentError(
            f"{sheet} exists and is no sheet of the same command. Write to another file, or say so: "
            "--overwrite."
        )


def _mark(sheet: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(sheet) as picture:
            return str(picture.getexif().get(_DESCRIPTION))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def draw_sheet(videos: Sequence[Path], sheet: Path, columns: int, mark: str) -> None:
    """Write a row of ``columns`` frames for each video."""
    from PIL import Image

    from vidgen.video import Video
    from vidgen.video.parts import part_beside
    from vidgen.video.sheets import video_sheet

    picture = video_sheet([Video.load(path) for path in videos], columns)
    exif = Image.Exif()
    exif[_DESCRIPTION] = mark
    sheet.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(sheet)
    try:
        picture.save(part, format=Image.registered_extensions()[sheet.suffix.lower()], exif=exif)
        part.replace(sheet)
    finally:
        part.unlink(missing_ok=True)
    typer.echo(str(sheet))
