"""Keeps what was learnt of a video file, under a name that its content gives.

What identifies a video is its whole content: the BLAKE2b hash of every byte. Anything less (size,
dates, samples of the bytes) can be equal for two files, and then the index or the cached latents of
one would be taken for the other's. A moved, renamed or touched file so keeps its entry; a changed
one has another.

A file is hashed once, when it is first indexed, which reads it through in any case. Then its hash is
remembered under its path, with its size, dates of content and of status, and inode: no write leaves
all of these as they are, not even one that sets the date back. A file that was written to within the
last two seconds, the coarsest clock of a file system, is not remembered: the next write might bear the
same date. (Windows has no date of status; there a write that also restores the date goes unseen.)

    videos-1/ab/<hash>.json    a ``VideoRecord``
    files-1/cd/<path>.json     the hash of a file, and the stamp for which it holds

Each entry is a small JSON file of its own, written to a temporary name and renamed, so that any
number of processes can share a cache. What is missing, torn or foreign is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vidgen.errors import VideoError
from vidgen.video.checks import printable
from vidgen.video.draws import digest
from vidgen.video.index import FrameIndex
from vidgen.video.parts import part_beside

__all__ = ["FileStamp", "IndexCache", "VideoRecord", "content_hash", "default_cache_dir"]

logger = logging.getLogger("vidgen.video")

FORMAT = 1
SETTLED = 2_000_000_000
"""Nanoseconds without a write after which the next one surely bears another date."""
_SIDE = 1 << 17
"""Pixels along a side that no video reaches."""
_KEY = re.compile(r"[0-9a-f]{32}")
_UNUSABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
"""What reading a missing, torn or foreign entry may raise; VideoError is an OSError."""


@dataclass(frozen=True)
class FileStamp:
    """What changes whenever a file is written to; see the module.

    ``settled`` says whether the last write is long enough ago for that to hold; it is no part of the
    comparison.
    """

    size: int
    modified: int
    changed: int
    inode: int
    settled: bool = field(compare=False)

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of the file at ``path``.

        Raises VideoError if there is none, or something else, such as a pipe.
        """
        now = time.time_ns()
        try:
            found = path.stat()
        except OSError as error:
            raise VideoError(f"cannot read {path}: {error.strerror or error}.") from error
        if not stat.S_ISREG(found.st_mode):
            raise VideoError(f"{path} is no regular file, but a folder, a pipe or a device.")
        times = found.st_mtime_ns, found.st_ctime_ns
        return cls(found.st_size, *times, found.st_ino, settled=max(times) < now - SETTLED)

    def fields(self) -> list[int]:
        """Return what is compared."""
        return [self.size, self.modified, self.changed, self.inode]


@dataclass(frozen=True)
class VideoRecord:
    """What is known of a video's content without decoding it.

    ``height`` and ``width`` are as shown (after rotation); ``frame_index`` is a ``FrameIndex`` as
    JSON, kept as text because that is an eighth of its size as objects.
    """

    key: str
    num_frames: int
    fps: float
    duration: float
    height: int
    width: int
    frame_index: str

    @classmethod
    def of(cls, key: str, index: FrameIndex, height: int, width: int) -> VideoRecord:
        """Return the record of a video; what the index tells is taken from it."""
        fps, duration = float(index.fps), float(index.duration)
        return cls(key, len(index), fps, duration, height, width, index.to_json())


def default_cache_dir() -> Path:
    """Return ``$VIDGEN_CACHE``, else ``$XDG_CACHE_HOME/vidgen``, else ``~/.cache/vidgen``."""
    if given := os.environ.get("VIDGEN_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidgen"


def content_hash(path: Path) -> str:
    """Name the content of ``path``: 32 hexadecimal digits of BLAKE2b of its size and all its bytes.

    Raises VideoError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = partial(hashlib.blake2b, str(size).encode(), digest_size=16)
            return hashlib.file_digest(file, start).hexdigest()
    except OSError as error:
        raise VideoError(f"cannot read {path}: {error.strerror or error}.") from error


class IndexCache:
    """A folder of records by content, and of contents by file; see the module."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use ``folder`` (default: ``default_cache_dir()``), created when first written to."""
        base = folder or default_cache_dir()
        self.folder, self.files = base / f"videos-{FORMAT}", base / f"files-{FORMAT}"
        self._reported = False
        # Files are indexed by several threads, and one report is enough.
        self._report = threading.Lock()

    def identify(self, path: Path) -> tuple[FileStamp, str]:
        """Return the stamp of a file and the hash of its content, which is read if that is not known.

        Raises VideoError if the file cannot be read.
        """
        stamp = FileStamp.of(path)  # before the content, so that no write goes unseen
        name = digest("vidgen.file", os.path.abspath(path)).hex()  # noqa: PTH100  # links stay
        entry = self.files / name[:2] / f"{name}.json"
        with suppress(*_UNUSABLE):
            known = json.loads(entry.read_text(encoding="utf-8"))
            if known["stamp"] == stamp.fields() and _KEY.fullmatch(known["content"]):
                return stamp, known["content"]
        key = content_hash(path)
        if stamp.settled:
            self._write(self.files, entry, {"stamp": stamp.fields(), "content": key})
        return stamp, key

    def load(self, key: str) -> VideoRecord | None:
        """Return the record of ``key``, or None if there is none that can be used."""
        try:
            found = json.loads(self._path(key).read_text(encoding="utf-8"))
            height, width = found["height"], found["width"]
            if not all(type(side) is int and 0 < side < _SIDE for side in (height, width)):
                return None
            record = VideoRecord.of(key, FrameIndex.from_json(found["frame_index"]), height, width)
        except _UNUSABLE:
            return None
        # Whatever can be told from the index has to agree with it, so nothing can be of a wrong type.
        return record if asdict(record) == found else None

    def store(self, record: VideoRecord) -> None:
        """Write ``record``; a cache that cannot be written is reported once and costs only time."""
        self._write(self.folder, self._path(record.key), asdict(record))

    def _write(self, folder: Path, path: Path, entry: Mapping[str, Any]) -> None:
        part = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = part_beside(folder / path.name)  # where dead processes' parts are found at a glance
            with part.open("x", encoding="utf-8") as file:
                json.dump(entry, file)
            part.replace(path)
        except OSError as error:
            self._report_once(error)
        finally:
            if part is not None:
                with suppress(OSError):
                    part.unlink(missing_ok=True)

    def _report_once(self, error: OSError) -> None:
        with self._report:
            if self._reported:
                return
            self._reported = True
        logger.warning(
            "cannot write the index cache %s (%s), so files are read through anew each time; set "
            "VIDGEN_CACHE or cache_dir to a folder that can be written.",
            printable(str(self.folder)),
            error.strerror or error,
        )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
