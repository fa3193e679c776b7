"""Opening video files, and decoding them so that damage never passes for a picture.

A frame counts as good if nothing was marked as damaged from where the decoder started up to that
frame, in the order of decoding: what follows damage may be built on it, marked or not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import av
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidgen.errors import VideoError
from vidgen.video.checksums import slices_agree

__all__ = ["Damage", "VideoPacket", "count_frames", "decode", "marks_next", "open_video", "stamp"]

_MOST_WAITING = 16  # codecs reorder no further; timestamps that restart would keep frames for good

if TYPE_CHECKING:
    VideoPacket: TypeAlias = Packet[VideoStream]
else:
    VideoPacket = Packet  # generic to type checkers only, before PyAV 18.1


class Damage:
    """Whether, and where, one run of a decoder met damage.

    With ``forgiven``, frames that come after it are given all the same: to be counted, not shown.
    """

    def __init__(self, forgiven: bool = False) -> None:
        self.forgiven = forgiven
        self.first: int | None = None
        """The first damaged packet, counted from the start of the run; None if there is none."""
        self.reason = ""
        self.early = False
        """True if frames shown before the start of the run follow it in the file; see ``decode``."""

    def at(self, packet: int, reason: str) -> None:
        """Note damage at ``packet``."""
        if self.first is None or packet < self.first:
            self.first, self.reason = packet, reason


def decode(packets: Iterator[VideoPacket], start: int | None, damage: Damage) -> Iterator[VideoFrame]:
    """Decode ``packets``, and give the frames that are good; what is not is noted in ``damage``.

    Frames shown before ``start`` follow the keyframe there in the file, but are built on what came
    before it: they are left out, and that they cannot be decoded is no damage.
    """
    _no_messages()
    waiting = _Waiting(damage)
    for order, (packet, missing) in enumerate(_readable(packets, damage)):
        early = start is not None and packet.pts is not None and packet.pts < start
        damage.early |= early
        waiting.note(order, packet.pts)
        if not early and (missing or not _agrees(packet)):
            damage.at(order, "data is missing" if missing else "a check sum does not fit")
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if not early:
                damage.at(order, error.strerror or str(error))
            continue
        for frame in frames:
            if start is None or frame.pts is None or frame.pts >= start:
                yield from waiting.until(frame, order)
    yield from waiting.rest()


def _agrees(packet: VideoPacket) -> bool:
    """Whether a packet has its check sums, where its decoder only logs that they do not fit."""
    return packet.stream.codec_context.name != "ffv1" or slices_agree(bytes(packet))


@dataclass
class _Waiting:
    """Frames that wait for those they may be built on: some are shown later, and marked only then.

    Args:
        damage: where marks are noted.
    """

    damage: Damage
    _orders: dict[int | None, tuple[int, int | None]] = field(default_factory=dict)
    _latest: int | None = None
    _frames: deque[tuple[VideoFrame, int, int | None]] = field(default_factory=deque)

    def note(self, order: int, pts: int | None) -> None:
        """Keep a packet's place, and until when frames of packets before it are shown."""
        self._orders[pts] = order, self._latest
        if pts is not None and (self._latest is None or pts > self._latest):
            self._latest = pts

    def until(self, frame: VideoFrame, order: int) -> Iterator[VideoFrame]:
        """Take a decoded frame, and give those, it included, that need wait no longer."""
        own, latest = self._orders.pop(frame.pts, (order, None))
        if frame.is_corrupt:
            self.damage.at(own, "the decoder marks a frame as damaged")
        self._frames.append((frame, own, latest))
        while self._frames:
            latest = self._frames[0][2]
            known = latest is None or frame.pts is None or latest <= frame.pts
            if not known and len(self._frames) <= _MOST_WAITING:
                return
            yield from self._next()

    def rest(self) -> Iterator[VideoFrame]:
        """Give all that still wait: nothing comes after them."""
        while self._frames:
            yield from self._next()

    def _next(self) -> Iterator[VideoFrame]:
        frame, own, _ = self._frames.popleft()
        if self.damage.forgiven or self.damage.first is None or own < self.damage.first:
            yield frame


def stamp(frames: Iterator[VideoFrame], pts: Sequence[int]) -> Iterator[VideoFrame]:
    """Give frames that are decoded from the start the timestamps of the index, one by one.

    Frames that were decoded but are not good would be missed in counting, so they end it.
    """
    for frame, time in zip(frames, pts, strict=False):
        frame.pts = time
        yield frame


