"""Where the frames of a video file are: timestamps and keyframes, found without decoding.

A container lists packets in *decoding* order. Sorting their presentation timestamps (pts) gives
the frames in the order they are shown, whatever the rate, B-frames or edit lists; the keyframes
say where decoding may start. That is all that random access needs, so an index is small plain
data: it pickles, turns into JSON, and can be kept beside the file.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from vidgen.errors import VideoError

__all__ = ["FrameIndex", "Keyframe", "build_index"]

_FORMAT = 1
# Every packet of these claims to be a keyframe, yet its picture is drawn over the one before.
_CUMULATIVE_CODECS = frozenset({"gif", "apng"})

Keyframe = tuple[int, int]
"""(presentation timestamp, decoding timestamp) of a packet where decoding may start."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames of one video stream, in the order they are shown.

    Args:
        time_base: seconds per timestamp unit.
        pts: presentation timestamp of each frame, strictly increasing.
        end: timestamp at which the last frame ceases to be shown.
        keyframes: where decoding may start, in the order shown.
        nominal_rate: frames per second that the container states, if any.
        counted: True if the file has no timestamps to trust (raw streams, H.264 in AVI): frames
            are then told apart by counting from the start, and ``pts`` follows the stated rate.
    """

    time_base: Fraction
    pts: tuple[int, ...]
    end: int
    keyframes: tuple[Keyframe, ...]
    nominal_rate: Fraction | None = None
    counted: bool = False

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def duration(self) -> Fraction:
        """Seconds from the start of the first frame to the end of the last."""
        return (self.end - self.pts[0]) * self.time_base

    @property
    def variable_rate(self) -> bool:
        """True if the frames are not evenly spaced, beyond the rounding of timestamps."""
        if len(self.pts) < 3:
            return False
        first, last, steps = self.pts[0], self.pts[-1], len(self.pts) - 1
        step = (last - first) / steps
        tolerance = max(1.0, 0.02 * step)
        return any(abs(p - first - i * step) > tolerance for i, p in enumerate(self.pts))

    @property
    def fps(self) -> Fraction:
        """True average frames per second; the container's own figure where it says the same."""
        average = len(self.pts) / self.duration
        nominal = self.nominal_rate
        # Milliseconds cannot express 30000/1001: believe the header within that rounding.
        rounding = Fraction(2, self.end - self.pts[0])
        if nominal and abs(nominal - average) <= average * rounding:
            return nominal
        return average.limit_denominator(100_000)

    def time(self, frame: int) -> float:
        """Seconds from the first frame to ``frame``."""
        return float((self.pts[frame] - self.pts[0]) * self.time_base)

    def nearest(self, seconds: int | float) -> int:
        """The frame whose start is nearest to ``seconds`` after the first frame's."""
        target = self.pts[0] + seconds / float(self.time_base)
        after = bisect_left(self.pts, target)
        if after == 0 or after == len(self.pts):
            return min(after, len(self.pts) - 1)
        return after if self.pts[after] - target < target - self.pts[after - 1] else after - 1

    def keyframe_before(self, frame: int) -> int:
        """Position in ``keyframes`` of the last one shown no later than ``frame``."""
        return max(bisect_right(self.keyframes, (self.pts[frame], _LAST)) - 1, 0)

    def frame_at(self, pts: int) -> int:
        """The first frame shown at ``pts`` or later (``len(self)`` if none)."""
        return bisect_left(self.pts, pts)

    def to_json(self) -> str:
        """The index as one line of JSON."""
        rate = None if self.nominal_rate is None else str(self.nominal_rate)
        record = {"format": _FORMAT, "time_base": str(self.time_base), "rate": rate}
        record |= {"pts": self.pts, "end": self.end, "keyframes": self.keyframes}
        record["counted"] = self.counted
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FrameIndex:
        """Read what ``to_json`` wrote.

        Raises:
            VideoError: the text is no frame index of this format version.
        """
        try:
            record: dict[str, Any] = json.loads(text)
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']}")
            for name in ("time_base", "rate"):  # a Fraction of "1e999999999" would never be done
                if not re.fullmatch(r"None|\d{1,18}(/\d{1,18})?", str(record[name])):
                    raise ValueError(f"{name} is {str(record[name])[:40]!r}")
            pts = tuple(int(p) for p in record["pts"])
            keyframes = tuple((int(p), int(d)) for p, d in record["keyframes"])
            rate = None if record["rate"] is None else Fraction(record["rate"])
            end, time_base = int(record["end"]), Fraction(record["time_base"])
            counted = bool(record["counted"])
        except (ValueError, KeyError, TypeError) as error:
            raise VideoError(
                f"not a frame index of format {_FORMAT}: {text[:60]!r} ({error}). "
                "Delete the cached index and build it again from the video."
            ) from error
        if not pts or not keyframes:
            raise VideoError("the frame index is empty; build it again from the video.")
        return cls(time_base, pts, end, keyframes, rate, counted)


