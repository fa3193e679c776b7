"""Prompts from a file, and captions beside the videos made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vidgen.errors import InvalidArgumentError
from vidgen.paths import expanded

__all__ = ["caption_file", "check_captions", "read_prompts", "write_captions"]


def read_prompts(file: Path) -> list[str]:
    """Read one prompt a line; of a ``.jsonl`` file each line is a text, or an object with a ``prompt``.

    Empty lines do not count. An object may say ``caption`` instead, as the captions of a data set do.

    Raises:
        InvalidArgumentError: the file cannot be read, is no UTF-8, holds no prompt, or a line is wrong.
    """
    file = expanded(file)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"--prompt-file {file} cannot be read: {error}. Give a file of UTF-8 text, one prompt a line."
        ) from error
    # Only these end a line: others, such as U+2028, may stand in a text.
    lines = text.replace("\r\n", "\n").split("\n")
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InvalidArgumentError(f"--prompt-file {file} holds no prompt; give one a line.")
    if file.suffix.lower() != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt(line, f"{file}, line {number}") for number, line in numbered]


def _prompt(line: str, place: str) -> str:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{place}: not JSON ({error}); expected one prompt a line.") from error
    if isinstance(found, dict):
        found = found.get("prompt", found.get("caption"))
    if not isinstance(found, str):
        raise InvalidArgumentError(f'{place}: expected a text, or {{"prompt": "..."}}; got {line[:60]}.')
    return found


def caption_file(video: Path) -> Path:
    """Return the text file beside a video, of the same name; of a folder of pictures, beside that."""
    target = video.parent if video.suffix.lower() == ".png" else video
    return target.with_suffix(".txt")


def check_captions(videos: Iterable[Path], prompts: Iterable[str]) -> None:
    """Refuse to replace a text that says something else.

    Raises:
        InvalidArgumentError: there is one.
    """
    for video, prompt in zip(videos, prompts, strict=True):
        file = caption_file(video)
        if file.exists() and not (file.is_file() and file.read_bytes() == _content(prompt)):
            raise InvalidArgumentError(
                f"{file} exists and is no caption of this prompt. Write to another file, or say so: "
                "--overwrite."
            )


def write_captions(videos: Iterable[Path], prompts: Iterable[str]) -> None:
    """Write each prompt to a text file beside its video."""
    from vidgen.video.parts import part_beside

    for video, prompt in zip(videos, prompts, strict=True):
        file = caption_file(video)
        part = part_beside(file)
        try:
            part.write_bytes(_content(prompt))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


def _content(prompt: str) -> bytes:
    return f"{prompt}\n".encode()
