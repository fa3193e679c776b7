"""Reading video files: any frame by its number, exact, without decoding what is not needed.

A reader looks frames up in a ``FrameIndex``, seeks to the keyframe before the first one wanted,
decodes forward from there and converts to RGB only the frames it was asked for. Frames that
follow the last ones read up to the next keyframe continue the running decoder instead of seeking.

HDR transfer curves (PQ, HLG) are not tone-mapped, interlaced frames not deinterlaced, and pixels
of unequal sides not stretched.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from vidgen.errors import InvalidArgumentError, UnknownNameError, VideoError
from vidgen.video.checks import check_name
from vidgen.video.color import (
    ColorInfo,
    FrameConverter,
    Orientation,
    Resample,
    color_of,
    orientation_of,
)
from vidgen.video.decoding import Damage, VideoPacket, count_frames, decode, open_video, stamp
from vidgen.video.index import FrameIndex, Keyframe, build_index

__all__ = ["Damaged", "FrameIndex", "ThreadType", "VideoInfo", "VideoReader", "probe"]

logger = logging.getLogger("vidgen.video")

Damaged = Literal["error", "skip"]
ThreadType = Literal["AUTO", "FRAME", "SLICE", "NONE"]


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Args:
        path: the file.
        num_frames: frames that can be shown.
        num_frames_exact: False if ``num_frames`` is the header's word or an estimate.
        fps: true average frames per second.
        width: pixels per row, after rotation.
        height: rows, after rotation.
        duration: seconds, the last frame included.
        bit_depth: bits per sample in the file; frames are read as 8 bit in any case.
        codec: FFmpeg's name of the codec, such as ``"h264"``.
        rotation: degrees clockwise by which decoded frames are turned: 0, 90, 180 or 270.
        variable_rate: True if frames are not evenly spaced (False while unknown).
        color: matrix and range of the samples.
    """

    path: Path
    num_frames: int
    num_frames_exact: bool
    fps: Fraction
    width: int
    height: int
    duration: float
    bit_depth: int
    codec: str
    rotation: int
    variable_rate: bool
    color: ColorInfo


def probe(path: str | os.PathLike[str], *, exact: bool = True) -> VideoInfo:
    """Describe a video file; decodes one frame of it.

    Args:
        path: the file.
        exact: True reads all packets (not pixels) to count frames; False trusts the header.

    Raises:
        VideoError: the file is missing, broken, or holds no video.
    """
    if exact:
        with VideoReader(path) as reader:
            return reader.info
    container, stream = open_video(Path(path))
    with container:
        size = stream.codec_context.width, stream.codec_context.height
        damage = Damage()
        frame = next(decode(container.demux(stream), None, damage), None)
        if frame is None:
            reason = f" that can be decoded ({damage.reason})" if damage.reason else ""
            raise VideoError(f"{path}: the video stream has zero frames{reason}.")
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        duration = _header_duration(container, stream)
        count = stream.frames or max(round(duration * rate), 1)
        duration = duration or float(count / rate)
        return _describe(Path(path), stream, size, frame, count, rate, duration)


