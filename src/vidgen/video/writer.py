"""Writing videos frame by frame: H.264, VP9, animated GIF, or a folder of PNG files.

Frames are encoded as they come, so memory does not grow with the video. Everything goes to a
temporary name beside the target, which takes the target's name only when the video is complete:
a reader never sees half a file, and a failed run leaves nothing behind. The settings that made a
video travel inside it, as JSON (``read_metadata`` gives them back).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.video.parts import part_beside, remove
from vidgen.video.sinks import CODECS, Coding, ContainerSink, GifSink, PngSink, Sink

__all__ = ["VideoWriter", "as_rate", "noted_rate", "read_metadata", "read_record"]

_SUFFIXES = (".gif", ".mp4", ".png", ".webm")
_SIDECAR = "metadata.json"
_LONGEST_NOTE = 64 << 20  # bytes
_RATE = re.compile(r"0*[1-9][0-9]{0,11}(/0*[1-9][0-9]{0,11})?")


def as_rate(fps: int | float | Fraction) -> Fraction:
    """Frames per second as an exact ratio; 29.97 and its kind become 30000/1001 and so on.

    Raises:
        InvalidArgumentError: ``fps`` is not positive and finite.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise InvalidArgumentError(f"fps={fps!r} must be a positive, finite number.")
    if isinstance(fps, Fraction):
        return fps
    ntsc = Fraction(round(fps) * 1000, 1001)
    if ntsc and abs(ntsc - Fraction(fps)) < Fraction(1, 1000):
        return ntsc
    return Fraction(fps).limit_denominator(10_000) or Fraction(fps).limit_denominator(10**9)


