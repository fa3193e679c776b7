"""Where the frames of a video file are: timestamps and keyframes.

A container lists packets in *decoding* order. Sorting their presentation timestamps (pts) gives
the frames in the order they are shown, whatever the rate, B-frames or edit lists; the keyframes
say where decoding may start. That is all that random access needs, so an index is small plain
data: it pickles, turns into JSON, and can be kept beside the file. Only where packets bear no times
to go by, as in an AVI, or one twice, are frames decoded once, to be counted.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from vidgen.errors import VideoError
from vidgen.video.decoding import marks_next

__all__ = ["FrameIndex", "Keyframe", "build_index"]

_FORMAT = 3
# Every packet of these claims to be a keyframe, yet its picture is drawn over the one before.
_CUMULATIVE_CODECS = frozenset({"gif", "apng"})
# Their palettes are in the packets; those of other codecs may be the container's.
_OWN_PALETTE = frozenset({"gif", "png", "apng", "bmp", "targa", "tiff", "pcx"})

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
        counted: True if the file has no timestamps to trust (raw streams, AVI, joined streams, times twice):
            frames are then told apart by counting from the start.
        sequential: True if decoding has to start with the file, because something that all frames
            need comes once (a palette), or because frames are counted.
    """

    time_base: Fraction
    pts: tuple[int, ...]
    end: int
    keyframes: tuple[Keyframe, ...]
    nominal_rate: Fraction | None = None
    counted: bool = False
    sequential: bool = False

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
        """True average frames per second; the container's own figure where it says the same.

        A last frame that is held for long (a freeze, the end of a sound track) does not count.
        """
        count, span = len(self.pts), self.end - self.pts[0]
        if count > 1 and (self.end - self.pts[-1]) * (count - 1) > 2 * (self.pts[-1] - self.pts[0]):
            count, span = count - 1, self.pts[-1] - self.pts[0]
        average = count / (span * self.time_base)
        nominal = self.nominal_rate
        # Milliseconds cannot express 30000/1001: believe the header within that rounding.
        rounding = Fraction(2, span)
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
        record |= {"counted": self.counted, "sequential": self.sequential}
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
            counted, sequential = bool(record["counted"]), bool(record["sequential"])
            if not time_base > 0 or any(a >= b for a, b in pairwise((*pts, end))):
                raise ValueError("times that do not increase")
        except (ValueError, KeyError, TypeError, RecursionError, ArithmeticError) as error:
            raise VideoError(
                f"not a frame index of format {_FORMAT}: {text[:60]!r} ({error}). "
                "Delete the cached index and build it again from the video."
            ) from error
        if not pts or not keyframes:
            raise VideoError("the frame index is empty; build it again from the video.")
        return cls(time_base, pts, end, keyframes, rate, counted, sequential)


_LAST = 1 << 62


@dataclass
class _Scan:
    """What one pass over the packets of a stream found."""

    pts: list[int]
    durations: dict[int, int]
    keyframes: list[Keyframe]
    dts: list[int]
    packets: int = 0
    damaged_tail: bool = False
    unstamped: int = 0
    joined: bool = False


Decode = Callable[[], Iterable[int | None]]
"""Decodes a file from its start; gives for each frame shown the number of the packet that held it."""


def build_index(container: InputContainer, stream: VideoStream, name: str, decode: Decode) -> FrameIndex:
    """Index ``stream`` by reading its packets; frames are decoded only if packets bear no times.

    Args:
        container: the open file, at its start.
        stream: the video stream in it.
        name: what to call the file in errors.
        decode: decodes the file from its start, once.

    Raises:
        VideoError: no frames, or the file is shorter than it says.
    """
    announced = _announced_packets(container, stream)
    try:
        scan = _scan(container, stream)
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: damaged or truncated: {error.strerror}.") from error
    if scan.packets == 0:
        hint = f" though its header announces {announced}: truncated" if announced else ""
        raise VideoError(f"{name}: the video stream has zero frames{hint}.")
    missing = missing_bytes(Path(name), container.format.name)
    if scan.packets < announced or scan.damaged_tail or missing:
        lost = f", {missing} bytes short of the end" if missing else ""
        raise VideoError(
            f"{name}: truncated: its header announces {max(announced, scan.packets)} frames or more, "
            f"but the data ends in frame {min(announced or scan.packets, scan.packets)}{lost}. "
            "Copy or download the file again."
        )
    if scan.unstamped or scan.joined or _lacks_pts(container, stream):
        return _counted_index(scan, stream, list(decode()), name)
    pts = sorted(set(scan.pts))
    if not pts:
        raise VideoError(f"{name}: no keyframe, so no frame of it can be decoded.")
    if len(pts) < len(scan.pts) and len(numbers := list(decode())) > len(pts):
        # Two frames of one time, as FFmpeg guesses some of an MPEG program stream; else fields, or hidden ones.
        return _counted_index(scan, stream, numbers, name)
    return _finish(scan, pts, stream)


