"""A folder of video files as clips: indexed once, read at random places, broken files skipped."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.video.captions import CaptionSpan, load_captions
from vidgen.video.checks import check_name, printable
from vidgen.video.clips import ClipDataset, ClipSample, ClipView, logger
from vidgen.video.draws import Draws, digest
from vidgen.video.index import FrameIndex
from vidgen.video.index_cache import FileStamp, IndexCache, VideoRecord, content_hash
from vidgen.video.listing import SUFFIXES, find_videos, list_videos
from vidgen.video.rates import rate_problems
from vidgen.video.reader import VideoReader
from vidgen.video.transforms import CROPS, crop_box, may_mirror, scaled_size, to_clip

__all__ = ["SUFFIXES", "ClipItem", "VideoFolder", "find_videos"]

LOOK = 2
"""Raised whenever the same view of the same file comes to be read with other pixels."""

_parse = lru_cache(maxsize=64)(FrameIndex.from_json)


@dataclass(frozen=True)
class ClipItem:
    """One index of a ``VideoFolder``: frames ``start`` to ``stop`` (excluded) of a video.

    ``last`` is the last frame at which a clip may begin.
    """

    video: str
    start: int
    stop: int
    last: int
    caption: str
    label: int


@dataclass(frozen=True)
class _Cut:
    """How frames become a clip: scaled to ``scaled``, cut at ``top`` and ``left``, mirrored or not."""

    scaled: tuple[int, int]
    top: int
    left: int
    mirror: bool


class VideoFolder(ClipDataset):
    """Random clips of the videos in a folder of any depth; see ``captions.load_captions``.

    Each index is a video or, with caption ranges, a captioned part of one; a clip lies within it.
    ``broken`` maps each file that cannot be read to the reason, ``short`` lists what is shorter
    than a clip, ``left_out`` counts the files that are no videos by suffix, and ``problems`` says what
    does not fit in captions and frame rates. Each is logged once.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        clip_length: int = 16,
        stride: int = 1,
        size: int | tuple[int, int] = 64,
        crop: str = "center",
        flip: bool = False,
        fps: int | float | None = None,
        captions: str = "auto",
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        workers: int = 2,
        progress: bool = True,
    ) -> None:
        """Index the folder ``root``; only files that the cache does not know are read.

        The arguments are ``DataConfig``'s fields (in ``dataset``): with ``fps``, clips have the
        frames nearest to its ticks; frames are scaled to cover ``size`` (height, width), then
        cropped. ``seed`` and a sample's draw fix all that is random. ``workers`` threads index.

        Raises VideoError for a missing or empty folder, malformed captions, or if nothing in it
        can be used; InvalidArgumentError and UnknownNameError for arguments.
        """
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else size
        check_name("crop", crop, CROPS)
        _check_numbers(clip_length, stride, self.size, fps, workers)
        self.root, self.seed, self.crop, self.flip = Path(root), seed, crop, flip
        self.clip_length, self.stride, self.fps = clip_length, stride, fps
        listing = list_videos(self.root)
        videos, self.left_out = listing.videos, dict(listing.left_out)
        self.captions = load_captions(self.root, videos, captions)
        self.classes, self.problems = self.captions.classes, [*listing.problems, *self.captions.problems]
        cache = IndexCache(None if cache_dir is None else Path(cache_dir))
        self._stamps: dict[str, FileStamp] = {}
        self.records = self._index(videos, cache, workers, progress)
        self.short: list[str] = []
        self._uneven: list[str] = []
        self.items = self._cut()
        self._report()

    def _index(
        self, videos: Sequence[str], cache: IndexCache, workers: int, progress: bool
    ) -> dict[str, VideoRecord]:
        """Learn each video's frames, from the cache or from the file."""

        def look(video: str) -> VideoRecord | Exception:
            try:
                self._stamps[video], record = _record(self.root / video, cache)
                return record
            except Exception as error:  # whatever is odd about a file, the others are not
                return error

        records: dict[str, VideoRecord] = {}
        with ThreadPoolExecutor(workers) as pool:
            found = pool.map(look, videos)
            bar = tqdm(found, "indexing", len(videos), unit="file", disable=not progress)
            for video, result in zip(videos, bar, strict=True):
                if isinstance(result, Exception):
                    self.report_broken(video, _reason(result))
                else:
                    records[video] = result
        return records

    def _cut(self) -> list[ClipItem]:
        """Turn each caption's span into an item, if a clip fits into it."""
        items = []
        for video, record in self.records.items():
            index = FrameIndex.from_json(record.frame_index)
            if index.variable_rate:
                self._uneven.append(video)
            label = self.captions.labels.get(video, -1)
            for span in self.captions.spans[video]:
                start, stop = self._frames_of(span, index, video)
                last = self._last_start(index, start, stop)
                if last >= start:
                    items.append(ClipItem(video, start, stop, last, span.caption, label))
                elif stop > start:
                    self.short.append(f"{video} frames {start} to {stop}")
        return items

    def _frames_of(self, span: CaptionSpan, index: FrameIndex, video: str) -> tuple[int, int]:
        """Return the span as frames of the video, cut at its end (and then noted as a problem)."""
        start, stop, end = span.start, span.stop, len(index)
        outside = math.isfinite(stop) and stop > end
        if span.unit == "seconds":
            # Frames are often a rounded millisecond off: half a frame decides where one belongs.
            outside = stop > float(index.duration) + 0.5 / float(index.fps)
            unit = float(index.time_base)
            start, stop = (
                index.frame_at(index.pts[0] + math.ceil(seconds / unit - 0.5))
                for seconds in (start, min(stop, float(index.duration)))
            )
        if outside:
            self.problems.append(
                f"{span.source}: {span.unit} {span.start:g} to {span.stop:g} reach beyond {video}, "
                f"which has {end} frames ({float(index.duration):.2f} s); the rest is ignored."
            )
        return min(int(start), end), int(min(stop, end))

    def _last_start(self, index: FrameIndex, start: int, stop: int) -> int:
        """Return the last frame where a clip within the span may begin (below ``start``: none)."""
        if stop <= start:
            return start - 1
        if self.fps is None:
            return stop - 1 - (self.clip_length - 1) * self.stride
        # The clip's last moment may lie half a source frame past the start of the last one.
        seconds = (self.clip_length - 1) / self.fps - 0.5 / float(index.fps)
        latest = index.pts[stop - 1] - seconds / float(index.time_base)
        return min(bisect_right(index.pts, latest), stop) - 1

    def _report(self) -> None:
        """Log what was left out, or raise VideoError if that is everything."""
        if self.clip_length > 1:  # a single frame has no speed
            self.problems += rate_problems(self.records, self._uneven, self.fps)
        if self.left_out:
            others = ", ".join(f"{count} x {suffix}" for suffix, count in self.left_out.items())
            logger.info("left out in %s, being no videos: %s", self.root, others)
        for problem in self.problems:
            logger.warning("%s", problem)
        if not self.records:
            name, reason = next(iter(self.broken.items()))
            raise VideoError(
                f"none of the {len(self.broken)} video files in {self.root} can be read; the "
                f"first: {name}: {reason}"
            )
        wanted = f"{self.clip_length} frames at " + (
            f"{self.fps:g} fps" if self.fps else f"stride {self.stride}"
        )
        if not self.items:
            raise VideoError(
                f"no video in {self.root} is long enough for a clip of {wanted} (first: "
                f"{self.short[0] if self.short else 'no captioned span'}); lower clip_length or "
                "stride."
            )
        if self.short:
            logger.warning(
                "skipping %d videos or spans in %s that are shorter than a clip of %s; first: %s",
                len(self.short),
                self.root,
                wanted,
                self.short[0],
            )
        if self.clip_length > 1:
            rate = self._view(0, 0)[0].fps
            logger.info(
                "clips of %s, %.3g s each (%.4g frames per second)", wanted, self.clip_length / rate, rate
            )

    def __len__(self) -> int:
        """Return the number of items: videos, or captioned spans of them."""
        return len(self.items)

    def locate(self, index: int, draw: int) -> ClipView:
        """Say what clip ``(index, draw)`` is, without opening its file.

        Its ``content`` is None if its crop is random: few clips would ever be asked for again. The
        two sides of a clip that may be mirrored are two contents.
        """
        return self._view(index, draw)[0]

    def read(self, index: int, draw: int) -> ClipSample:
        """Return the clip of ``(index, draw)``.

        Its ``content`` is None too if the file has changed since the folder was opened.
        Raises VideoError, and counts the file in ``broken``, if that clip cannot be decoded.
        """
        view, cut = self._view(index, draw)
        video = self.items[index].video
        pixels = self._decode(video, view.frames, cut.scaled)
        height, width = self.size
        pixels = pixels[:, cut.top : cut.top + height, cut.left : cut.left + width]
        if view.content is not None and not self._is_unchanged(video):
            view = replace(view, content=None)
        return view.sample(to_clip(pixels, cut.mirror))

    def _view(self, index: int, draw: int) -> tuple[ClipView, _Cut]:
        """Return what clip ``(index, draw)`` is, and how it is cut out of its frames."""
        item = self.items[index]
        record = self.records[item.video]
        draws = Draws("vidgen.clip", self.seed, index, draw)
        start = item.start + draws.integer(item.last - item.start + 1)
        frames = self._clip_frames(_parse(record.frame_index), start, item.stop)
        scaled = scaled_size((record.height, record.width), self.size, self.crop)
        top, left = crop_box(scaled, self.size, self.crop, draws)
        mirror = self.flip and draws.uniform() < 0.5 and may_mirror(item.caption)
        fixed = self.crop != "random" or scaled == self.size  # a crop with no room to move is not random
        # The version of PyAV stands for FFmpeg's decoders and scaler, which it brings along.
        fields = (LOOK, av.__version__, record.key, *scaled, top, left, *self.size, mirror)
        view = ClipView(
            caption=item.caption,
            label=item.label,
            fps=float(self.fps or record.fps / self.stride),
            index=index,
            draw=draw,
            frames=tuple(frames),
            size=self.size,
            content=digest("vidgen.folder.view", *fields).hex() if fixed else None,
        )
        return view, _Cut(scaled, top, left, mirror)

    def _is_unchanged(self, video: str) -> bool:
        """Say whether ``video`` still holds what it held when the folder was opened."""
        path = self.root / video
        try:
            stamp, known = FileStamp.of(path), self._stamps[video]
            if stamp != known or not known.settled:
                if content_hash(path) != self.records[video].key:
                    return False
                self._stamps[video] = stamp  # only touched
        except OSError:
            return False
        return True

    def _clip_frames(self, index: FrameIndex, start: int, stop: int) -> list[int]:
        """Return the clip's frames: every ``stride``-th, or the nearest to each tick of ``fps``."""
        if self.fps is None:
            return list(range(start, start + self.clip_length * self.stride, self.stride))
        first = index.time(start)
        ticks = (first + step / self.fps for step in range(self.clip_length))
        return [min(index.nearest(tick), stop - 1) for tick in ticks]

    def _decode(
        self, video: str, frames: Sequence[int], scaled: tuple[int, int]
    ) -> UInt8[np.ndarray, "f h w 3"]:
        index = _parse(self.records[video].frame_index)
        try:
            # One decoder thread: parallelism comes from the workers of a DataLoader.
            with VideoReader(self.root / video, index=index, size=scaled, threads=1) as reader:
                return reader.read_frames(frames)
        except Exception as error:  # as when indexing
            reason = _reason(error)
            self.report_broken(video, reason)
            if isinstance(error, VideoError):
                raise
            raise VideoError(f"{printable(video)}: {reason}") from error

    def content_key(self, index: int) -> str:
        """Name the file behind ``index`` by its content."""
        return self.records[self.items[index].video].key

    def texts(self) -> list[str]:
        """Return the caption of every item."""
        return [item.caption for item in self.items]

    def summary(self) -> dict[str, Any]:
        """Return what there is in plain values: counts, seconds, sizes, rates, captions."""
        records = self.records.values()
        texts = self.texts()
        return super().summary() | {
            "videos": len(records),
            "seconds": sum(record.duration for record in records),
            "frames": sum(record.num_frames for record in records),
            "sizes": dict(Counter(f"{r.width}x{r.height}" for r in records).most_common()),
            "fps": dict(Counter(f"{r.fps:.4g}" for r in records).most_common()),
            "short": list(self.short),
            "problems": list(self.problems),
            "left_out": dict(self.left_out),
            "caption_mode": self.captions.mode,
            "uncaptioned": sum(not text for text in texts),
            "captions": list(dict.fromkeys(text for text in texts if text))[:5],
        }


def _record(path: Path, cache: IndexCache) -> tuple[FileStamp, VideoRecord]:
    """Return what is known of ``path``, reading its packets if its content is new."""
    stamp, key = cache.identify(path)
    record = cache.load(key)
    if record is None:
        with VideoReader(path, threads=1) as reader:
            record = VideoRecord.of(key, reader.index, reader.info.height, reader.info.width)
        if stamp == FileStamp.of(path):  # else what was read may be another content
            cache.store(record)
    return stamp, record


def _reason(error: Exception) -> str:
    """Return why a file cannot be read; an error that nobody foresaw says of what kind it is."""
    return str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"


def _check_numbers(
    clip_length: int, stride: int, size: tuple[int, int], fps: int | float | None, workers: int
) -> None:
    """Raise InvalidArgumentError for a number that no clip can have."""
    if min(clip_length, stride, workers, *size) < 1:
        raise InvalidArgumentError(f"{clip_length=}, {stride=}, {size=} and {workers=} must all be 1 or more.")
    if fps is not None and not (0 < fps < math.inf and stride == 1):
        raise InvalidArgumentError(
            f"{fps=} with {stride=}: fps must be a number above 0 and already says how far apart frames "
            "are; leave stride at 1."
        )
