"""Captions of a folder of videos: sidecar text, a table, JSON lines with ranges, or folder names.

What is wrong in a captions file itself raises VideoError with the line; what does not fit the
videos (rows for missing files, a range past the end) is collected as a problem to report.

A row may name its video as it lies on disk, in another Unicode form, by an absolute path, with
backslashes, or by way of a link. A captions file is never followed out of the folder it belongs to:
what else lies on the machine is not for a dataset to read.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
import re
import reprlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from vidgen.errors import VideoError
from vidgen.video.checks import check_name, printable

__all__ = ["CAPTION_MODES", "CaptionSpan", "Captions", "class_caption", "load_captions"]

CAPTION_MODES = ("auto", "txt", "csv", "jsonl", "folder", "none")
_FURTHEST = 2**53
"""Frames or seconds beyond which no range reaches."""


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

    Captions come in NFC and with single spaces. The case of the files' suffixes does not matter.

    Raises UnknownNameError for another mode, VideoError for a file that is missing, malformed or a
    link out of the folder.
    """
    check_name("captions mode", mode, CAPTION_MODES)
    texts = _Sidecars(root)
    mode = _detect(root, videos, texts) if mode == "auto" else mode
    if mode == "folder":
        return _from_folders(root, videos)
    if mode == "none":
        return Captions(mode, {video: (CaptionSpan(""),) for video in videos})
    spans: dict[str, list[CaptionSpan]] = {}
    problems: list[str] = []
    if mode == "txt":
        spans = {video: [span] for video in videos if (span := texts.read(video, problems))}
    else:
        _match(_TABLES[mode](root), root, videos, spans, problems)
    bare = [video for video in videos if video not in spans]
    if bare:
        problems.append(
            f"{len(bare)} of {len(videos)} videos in {root} have no caption in {mode} captions "
            f"(first: {printable(bare[0])}); theirs is empty."
        )
    complete = {video: tuple(spans.get(video, [CaptionSpan("")])) for video in videos}
    return Captions(mode, complete, tuple(problems))


def class_caption(name: str) -> str:
    """Turn a class's folder name into words: ``"ApplyEyeMakeup"`` gives ``"apply eye makeup"``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\-\s]+", " ", name)
    return _plain(words.lower())


def _detect(root: Path, videos: Sequence[str], texts: _Sidecars) -> str:
    for mode in ("jsonl", "csv"):
        if _table(root, f"captions.{mode}").is_file():
            return mode
    if any(texts.find(video) for video in videos):
        return "txt"
    parents = {PurePosixPath(video).parent for video in videos}
    return "folder" if len(parents) > 1 and PurePosixPath(".") not in parents else "none"


def _from_folders(root: Path, videos: Sequence[str]) -> Captions:
    base = Path(os.path.abspath(root))  # noqa: PTH100  # "." has no name; a link keeps its own
    names = {video: (base / video).parent.name for video in videos}
    classes = tuple(sorted(set(names.values())))
    return Captions(
        "folder",
        {video: (CaptionSpan(class_caption(name)),) for video, name in names.items()},
        classes=classes,
        labels={video: classes.index(name) for video, name in names.items()},
    )


def _match(
    rows: Iterator[tuple[str, CaptionSpan]],
    root: Path,
    videos: Sequence[str],
    spans: dict[str, list[CaptionSpan]],
    problems: list[str],
) -> None:
    """Give each row's span to the video that it names; count those that name none."""
    names = _Names(root, videos)
    lost, first = 0, ""
    for name, span in rows:
        video = names.find(name)
        if video is not None:
            spans.setdefault(video, []).append(span)
            continue
        lost += 1
        first = first or f"{span.source}: there is no video {reprlib.repr(name)} in {root}"
    if lost:
        problems.append(f"{first}; row ignored" + (f", with {lost - 1} more like it." if lost > 1 else "."))


