"""Keeps what was learnt of a video file, under a name that its content gives.

A moved, renamed or touched file keeps its entry; a changed one has another. Each entry is a small
JSON file of its own, written to a temporary name and renamed, so that processes can share a cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from vidgen.errors import VideoError
from vidgen.video.index import FrameIndex
from vidgen.video.parts import part_beside

__all__ = ["IndexCache", "VideoRecord", "content_hash", "default_cache_dir"]

logger = logging.getLogger("vidgen.video")

FORMAT = 1
WHOLE = 4 << 20
"""Files up to this many bytes are hashed whole, larger ones by size and three samples."""


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


def default_cache_dir() -> Path:
    """Return ``$VIDGEN_CACHE``, else ``$XDG_CACHE_HOME/vidgen``, else ``~/.cache/vidgen``."""
    if given := os.environ.get("VIDGEN_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidgen"


def content_hash(path: Path) -> str:
    """Name the content of ``path``: blake2b of its size and bytes (head, middle, tail if large).

    Raises VideoError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            state = hashlib.blake2b(str(size).encode(), digest_size=16)
            if size <= WHOLE:
                state.update(file.read())
                return state.hexdigest()
            part = WHOLE // 4
            for offset in (0, (size - part) // 2, size - part):
                file.seek(offset)
                state.update(file.read(part))
            return state.hexdigest()
    except OSError as error:
        raise VideoError(f"cannot read {path}: {error.strerror or error}.") from error


class IndexCache:
    """A folder of records by content; see the module."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use ``folder`` (default: ``default_cache_dir()``), created when first written to."""
        self.folder = (folder or default_cache_dir()) / f"videos-{FORMAT}"
        self._reported = False
        # Files are indexed by several threads, and one report is enough.
        self._report = threading.Lock()

    def load(self, key: str) -> VideoRecord | None:
        """Return the record of ``key``, or None if there is none that can be used."""
        try:
            fields = json.loads(self._path(key).read_text(encoding="utf-8"))
            record = VideoRecord(**fields)
            index = FrameIndex.from_json(record.frame_index)
            known = (key, len(index), float(index.fps), float(index.duration))
            fields = (record.key, record.num_frames, record.fps, record.duration)
            sizes = (record.height, record.width)
            return record if fields == known and all(type(n) is int and n > 0 for n in sizes) else None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, VideoError):
            # A missing, torn or foreign entry is no error: the file is indexed again.
            return None

    def store(self, record: VideoRecord) -> None:
        """Write ``record``; a cache that cannot be written is reported once and costs only time."""
        path = self._path(record.key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = part_beside(path)
            try:
                part.write_text(json.dumps(asdict(record)), encoding="utf-8")
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            self._report_once(error)

    def _report_once(self, error: OSError) -> None:
        with self._report:
            if self._reported:
                return
            self._reported = True
        logger.warning(
            "cannot write the index cache %s (%s), so files are read through anew each time; set "
            "VIDGEN_CACHE or cache_dir to a folder that can be written.",
            self.folder,
            error.strerror or error,
        )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