class VideoWriter:
    """Writes one video, a frame at a time; a context manager.

    The suffix of ``path`` chooses the format: ``.mp4`` (H.264, BT.709, index at the front),
    ``.webm`` (VP9), ``.gif`` (a palette per frame), ``.png`` with a number pattern such as
    ``out/%05d.png``, or no suffix at all (a folder of ``%05d.png``). PNG files are lossless. An
    existing file is replaced once the new one is complete; an existing folder must be empty.

    Args:
        path: where the video goes; missing parent folders are made.
        fps: frames per second.
        codec: ``"h264"`` or ``"hevc"`` (mp4), ``"vp9"`` (webm); None takes the first of these.
        crf: constant rate factor, smaller is better: 0 to 51 (H.264, HEVC) or 0 to 63 (VP9).
        lossless: store RGB exactly, in a profile that few players show.
        metadata: settings to store in the file, anything that JSON can say.
        options: further options for FFmpeg's encoder, such as ``{"g": "12"}``.

    Raises:
        InvalidArgumentError: an argument does not fit the format.
        UnknownNameError: an unknown suffix or codec.
        VideoError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: int | float | Fraction,
        *,
        codec: str | None = None,
        crf: int | None = None,
        lossless: bool = False,
        metadata: Mapping[str, Any] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.fps = as_rate(fps)
        self.num_frames = 0
        self._size: tuple[int, int] | None = None
        self._sink: Sink | None = None
        self._target = self.path
        record = _record(metadata, self.fps)
        suffix = self.path.suffix.lower()
        if suffix and suffix not in _SUFFIXES:
            raise UnknownNameError("video suffix", suffix, (*_SUFFIXES, "no suffix: PNG folder"))
        if suffix not in ("", ".png") and self.path.is_dir():
            raise InvalidArgumentError(f"{self.path} is a folder; give the name of a {suffix} file.")
        if suffix in ("", ".png"):
            _refuse(suffix or "PNG folder", codec=codec, crf=crf, options=options)
            self._prepare(lambda: self._folder(record))
        elif suffix == ".gif":
            _refuse(suffix, codec=codec, crf=crf, options=options, lossless=lossless or None)
            self._prepare(lambda: GifSink(self._part, self.fps, record))
        else:
            choice = _choose_codec(suffix, codec)
            coding = Coding(choice, crf, lossless, options or {})
            self._prepare(lambda: ContainerSink(self._part, suffix[1:], self.fps, record, coding))

    def _prepare(self, make: Callable[[], Sink]) -> None:
        if self.path.suffix.lower() == ".png":
            self._target = self.path.parent
        self._part = part_beside(self._target)
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._sink = make()
        except (av.error.FFmpegError, OSError) as error:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
            raise self._failure(error) from error

    def _folder(self, record: str) -> Sink:
        pattern = self.path.name if self.path.suffix else "%05d.png"
        _check_pattern(pattern, self.path)
        if self._target.exists() and (not self._target.is_dir() or any(self._target.iterdir())):
            raise InvalidArgumentError(
                f"{self._target} exists and is not an empty folder; a sequence of PNG files gets a "
                "folder of its own. Choose another name or remove it."
            )
        return PngSink(self._part, pattern, record, _SIDECAR)

    def append(self, frame: NDArray[Any]) -> None:
        """Add one frame, ``uint8`` RGB of shape ``(h, w, 3)``; all frames have one size.

        Raises:
            InvalidArgumentError: the frame has another type, shape or size than expected.
            VideoError: encoding failed or the disk is full; nothing is left of the video.
        """
        sink = self._open_sink()
        self._check(frame)
        try:
            sink.append(np.ascontiguousarray(frame))
        except BaseException as error:
            self.abort()
            if isinstance(error, (av.error.FFmpegError, OSError)):
                raise self._failure(error) from error
            raise
        self.num_frames += 1

    def extend(self, frames: Iterable[NDArray[Any]]) -> None:
        """Add frames one after another; an array ``(f, h, w, 3)`` will do."""
        for frame in frames:
            self.append(frame)

    def close(self) -> Path:
        """Finish the video, give it its name, and return that; harmless when closed already.

        Raises:
            VideoError: no frame was appended, or the file could not be completed.
        """
        if self._sink is None:
            return self.path
        if self.num_frames == 0:
            self.abort()
            raise VideoError(f"{self.path}: no frames were appended, so there is no video to keep.")
        try:
            self._sink.close()
            if self._target.is_dir():
                self._target.rmdir()  # checked to be empty
            self._part.replace(self._target)
        except BaseException as error:
            self.abort()
            if isinstance(error, (av.error.FFmpegError, OSError)):
                raise self._failure(error) from error
            raise
        self._sink = None
        return self.path

    def abort(self) -> None:
        """Give up: remove what has been written so far."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.abort()
            remove(self._part)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _open_sink(self) -> Sink:
        if self._sink is None:
            raise VideoError(f"{self.path}: the writer is closed; open a new one to write again.")
        return self._sink

    def _check(self, frame: NDArray[Any]) -> None:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise InvalidArgumentError(
                f"a frame of dtype {frame.dtype} and shape {frame.shape} was given; expected uint8 "
                "RGB of shape (height, width, 3). Video.from_tensor converts from [-1, 1]."
            )
        height, width = frame.shape[:2]
        if self._size is None:
            self._open_sink().start(height, width)
            self._size = (height, width)
        if self._size != (height, width):
            raise InvalidArgumentError(
                f"frame {self.num_frames} is {height} x {width}, but the video began with "
                f"{self._size[0]} x {self._size[1]} (height x width). Resize it first."
            )

    def _failure(self, error: BaseException) -> VideoError:
        reason = getattr(error, "strerror", None) or str(error)
        return VideoError(f"{self.path}: cannot write the video ({reason}); nothing was kept.")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that ``VideoWriter`` stored in a file or PNG folder; empty if there are none.

    Raises:
        VideoError: the file is missing or cannot be opened.
    """
    return dict(read_record(path).get("vidgen", {}))


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All that ``VideoWriter`` noted: ``"vidgen"`` (the settings), ``"fps"`` (an exact ratio).

    A PNG folder's record also has ``"pattern"`` and ``"num_frames"``. Files that vidgen did not
    write give an empty dict.

    Raises:
        VideoError: the file is missing or cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        return _parse(_read_text(path / _SIDECAR))
    if not path.exists():
        raise VideoError(f"{path}: no such file.")
    try:
        with av.open(f"file:{path}", "r", metadata_errors="replace") as container:
            if container.format.name == "gif":
                next(container.decode(video=0), None)  # comments are found on the way
            tags = {key.lower(): value for key, value in container.metadata.items()}
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: not a video or damaged ({error}).") from error
    return _parse(tags.get("comment", ""))


def noted_rate(record: Mapping[str, Any], path: Path) -> Fraction | None:
    """The frames per second that a record of ``read_record`` notes; None if it notes none.

    Raises:
        VideoError: it notes something else than a rate.
    """
    if "fps" not in record:
        return None
    noted = record["fps"]
    if isinstance(noted, str) and _RATE.fullmatch(noted):
        return Fraction(noted)
    raise VideoError(
        f"{path}: notes {str(noted)[:40]!r} for frames per second; expected a ratio such as '30000/1001'. Its "
        "notes are damaged or foreign: read the frames with VideoReader."
    )


def _record(metadata: Mapping[str, Any] | None, fps: Fraction) -> str:
    try:
        return json.dumps({"vidgen": dict(metadata or {}), "fps": str(fps)})
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"metadata cannot be stored as JSON ({error}); use strings, numbers, lists and dicts."
        ) from error


def _parse(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # another program's comment
    if isinstance(record, dict) and isinstance(record.get("vidgen"), dict):
        return record
    return {}


def _read_text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        if path.stat().st_size > _LONGEST_NOTE:
            raise VideoError(
                f"{path} has {path.stat().st_size} bytes, which is more than notes of a video have."
            )
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be read ({error}).") from error


def _choose_codec(suffix: str, codec: str | None) -> str:
    known = [name for name, entry in CODECS.items() if entry.suffix == suffix]
    if codec is None:
        return known[0]
    if codec not in known:
        raise UnknownNameError(f"codec for {suffix} files", codec, known)
    return codec


def _refuse(kind: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidArgumentError(
                f"{name}={value!r} has no meaning for {kind} output; leave it out, or write .mp4 or .webm."
            )


def _check_pattern(pattern: str, path: Path) -> None:
    try:
        names = {pattern % 0, pattern % 1}
    except (TypeError, ValueError):
        names = set()
    if len(names) != 2:
        raise InvalidArgumentError(
            f"{path} names one picture, not a sequence; use a number pattern such as "
            f"{path.with_name('%05d.png')}, or a folder."
        )