class _Names:
    """Finds the video that a row means, however it is written there."""

    def __init__(self, root: Path, videos: Sequence[str]) -> None:
        self._root, self._known = os.fspath(root), frozenset(videos)
        self._composed = {_nfc(video): video for video in reversed(videos)}
        self._folder = cache(os.path.realpath)
        self._real = {_nfc(self._real_path(video)): video for video in reversed(videos)}

    def find(self, name: str) -> str | None:
        """Return the video, as it lies on disk first; by way of links last."""
        if name in self._known:
            return name
        written = name.strip()
        for path in dict.fromkeys((written, written.replace("\\", "/"))):
            found = self._composed.get(_nfc(posixpath.normpath(path))) or self._by_real_path(path)
            if found is not None:
                return found
        return None

    def _by_real_path(self, path: str) -> str | None:
        try:
            return self._real.get(_nfc(self._real_path(path)))
        except ValueError:  # a name that no file can have, with a NUL in it
            return None

    def _real_path(self, path: str) -> str:
        """Return where a path from the folder leads to; many paths share a folder."""
        folder, file = os.path.split(os.path.join(self._root, path))  # noqa: PTH118  # text is quicker
        real = os.path.join(self._folder(folder), file)  # noqa: PTH118
        return os.path.realpath(real) if os.path.islink(real) else real  # noqa: PTH114