class VideoReader:
    """Random access to the frames of one video file; a context manager.

    Frames are ``uint8`` RGB, upright, numbered from 0 in the order they are shown.

    Args:
        path: the file.
        index: the file's index from an earlier reader (``reader.index``); built if None.
        size: (height, width) that frames are resized to; None keeps their own.
        resample: resizing filter (swscale's ``bicubic``, ``bilinear`` or ``area``; each is widened
            when shrinking).
        accurate: exact colour rounding and interpolated chroma, slower; see ``FrameConverter``.
        threads: decoder threads; 1 is best for short clips and data loader workers, 0 (one per
            core) for long runs of large frames.
        thread_type: ``"SLICE"`` starts at once; ``"FRAME"`` is faster over many frames and decodes
            ahead by one frame per thread; ``"AUTO"`` allows both; ``"NONE"`` neither.
        damaged: ``"error"`` refuses frames that are damaged; ``"skip"`` shows the last good frame
            before them instead (or the first good one), says so once, and counts in ``skipped``.

    Raises:
        VideoError: the file is missing, is no video, or is broken.
        InvalidArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        index: FrameIndex | None = None,
        size: tuple[int, int] | None = None,
        resample: Resample = "bicubic",
        accurate: bool = False,
        threads: int = 1,
        thread_type: ThreadType = "AUTO",
        damaged: Damaged = "error",
    ) -> None:
        if threads < 0:
            raise InvalidArgumentError(f"threads={threads} is negative; 0 means one per core.")
        if thread_type not in get_args(ThreadType):
            raise UnknownNameError("thread type", str(thread_type), get_args(ThreadType))
        check_name("way to treat damaged frames", damaged, get_args(Damaged))
        self.damaged = damaged
        self.skipped: set[int] = set()
        """Numbers of the damaged frames that were met so far and skipped."""
        self._unusable: set[int] = set()  # keyframes that are none
        self._lenient: set[int] = set()  # keyframes from where minor errors are no damage
        self.path = Path(path)
        self._converter = FrameConverter(size, resample, accurate)
        self._threads, self._thread_type = threads, thread_type
        self._orientation: Orientation | None = None
        self._info: VideoInfo | None = None
        self._run: _Run | None = None
        self._closed = False
        self._container, self._stream = self._reopen()
        if index is None:
            index = self._build_index()
        self.index = index

    def _reopen(self, strict: bool = True) -> tuple[InputContainer, VideoStream]:
        container, stream = open_video(self.path, strict)
        stream.thread_count, stream.thread_type = self._threads, self._thread_type
        # The header's size, so that a stream that changes size half-way gives frames of one size.
        self._coded = (stream.codec_context.width, stream.codec_context.height)
        return container, stream

    def _build_index(self) -> FrameIndex:
        try:
            return build_index(self._container, self._stream, str(self.path), partial(count_frames, self.path))
        except BaseException:
            self._container.close()
            raise

    @property
    def info(self) -> VideoInfo:
        """What the file holds (decodes its first frame when first asked)."""
        if self._info is None:
            index = self.index
            count, fps, seconds = len(index), index.fps, float(index.duration)
            frame = self._decoded(0)
            info = _describe(self.path, self._stream, self._coded, frame, count, fps, seconds)
            self._info = replace(info, num_frames_exact=True, variable_rate=index.variable_rate)
        return self._info

    def __len__(self) -> int:
        return len(self.index)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        self._closed, self._run = True, None
        self._container.close()

    def read(self, start: int, count: int, stride: int = 1) -> UInt8[np.ndarray, "f h w 3"]:
        """Read ``count`` frames: ``start``, ``start + stride``, ...

        Raises:
            VideoError: frames outside the video were asked for, or the file is damaged there.
            InvalidArgumentError: ``count`` or ``stride`` is less than 1.
        """
        if count < 1 or stride < 1:
            raise InvalidArgumentError(f"count={count} and stride={stride} must be at least 1.")
        return self.read_frames(range(start, start + count * stride, stride))

    def read_frames(self, frames: Sequence[int]) -> UInt8[np.ndarray, "f h w 3"]:
        """Read the frames with these numbers, in any order; ascending is fastest.

        Raises:
            VideoError: frames outside the video were asked for, or the file is damaged there.
            InvalidArgumentError: no frames were asked for.
        """
        if len(frames) == 0:
            raise InvalidArgumentError("no frames were asked for; give at least one number.")
        first, last = min(frames), max(frames)
        if first < 0 or last >= len(self.index):
            raise VideoError(
                f"{self.path}: frames {first} to {last} were asked for, but the video has frames "
                f"0 to {len(self.index) - 1}. Ask for a shorter or earlier range."
            )
        out: UInt8[np.ndarray, "f h w 3"] | None = None
        previous = -1
        for position, number in enumerate(frames):
            if out is not None and number == previous:
                out[position] = out[position - 1]
                continue
            frame = self._decoded(number)
            if out is None:
                out = np.empty((len(frames), *self._shape(frame), 3), np.uint8)
            self._convert(frame, out[position])
            previous = number
        assert out is not None  # frames is not empty
        return out

    def read_times(
        self, t0: int | float, seconds: int | float, fps: int | float
    ) -> UInt8[np.ndarray, "f h w 3"]:
        """Read ``seconds`` of video from ``t0``, resampled to ``fps`` frames per second.

        Each frame is the one whose own time is nearest to ``t0 + k / fps``; at least one is read.

        Args:
            t0: seconds after the first frame, 0 or more.
            seconds: length of the span, more than 0, ending within the video.
            fps: frames per second of the result, more than 0.

        Raises:
            VideoError: the span does not lie within the video.
            InvalidArgumentError: ``seconds`` or ``fps`` is not positive.
        """
        if not (seconds > 0 and fps > 0):
            raise InvalidArgumentError(f"seconds={seconds} and fps={fps} must be more than 0.")
        duration = float(self.index.duration)
        slack = 1e-3  # timestamps and durations are rounded to milliseconds in some containers
        if not (t0 >= 0 and t0 + seconds <= duration + slack):
            raise VideoError(
                f"{self.path}: seconds {t0:g} to {t0 + seconds:g} were asked for, but the video "
                f"has 0 to {duration:.3f}. Ask for a shorter or earlier span."
            )
        count = max(1, round(seconds * fps))
        return self.read_frames([self.index.nearest(t0 + k / fps) for k in range(count)])

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """All frames in order, one at a time, in bounded memory."""
        for number in range(len(self.index)):
            frame = self._decoded(number)
            out = np.empty((*self._shape(frame), 3), np.uint8)
            self._convert(frame, out)
            yield out

    def _shape(self, frame: VideoFrame) -> tuple[int, int]:
        if self._orientation is None:
            self._orientation = orientation_of(frame)
        return self._converter.shape(*self._coded, self._orientation)

    def _convert(self, frame: VideoFrame, out: UInt8[np.ndarray, "h w 3"]) -> None:
        assert self._orientation is not None  # set by _shape
        try:
            self._converter.write(frame, out, self._orientation)
        except av.error.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot convert to RGB: {error.strerror}.") from error

    def _decoded(self, number: int) -> VideoFrame:
        """Frame ``number``, or the good one that stands for it where damage is skipped."""
        try:
            return self._good(number)
        except VideoError as error:
            if self._closed or self.damaged == "error":
                raise
            return self._instead(number, error)

    def _instead(self, number: int, error: VideoError) -> VideoFrame:
        """The last good frame before ``number``, or else the first after it; counts the skip."""
        if not self.skipped:
            logger.warning("%s Damaged frames are skipped: the one before is shown.", error)
        self.skipped.add(number)
        for other in (*range(number - 1, -1, -1), *range(number + 1, len(self.index))):
            if other in self.skipped:
                continue
            try:
                return self._good(other)
            except VideoError:
                self.skipped.add(other)
        raise error

    def _good(self, number: int) -> VideoFrame:
        """Frame ``number``, decoded from its keyframe on, by the running decoder or after a seek.

        Each frame is decoded from the same keyframe however it was come by, so that what is read of a
        damaged file too depends on the file alone.
        """
        if self._closed:
            raise VideoError(f"{self.path}: the reader is closed; open a new one to read again.")
        run = self._run_to(number)
        frame = _advance(run, self.index.pts[number])
        if frame is None and run.strict and run.damage.early:
            # An open group of pictures: frames may name others from before the keyframe, without need.
            self._lenient.add(run.key)
            frame = _advance(self._run_to(number, anew=True), self.index.pts[number])
        run = self._run or run
        if frame is None and run.damage.reason and self._threads != 1:
            self._threads = 1  # with more, the decoder tells of damage a few frames late
            frame = _advance(self._run_to(number, anew=True), self.index.pts[number])
        if frame is not None:
            return frame
        reason = f" ({run.damage.reason})" if run.damage.reason else ", or the index is another file's"
        raise VideoError(
            f"{self.path}: frame {number} (at {self.index.time(number):.3f} s) cannot be decoded: the file is "
            f"damaged there{reason}."
        )

    def _run_to(self, number: int, anew: bool = False) -> _Run:
        """The decoder that runs, if frame ``number`` is ahead of it from the same keyframe, or a new one."""
        key = self.index.keyframe_before(number)
        while True:
            while key in self._unusable:
                key -= 1
            run, wanted = self._run, self.index.pts[number]
            if run is not None and not anew and run.key == key and wanted >= run.reached:
                return run
            found = self._seek_run(key) if key > 0 else self._first_run()
            if found is not None:
                self._run = found
                return found
            self._unusable.add(key)

    def _first_run(self) -> _Run:
        """Decode from the start of the file, which gives more than keyframe 0 does: palettes, say."""
        self._run = None
        self._container.close()
        self._container, self._stream = self._reopen(strict=0 not in self._lenient)
        packets, damage = self._container.demux(self._stream), Damage()
        if self.index.counted:
            return _Run(0, stamp(decode(packets, None, damage), self.index.pts), damage, True)
        first = self.index.keyframes[0][0]
        return _Run(0, decode(packets, first, damage), damage, 0 not in self._lenient)

    def _seek_run(self, key: int) -> _Run | None:
        """Decode from keyframe ``key``; None if it is no place to start, and then all is as before."""
        container, stream = self._container, self._stream
        strict = key not in self._lenient
        if self._run is not None or not strict:  # what runs may be needed still
            container, stream = self._reopen(strict)
        first, damage = self.index.keyframes[key][0], Damage()
        packets = _packets_from(container, stream, self.index.keyframes[key])
        frames = iter(()) if packets is None else decode(packets, first, damage)
        frame = next(frames, None)
        # Flags of keyframes may lie: only a picture at the right time that the decoder calls one counts.
        if frame is None or frame.pts != first or not frame.key_frame:
            if container is not self._container:
                container.close()
            return None
        if container is not self._container:
            self._container.close()
            self._container, self._stream = container, stream
        return _Run(key, chain([frame], frames), damage, strict)


@dataclass
class _Run:
    """A decoder at work: since keyframe ``key``, and past all frames before ``reached``."""

    key: int
    frames: Iterator[VideoFrame]
    damage: Damage
    strict: bool
    reached: int = -(1 << 63)


def _advance(run: _Run, wanted: int) -> VideoFrame | None:
    """Decode on to the frame at ``wanted``; None if the decoder gives none there that is good."""
    run.reached = wanted + 1
    for frame in run.frames:
        if frame.pts is None or frame.pts < wanted:
            continue
        if frame.pts > wanted:
            run.frames = chain([frame], run.frames)  # good for later
            break
        return frame
    return None


def _packets_from(
    container: InputContainer, stream: VideoStream, target: Keyframe
) -> Iterator[VideoPacket] | None:
    """Packets from keyframe ``target`` on; None if seeking does not lead there."""
    for timestamp in target:
        try:
            container.seek(timestamp, stream=stream, backward=True)
            packets = container.demux(stream)
            for packet in packets:
                if packet.pts == target[0] and packet.is_keyframe:
                    return chain([packet], packets)
                if packet.is_keyframe and packet.pts is not None and packet.pts > target[0]:
                    break
        except av.error.FFmpegError:
            continue
    return None


def _header_duration(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _describe(
    path: Path,
    stream: VideoStream,
    size: tuple[int, int],
    frame: VideoFrame,
    count: int,
    fps: Fraction,
    duration: float,
) -> VideoInfo:
    """What the header and one decoded frame tell; ``size`` is (width, height) before rotation."""
    orientation = orientation_of(frame)
    width, height = size[::-1] if orientation.transpose else size
    return VideoInfo(
        path=path,
        num_frames=count,
        num_frames_exact=False,
        fps=fps,
        width=width,
        height=height,
        duration=duration,
        bit_depth=frame.format.components[0].bits,
        codec=stream.codec_context.name,
        rotation=orientation.clockwise,
        variable_rate=False,
        color=color_of(frame),
    )