_LAST = 1 << 62


@dataclass
class _Scan:
    """What one pass over the packets of a stream found."""

    pts: list[int]
    durations: dict[int, int]
    keyframes: list[Keyframe]
    packets: int = 0
    damaged_tail: bool = False
    unstamped: int = 0


def build_index(container: InputContainer, stream: VideoStream, name: str) -> FrameIndex:
    """Index ``stream`` by reading its packets, without decoding any.

    Args:
        container: the open file, at its start.
        stream: the video stream in it.
        name: what to call the file in errors.

    Raises:
        VideoError: no frames, or the file ends before its header says.
    """
    announced = _announced_packets(container, stream)
    try:
        scan = _scan(container, stream)
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: damaged or truncated: {error.strerror}.") from error
    if scan.packets == 0:
        hint = f" though its header announces {announced}: truncated" if announced else ""
        raise VideoError(f"{name}: the video stream has zero frames{hint}.")
    if scan.packets < announced or scan.damaged_tail:
        raise VideoError(
            f"{name}: truncated: its header announces {max(announced, scan.packets)} frames, "
            f"but the data ends in frame {min(announced or scan.packets, scan.packets)}. "
            "Copy or download the file again."
        )
    if scan.unstamped or _lacks_pts(container, stream):
        return _counted_index(scan.packets, stream)
    pts = sorted(set(scan.pts))
    if not pts:
        raise VideoError(f"{name}: no keyframe, so no frame of it can be decoded.")
    index = _finish(scan, pts, stream)
    _check_length(index, stream, name)
    return index


def _scan(container: InputContainer, stream: VideoStream) -> _Scan:
    scan = _Scan([], {}, [])
    for packet in container.demux(stream):
        if packet.size == 0 and packet.dts is None:  # PyAV's end-of-stream packet
            continue
        scan.packets += 1
        scan.damaged_tail = packet.is_corrupt
        if packet.pts is None:
            scan.unstamped += 1
            continue
        if packet.is_keyframe:
            dts = packet.pts if packet.dts is None else packet.dts
            scan.keyframes.append((packet.pts, dts))
        # Frames before the first keyframe cannot be decoded; discarded ones (edit lists) are
        # decoded for those that follow and never shown.
        if scan.keyframes and packet.pts >= scan.keyframes[0][0] and not packet.is_discard:
            scan.pts.append(packet.pts)
            scan.durations[packet.pts] = packet.duration or 0
    return scan


def _finish(scan: _Scan, pts: Sequence[int], stream: VideoStream) -> FrameIndex:
    time_base = stream.time_base
    if time_base is None:
        raise VideoError("the video stream states no unit of time; remux the file.")
    rate = stream.average_rate or stream.guessed_rate
    last = scan.durations[pts[-1]]
    if last <= 0 and len(pts) > 1:
        last = round((pts[-1] - pts[0]) / (len(pts) - 1))
    if last <= 0:
        last = round(1 / (rate * time_base)) if rate else 0
    keyframes = scan.keyframes
    if stream.codec_context.name in _CUMULATIVE_CODECS:
        keyframes = keyframes[:1]
    ordered = tuple(sorted(set(keyframes)))
    return FrameIndex(time_base, tuple(pts), pts[-1] + max(last, 1), ordered, rate)


def _lacks_pts(container: InputContainer, stream: VideoStream) -> bool:
    """AVI has no presentation times, and FFmpeg's guess is wrong for reordered H.264 and HEVC."""
    codec = stream.codec_context
    return container.format.name == "avi" and codec.has_b_frames and codec.name in ("h264", "hevc")


def _counted_index(num_frames: int, stream: VideoStream) -> FrameIndex:
    time_base = stream.time_base or Fraction(1, 90_000)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    *pts, end = (round(k / (rate * time_base)) for k in range(num_frames + 1))
    return FrameIndex(time_base, tuple(pts), end, ((0, 0),), rate, counted=True)


def _announced_packets(container: InputContainer, stream: VideoStream) -> int:
    """Packets that the header promises; 0 where it cannot be known."""
    names = container.format.name.split(",")
    if "mp4" in names:  # its sample table, edit lists applied, stands in the header
        return len(stream.index_entries)
    if "avi" in names:  # dropped frames are counted but not always stored
        return int(stream.frames * 0.99)
    return 0


def _check_length(index: FrameIndex, stream: VideoStream, name: str) -> None:
    """Refuse a Matroska/WebM file that ends well before the duration tag of its stream."""
    tag = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = tag.split(":")
        announced = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return
    end = float(index.end * index.time_base)
    if end < announced - max(0.1, 2 / float(index.fps)):
        raise VideoError(
            f"{name}: truncated: its header announces {announced:.2f} s of video, the data ends "
            f"at {end:.2f} s. Copy or download the file again."
        )