class _Sidecars:
    """The text files beside videos, found whatever the case of ``.txt`` and the form of the name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed = cache(_texts_in)

    def find(self, video: str) -> list[Path]:
        """Return the text files of a video; the one that is read comes first."""
        path = self._root / video
        exact = f"{path.stem}.txt"
        names = self._listed(path.parent).get(_nfc(path.stem), [])
        names = sorted(names, key=lambda name: (name != exact, name))
        return [path.parent / name for name in names]

    def read(self, video: str, problems: list[str]) -> CaptionSpan | None:
        """Return the caption of a video, None where there is none."""
        files = self.find(video)
        if not files:
            return None
        if len(files) > 1:
            names = ", ".join(printable(file.name) for file in files)
            problems.append(f"{printable(video)} has {len(files)} text files ({names}); the first is read.")
        text = _read(files[0], [self._root, files[0].parent])
        return CaptionSpan(_plain(text), source=printable(str(files[0])))


def _texts_in(folder: Path) -> dict[str, list[str]]:
    """Return the names of the text files in ``folder`` by their stems in NFC."""
    found: dict[str, list[str]] = {}
    try:
        for path in folder.iterdir():
            if path.suffix.lower() == ".txt" and path.is_file():
                found.setdefault(_nfc(path.stem), []).append(path.name)
    except FileNotFoundError:  # gone by now, like the videos in it
        return {}
    except OSError as error:
        raise VideoError(f"cannot list {printable(str(folder))}: {error.strerror or error}.") from error
    return found


def _table(root: Path, name: str) -> Path:
    """Return the file of that name in ``root``, whatever its case."""
    exact = root / name
    if exact.is_file():
        return exact
    return min((path for path in root.glob("*") if path.name.lower() == name), default=exact)


def _read(path: Path, homes: Sequence[Path]) -> str:
    """Return the text of a captions file that lies in one of ``homes``."""
    if not path.is_file():
        raise VideoError(f"no captions file {printable(str(path))}; write it, or choose another captions mode.")
    shown = printable(str(path))
    if path.is_symlink():
        _refuse_outside(path, homes)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise VideoError(f"{shown} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except OSError as error:
        raise VideoError(f"cannot read {shown}: {error.strerror or error}.") from error


def _refuse_outside(path: Path, homes: Sequence[Path]) -> None:
    """Refuse a link that leads elsewhere: a dataset from a stranger could read any file with it."""
    real = Path(os.path.realpath(path))
    allowed = [Path(os.path.realpath(home)) for home in homes]
    # The hub's cache: a dataset's files are links to the blobs beside its snapshots.
    allowed += [p.parent / "blobs" for home in allowed for p in home.parents if p.name == "snapshots"]
    if not any(real.is_relative_to(home) for home in allowed):
        raise VideoError(
            f"{printable(str(path))} is a link to {printable(str(real))}, outside of the folder; captions are "
            "read from within it only. If they are meant, copy the file here in place of the link."
        )


def _from_csv(root: Path) -> Iterator[tuple[str, CaptionSpan]]:
    path = _table(root, "captions.csv")
    text = io.StringIO(_read(path, [root]), newline="")  # lines end where CSV says, not at every U+2028
    rows = csv.DictReader(text, strict=True, skipinitialspace=True)
    try:
        columns = [name.strip() for name in rows.fieldnames or ()]
        if columns.count("path") != 1 or columns.count("caption") != 1:
            raise VideoError(
                f"{path} has the columns {', '.join(columns) or 'none'}; its first line must name "
                "the columns path and caption, once each."
            )
        rows.fieldnames = columns
        for row in rows:
            source = f"{path}, line {rows.line_num}"
            if None in row:
                count = len(columns) + len(row[None])
                raise VideoError(
                    f"{source}: {count} cells, and the first line names {len(columns)}. Put a caption "
                    'that has commas between double quotes: "a cat, asleep".'
                )
            if row["path"] is None or row["caption"] is None:
                raise VideoError(f"{source}: fewer cells than columns; give a path and a caption.")
            yield row["path"], CaptionSpan(_plain(row["caption"]), source=source)
    except csv.Error as error:
        raise VideoError(f"{path}, line {rows.reader.line_num}: not CSV ({error}).") from error


def _from_jsonl(root: Path) -> Iterator[tuple[str, CaptionSpan]]:
    path = _table(root, "captions.jsonl")
    # Not splitlines, which parts lines at characters that may stand inside a JSON string.
    for number, line in enumerate(io.StringIO(_read(path, [root]), newline=None), start=1):
        if not line.strip():
            continue
        source = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also: a number of thousands of digits, deep nesting
            raise VideoError(f"{source}: not JSON ({error}); expected one object a line.") from error
        yield _row_span(row, source)


_TABLES = {"csv": _from_csv, "jsonl": _from_jsonl}


def _row_span(row: Any, source: str) -> tuple[str, CaptionSpan]:
    """Check one line of ``captions.jsonl``; return the name of the video and the span."""
    name = row.get("path", row.get("file")) if isinstance(row, dict) else None
    if not isinstance(name, str) or not isinstance(row.get("caption"), str):
        raise VideoError(
            f'{source}: expected {{"path": "a.mp4", "caption": "..."}} and, for a part of the '
            'video, "frames": [start, stop] or "seconds": [from, to].'
        )
    caption = _plain(row["caption"])
    if not _is_text(caption):
        raise VideoError(f"{source}: the caption holds half of a surrogate pair, which is no character.")
    units = [unit for unit in ("frames", "seconds") if unit in row]
    if not units:
        return name, CaptionSpan(caption, source=source)
    span = row[units[0]]
    if len(units) > 1 or not _is_range(span, int if units[0] == "frames" else (int, float)):
        given = ", ".join(f"{unit}: {reprlib.repr(row[unit])}" for unit in units)
        raise VideoError(
            f"{source}: the range is {given}; expected one of frames (whole numbers) or seconds, as "
            "[start, stop] with 0 <= start < stop."
        )
    return name, CaptionSpan(caption, float(span[0]), float(span[1]), units[0], source)


def _is_range(span: Any, kinds: type | tuple[type, ...]) -> bool:
    return (
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(end, kinds) and not isinstance(end, bool) for end in span)
        and 0 <= span[0] < span[1] <= _FURTHEST
    )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(text: str) -> str:
    """Return a caption in NFC, on one line, with single spaces."""
    return _nfc(" ".join(text.split()))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