def _scan(container: InputContainer, stream: VideoStream) -> _Scan:
    scan = _Scan([], {}, [], [])
    late_marks = marks_next(stream)
    for packet in container.demux(stream):
        if packet.size == 0:  # the end of the stream, or a frame that an AVI leaves out
            continue
        scan.packets += 1
        suspect = late_marks and scan.damaged_tail
        scan.damaged_tail = packet.is_corrupt
        if packet.dts is not None:
            scan.joined |= bool(scan.dts) and packet.dts < scan.dts[-1]
            scan.dts.append(packet.dts)
        if packet.pts is None:
            scan.unstamped += 1
            continue
        if packet.is_keyframe and not (suspect and scan.keyframes):  # who starts there would not see the mark
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
    codec = stream.codec_context
    # A palette of the container comes with the first packet alone.
    sequential = codec.pix_fmt == "pal8" and codec.name not in _OWN_PALETTE
    keyframes = scan.keyframes[:1] if sequential or codec.name in _CUMULATIVE_CODECS else scan.keyframes
    ordered = tuple(sorted(set(keyframes)))
    end = pts[-1] + max(last, 1)
    return FrameIndex(time_base, tuple(pts), end, ordered, rate, sequential=sequential)


def _lacks_pts(container: InputContainer, stream: VideoStream) -> bool:
    """AVI has no presentation times, and flags, counts and FFmpeg's guesses of them are often wrong."""
    return container.format.name == "avi" and not stream.codec_context.codec.intra_only


def _counted_index(scan: _Scan, stream: VideoStream, numbers: Sequence[int | None], name: str) -> FrameIndex:
    """Index what is decoded, at the times of its packets or, if they have none, at the stated rate."""
    if not numbers:
        raise VideoError(f"{name}: the video stream has zero frames that can be decoded.")
    time_base = stream.time_base or Fraction(1, 90_000)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    step = max(round(1 / (rate * time_base)), 1)
    known = {number for number in numbers if number is not None and number < len(scan.dts)}
    if len(known) == len(numbers) and len(scan.dts) == scan.packets and not scan.joined:
        pts = sorted({scan.dts[number] for number in known})
        if len(pts) == len(numbers):
            return FrameIndex(time_base, tuple(pts), pts[-1] + step, ((pts[0], pts[0]),), rate, True, True)
    *even, end = (round(k / (rate * time_base)) for k in range(len(numbers) + 1))
    return FrameIndex(time_base, tuple(even), end, ((0, 0),), rate, counted=True, sequential=True)


def _announced_packets(container: InputContainer, stream: VideoStream) -> int:
    """Packets that the header promises; 0 where it cannot be known."""
    if "mp4" in container.format.name.split(","):  # its sample table, edit lists applied
        return len(stream.index_entries)
    return 0


def missing_bytes(path: Path, container_format: str) -> int:
    """How many bytes a file lacks of what its outermost element claims; 0 where none says it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if container_format == "avi":
            end = 0
            while len(head := file.read(8)) == 8 and head[:4] == b"RIFF":  # more than one in large files
                length = int.from_bytes(head[4:], "little")
                end = file.tell() + length if 0 < length < 0xFFFFFFFF else 0
                file.seek(end or size)
            return max(end - size, 0)
        if "matroska" in container_format:
            while (identifier := _ebml_number(file, keep_marker=True)) is not None:
                claimed = _ebml_number(file, keep_marker=False)
                if claimed is None or claimed < 0:
                    return 0  # a live recording
                if identifier == 0x18538067:  # Segment, which holds all the rest
                    return max(file.tell() + claimed - size, 0)
                file.seek(claimed, 1)
    return 0


def _ebml_number(file: BinaryIO, keep_marker: bool) -> int | None:
    """Read a number of variable length (RFC 8794, 4); -1 is "unknown", None the end of the file."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    value = int.from_bytes(first + rest, "big")
    if len(rest) < width - 1:
        return None
    if keep_marker:
        return value
    value ^= 1 << 7 * width
    return -1 if value == (1 << 7 * width) - 1 else value
