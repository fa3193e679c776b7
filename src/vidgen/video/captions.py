"""Captions of a folder of videos: sidecar text, a table, JSON lines with ranges, or folder names.

What is wrong in a captions file itself raises VideoError with the line; what does not fit the
videos (a row for a missing file, a range past the end) is collected as a problem to report.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vidgen.errors import VideoError
from vidgen.video.checks import check_name

__all__ = ["CAPTION_MODES", "CaptionSpan", "Captions", "class_caption", "load_captions"]

CAPTION_MODES = ("auto", "txt", "csv", "jsonl", "folder", "none")


@dataclass(frozen=True)
class CaptionSpan:
    """A caption that holds from ``start`` to ``stop`` (excluded), in ``unit``s.

    ``unit`` is ``"frames"`` or ``"seconds"`` (presentation time from the first frame); the
    default range is the whole video. ``source`` says where the caption was read.
    """

    caption: str
    start: float = 0.0
    stop: float = math.inf
    unit: str = "frames"
    source: str = ""


@dataclass(frozen=True)
class Captions:
    """The spans of each video (by its path relative to the folder) and what did not fit.

    ``classes`` are the sorted class names and ``labels`` each video's index among them, both empty
    unless the mode is ``"folder"``.
    """

    mode: str
    spans: Mapping[str, tuple[CaptionSpan, ...]]
    problems: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)


def load_captions(root: Path, videos: Sequence[str], mode: str = "auto") -> Captions:
    """Read the captions of ``videos`` (posix paths relative to ``root``).

    ``"txt"``: a text file beside each video, of the same stem. ``"csv"``: ``captions.csv`` in
    ``root`` with a header that names the columns ``path`` and ``caption``. ``"jsonl"``:
    ``captions.jsonl`` in ``root``, one object per line: ``path`` (or ``file``), ``caption`` and, if
    it does not hold for the whole video, ``frames: [start, stop)`` or ``seconds: [from, to)``.
    ``"folder"``: the name of a video's folder is its class. ``"auto"``: the first of jsonl, csv and
    txt of which there is a file, then folder if the videos lie in two or more sub-folders.

    Raises UnknownNameError for another mode, VideoError for a missing or malformed file.
    """
    check_name("captions mode", mode, CAPTION_MODES)
    mode = _detect(root, videos) if mode == "auto" else mode
    if mode == "folder":
        return _from_folders(root, videos)
    if mode == "none":
        return Captions(mode, {video: (CaptionSpan(""),) for video in videos})
    spans: dict[str, list[CaptionSpan]] = {}
    problems: list[str] = []
    known = frozenset(videos)
    rows = _from_text(root, videos) if mode == "txt" else _TABLES[mode](root)
    for video, span in rows:
        if video in known:
            spans.setdefault(video, []).append(span)
        else:
            problems.append(f"{span.source}: there is no video {video!r} in {root}; row ignored.")
    bare = [video for video in videos if video not in spans]
    if bare:
        problems.append(
            f"{len(bare)} of {len(videos)} videos in {root} have no caption in {mode} captions "
            f"(first: {bare[0]}); theirs is empty."
        )
    complete = {video: tuple(spans.get(video, [CaptionSpan("")])) for video in videos}
    return Captions(mode, complete, tuple(problems))


def class_caption(name: str) -> str:
    """Turn a class's folder name into words: ``"ApplyEyeMakeup"`` gives ``"apply eye makeup"``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-\s]+", " ", name)
    return " ".join(words.lower().split())


def _detect(root: Path, videos: Sequence[str]) -> str:
    for mode in ("jsonl", "csv"):
        if (root / f"captions.{mode}").is_file():
            return mode
    if any((root / video).with_suffix(".txt").is_file() for video in videos):
        return "txt"
    parents = {PurePosixPath(video).parent for video in videos}
    return "folder" if len(parents) > 1 and PurePosixPath(".") not in parents else "none"


def _from_folders(root: Path, videos: Sequence[str]) -> Captions:
    names = {video: (root / video).parent.name for video in videos}
    classes = tuple(sorted(set(names.values())))
    return Captions(
        "folder",
        {video: (CaptionSpan(class_caption(name)),) for video, name in names.items()},
        classes=classes,
        labels={video: classes.index(name) for video, name in names.items()},
    )


def _read(path: Path) -> str:
    if not path.is_file():
        raise VideoError(f"no captions file {path}; write it, or choose another captions mode.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VideoError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _from_text(root: Path, videos: Sequence[str]) -> list[tuple[str, CaptionSpan]]:
    found = []
    for video in videos:
        path = (root / video).with_suffix(".txt")
        if path.is_file():
            found.append((video, CaptionSpan(" ".join(_read(path).split()), source=str(path))))
    return found


def _from_csv(root: Path) -> list[tuple[str, CaptionSpan]]:
    path = root / "captions.csv"
    rows = csv.DictReader(_read(path).splitlines(keepends=True), strict=True)
    found = []
    try:
        columns = rows.fieldnames or ()
        if not {"path", "caption"} <= set(columns):
            raise VideoError(
                f"{path} has the columns {', '.join(columns) or 'none'}; its first line must name "
                "the columns path and caption."
            )
        for row in rows:
            source = f"{path}, line {rows.line_num}"
            if row["path"] is None or row["caption"] is None:
                raise VideoError(f"{source}: fewer cells than columns; give a path and a caption.")
            span = CaptionSpan(row["caption"].strip(), source=source)
            found.append((_relative(row["path"], root), span))
    except csv.Error as error:
        raise VideoError(f"{path}, line {rows.line_num}: not CSV ({error}).") from error
    return found


def _from_jsonl(root: Path) -> list[tuple[str, CaptionSpan]]:
    path = root / "captions.jsonl"
    found = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        source = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise VideoError(f"{source}: not JSON ({error}); expected one object a line.") from error
        found.append(_row_span(row, root, source))
    return found


_TABLES = {"csv": _from_csv, "jsonl": _from_jsonl}


def _row_span(row: Any, root: Path, source: str) -> tuple[str, CaptionSpan]:
    """Check one line of ``captions.jsonl``."""
    name = row.get("path", row.get("file")) if isinstance(row, dict) else None
    if not isinstance(name, str) or not isinstance(row.get("caption"), str):
        raise VideoError(
            f'{source}: expected {{"path": "a.mp4", "caption": "..."}} and, for a part of the '
            'video, "frames": [start, stop] or "seconds": [from, to].'
        )
    caption, units = row["caption"].strip(), [u for u in ("frames", "seconds") if u in row]
    if not units:
        return _relative(name, root), CaptionSpan(caption, source=source)
    span = row[units[0]]
    kinds = int if units[0] == "frames" else (int, float)
    if (
        len(units) > 1
        or not isinstance(span, list)
        or len(span) != 2
        or not all(isinstance(end, kinds) and not isinstance(end, bool) for end in span)
        or not 0 <= span[0] < span[1]
    ):
        raise VideoError(
            f"{source}: the range is {json.dumps({unit: row[unit] for unit in units})}; expected "
            "one of frames (whole numbers) or seconds, as [start, stop] with 0 <= start < stop."
        )
    return _relative(name, root), CaptionSpan(caption, float(span[0]), float(span[1]), units[0], source)


def _relative(name: str, root: Path) -> str:
    """Return a path as the videos are named: posix, relative to ``root``."""
    path = Path(name.strip())
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    return path.as_posix()