def count_frames(path: Path) -> Iterator[int | None]:
    """Decode all of ``path``, and give the number of the packet of each frame, in the order shown."""

    def numbered(packets: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
        number = 0
        for packet in packets:
            if packet.size:  # decoders hand the timestamp on to the frame
                packet.pts, number = number, number + 1
            yield packet

    container, stream = open_video(path)
    with container:
        for frame in decode(numbered(container.demux(stream)), None, Damage(forgiven=True)):
            yield frame.pts


def marks_next(stream: VideoStream) -> bool:
    """Whether a mark of missing data may be meant for the packet after the one that has it.

    FFmpeg cuts transport streams into packets itself, and hands a mark to the packet that it ends just then.
    """
    return stream.container.format.name == "mpegts"


def _readable(packets: Iterator[VideoPacket], damage: Damage) -> Iterator[tuple[VideoPacket, bool]]:
    """Give the packets that hold something, and the one that ends the stream; and whether data are missing."""
    source = _filled(packets, damage)
    ahead: deque[VideoPacket] = deque()
    marked = False
    while True:
        ahead.extend(islice(source, 0 if ahead else 1))
        if not ahead:
            return
        packet, missing, marked = ahead.popleft(), marked, False
        if packet.is_corrupt:
            ahead.extend(islice(source, max(2 - len(ahead), 0)))
            times = [p.dts for p in (packet, *ahead) if p.dts is not None]
            # Where streams were joined, nothing is missing: the counters of their parts differ.
            damaged = all(a <= b for a, b in pairwise(times))
            missing |= damaged
            marked = damaged and marks_next(packet.stream)
        yield packet, missing


def _filled(packets: Iterator[VideoPacket], damage: Damage) -> Iterator[VideoPacket]:
    order = 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            damage.at(order, error.strerror or str(error))
            return
        if packet.size or packet.dts is None:  # an empty one stands for a dropped frame in an AVI
            order += 1
            yield packet


def open_video(path: Path, strict: bool = True) -> tuple[InputContainer, VideoStream]:
    """Open ``path`` and choose its video stream; if ``strict``, its decoder refuses what it would conceal.

    Raises:
        VideoError: the file is missing, is no video, or is broken.
    """
    if path.is_dir():
        raise VideoError(
            f"{path} is a folder, not a video file. A folder of PNG frames that vidgen wrote is "
            "read by Video.load."
        )
    if not path.exists():
        raise VideoError(f"{path}: no such file.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes).")
    try:
        # "file:" so that a colon in a name is none of a protocol.
        _no_messages()
        container = av.open(f"file:{os.fspath(path)}", "r", metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: not a video, or truncated beyond repair ({reason}). Expected a file that "
            "FFmpeg can open, such as mp4, webm, mkv, avi or gif."
        ) from error
    try:
        stream = _video_stream(container, path)
        if strict:
            stream.codec_context.options = {"err_detect": "explode+crccheck"}
        return container, stream
    except BaseException:
        container.close()
        raise


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    names = container.format.name
    if names in ("image2", "tty") or names.endswith("_pipe"):
        raise VideoError(f"{path}: a text or a still picture ({names}), not a video.")
    pictures = Disposition.attached_pic  # cover art of music files
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = " and ".join(sorted({str(s.type) for s in container.streams}))
        found = f"only {kinds}" if kinds else "it has zero frames of anything"
        raise VideoError(f"{path}: no video in it, {found}. Expected a file with a video stream.")
    films = [s for s in streams if s.frames != 1] or streams  # rather than a still, however large
    best = container.streams.best("video")  # as players choose
    stream = next((s for s in films if best is not None and s.index == best.index), films[0])
    codec = stream.codec_context
    if codec is None:
        raise VideoError(f"{path}: FFmpeg has no decoder for its video; convert the file to H.264.")
    if not codec.width or codec.pix_fmt is None:
        raise VideoError(
            f"{path}: the video stream has zero frames or is damaged: its picture size and format "
            "cannot be found."
        )
    return stream


def _no_messages() -> None:
    """Let FFmpeg report nothing to Python, as it is unless somebody asked for it (older torchvisions do).

    A decoding thread would need the interpreter for its message, while the interpreter waits for the thread.
    """
    if av.logging.get_level() is not None:
        av.logging.set_level(None)
