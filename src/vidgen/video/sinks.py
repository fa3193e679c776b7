"""Where a writer's frames go: an encoder in a container, an animated GIF, or PNG files."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.filter
import numpy as np
from av.container import OutputContainer
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from vidgen.errors import InvalidArgumentError

__all__ = ["CODECS", "CodecEntry", "Coding", "ContainerSink", "GifSink", "PngSink", "Sink"]

# Rec. ITU-T H.273: code 1 is BT.709 in matrix, primaries and transfer alike; 13 is sRGB's curve.
_BT709, _SRGB = 1, 13
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
# Viewers slow a GIF down to 10 fps when a frame is shown for less than two hundredths of a second.
_GIF_MAX_FPS = 50
# The palette is made anew for each frame, so memory stays bounded; ordered dithering keeps still
# what does not move.
_PALETTE = "stats_mode=single:reserve_transparent=0"
_USE = "new=1:dither=bayer:bayer_scale=4"


class Sink(ABC):
    """One output being written."""

    @abstractmethod
    def start(self, height: int, width: int) -> None:
        """Take the size of all frames; called once, before the first."""

    @abstractmethod
    def append(self, frame: NDArray[np.uint8]) -> None:
        """Write one frame, ``(h, w, 3)``, contiguous."""

    @abstractmethod
    def close(self) -> None:
        """Write what is pending and close."""

    @abstractmethod
    def abort(self) -> None:
        """Close without completing; the caller removes what was written."""


@dataclass(frozen=True)
class CodecEntry:
    """How a codec is asked for: FFmpeg's encoder and options, lossy and lossless."""

    suffix: str
    encoder: str
    crf: int
    max_crf: int
    options: Mapping[str, str]
    lossless_encoder: str
    lossless_format: str
    lossless_options: Mapping[str, str]


# The same frames must give the same video on any machine, run after run. So each encoder works in one
# thread, which its results depend on otherwise; x264 without its macroblock tree, which reads what it
# never wrote in frames of a few macroblocks; and x265 on frames of several coding tree units only: with
# one in a row its results vary, or it writes past its buffers.
_X265 = "log-level=error:pools=none:frame-threads=1:ctu=32"
_HEVC_SIDE = 64

CODECS = {
    "h264": CodecEntry(
        ".mp4",
        "libx264",
        18,
        51,
        {"mbtree": "0", "threads": "1"},
        "libx264rgb",
        "rgb24",
        {"qp": "0", "preset": "medium", "threads": "1"},
    ),
    "hevc": CodecEntry(
        ".mp4",
        "libx265",
        20,
        51,
        {"x265-params": _X265},
        "libx265",
        "gbrp",
        {"x265-params": f"{_X265}:lossless=1"},
    ),
    "vp9": CodecEntry(
        ".webm",
        "libvpx-vp9",
        24,
        63,
        {"b": "0", "cpu-used": "3", "threads": "1"},
        "libvpx-vp9",
        "gbrp",
        {"lossless": "1", "cpu-used": "3", "threads": "1"},
    ),
}


@dataclass(frozen=True)
class Coding:
    """What the user asked of an encoder; see ``VideoWriter``."""

    codec: str
    crf: int | None
    lossless: bool
    options: Mapping[str, str]


class ContainerSink(Sink):
    """An mp4 or webm file with one encoded stream."""

    def __init__(
        self,
        path: Path,
        container_format: str,
        fps: Fraction,
        comment: str,
        coding: Coding,
    ) -> None:
        codec, crf, lossless = coding.codec, coding.crf, coding.lossless
        entry = CODECS[codec]
        if lossless and crf is not None:
            raise InvalidArgumentError(f"crf={crf} and lossless=True exclude each other; give one.")
        if crf is not None and not 0 <= crf <= entry.max_crf:
            raise InvalidArgumentError(f"crf={crf} is outside 0 to {entry.max_crf} for {codec}.")
        self._codec, self._lossless = codec, lossless
        self._format = entry.lossless_format if lossless else "yuv420p"
        encoder = entry.lossless_encoder if lossless else entry.encoder
        chosen = dict(entry.lossless_options if lossless else entry.options)
        if not lossless:
            chosen["crf"] = str(entry.crf if crf is None else crf)
        flags = {"fflags": "+bitexact"}  # no random numbers, dates or versions
        if container_format == "mp4":
            flags["movflags"] = "faststart"
        self._reformatter = VideoReformatter()
        self._count = 0
        self._container = av.open(f"file:{path}", "w", format=container_format, options=flags)
        self._container.metadata["comment"] = comment
        self._stream = self._add_stream(encoder, fps, _merged(chosen, coding.options))

    def _add_stream(self, encoder: str, fps: Fraction, options: dict[str, str]) -> VideoStream:
        stream = cast(VideoStream, self._container.add_stream(encoder, rate=fps, options=options))
        stream.pix_fmt = self._format
        if self._codec == "hevc":
            stream.codec_context.codec_tag = "hvc1"  # the only tag that Apple's players take
        context = stream.codec_context
        context.color_primaries = _BT709
        if self._lossless:
            context.colorspace, context.color_range = 0, ColorRange.JPEG
            context.color_trc = _SRGB
        else:
            context.colorspace, context.color_range = _BT709, ColorRange.MPEG
            context.color_trc = _BT709
        return stream

    def start(self, height: int, width: int) -> None:
        """Take the frames' size; odd sizes need ``lossless``, and HEVC a few pixels."""
        if self._codec == "hevc" and min(height, width) < _HEVC_SIDE:
            raise InvalidArgumentError(
                f"frames of {height} x {width} (height x width): HEVC needs {_HEVC_SIDE} x {_HEVC_SIDE} or "
                "more, because its encoder gives other pixels each time, or fails, on smaller ones. Leave "
                "codec out (H.264) or write .webm."
            )
        if not self._lossless and (height % 2 or width % 2):
            raise InvalidArgumentError(
                f"frames of {height} x {width} (height x width): lossy {self._codec} stores colour "
                "at half resolution and needs even sizes. Crop or pad by one pixel, set "
                "lossless=True, or write .gif or PNG files."
            )
        self._stream.width, self._stream.height = width, height

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Convert, encode and mux one frame."""
        picture = VideoFrame.from_ndarray(frame, format="rgb24")
        if not self._lossless:
            picture = self._reformatter.reformat(
                picture,
                format=self._format,
                src_color_range=ColorRange.JPEG,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_EXACT,
                threads=1,
            )
        elif self._format != "rgb24":
            picture = picture.reformat(format=self._format)
        picture.pts, picture.time_base = self._count, 1 / self._stream.codec_context.framerate
        self._count += 1
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Flush the encoder and write the trailer."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Close the file as it is."""
        _close_quietly(self._container)


class GifSink(Sink):
    """An animated GIF with one palette per frame."""

    def __init__(self, path: Path, fps: Fraction, comment: str) -> None:
        if fps > _GIF_MAX_FPS:
            raise InvalidArgumentError(
                f"fps={float(fps):g} is more than a GIF can show ({_GIF_MAX_FPS}); keep fewer "
                "frames or write .mp4 or .webm."
            )
        self._path, self._fps, self._comment = path, fps, comment
        self._graph = av.filter.Graph()
        self._count = 0
        self._container = av.open(f"file:{path}", "w", format="gif")
        self._stream = self._container.add_stream("gif", rate=fps)
        self._stream.pix_fmt = "pal8"

    def start(self, height: int, width: int) -> None:
        """Set up the palette filters for the frames' size."""
        self._stream.width, self._stream.height = width, height
        graph = self._graph
        source = graph.add_buffer(
            width=width, height=height, format=VideoFormat("rgb24"), time_base=1 / self._fps
        )
        split, generate = graph.add("split"), graph.add("palettegen", _PALETTE)
        use, sink = graph.add("paletteuse", _USE), graph.add("buffersink")
        source.link_to(split)
        split.link_to(generate, 0, 0)
        split.link_to(use, 1, 0)
        generate.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Give one frame a palette, encode and mux it."""
        picture = VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base = self._count, 1 / self._fps
        self._count += 1
        self._graph.push(picture)
        self._drain()

    def _drain(self) -> None:
        while True:
            try:
                picture = cast(VideoFrame, self._graph.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Flush filters and encoder, then put the comment in."""
        self._graph.push(None)
        self._drain()
        self._container.mux(self._stream.encode(None))
        self._container.close()
        _insert_comment(self._path, self._comment.encode())

    def abort(self) -> None:
        """Close the file as it is."""
        _close_quietly(self._container)


class PngSink(Sink):
    """A folder of numbered PNG files and a JSON file about them."""

    def __init__(self, folder: Path, pattern: str, record: str, sidecar: str) -> None:
        self._folder, self._pattern, self._sidecar = folder, pattern, sidecar
        self._record = json.loads(record) | {"pattern": pattern}
        self._count = 0
        folder.mkdir()

    def start(self, height: int, width: int) -> None:
        """PNG files take any size."""

    def append(self, frame: NDArray[np.uint8]) -> None:
        """Write one PNG file."""
        Image.fromarray(frame).save(self._folder / (self._pattern % self._count), compress_level=4)
        self._count += 1

    def close(self) -> None:
        """Write the JSON file."""
        record = self._record | {"num_frames": self._count}
        (self._folder / self._sidecar).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def abort(self) -> None:
        """Nothing is open."""


def _merged(chosen: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Options with those ``given`` over those ``chosen``; lists of an encoder's own are joined."""
    params = [options["x265-params"] for options in (chosen, given) if "x265-params" in options]
    return {**chosen, **given} | ({"x265-params": ":".join(params)} if params else {})


def _close_quietly(container: OutputContainer) -> None:
    """Close a file that is being given up; that its trailer cannot be written matters no more."""
    try:
        container.close()
    except (av.error.FFmpegError, OSError):
        return


def _insert_comment(path: Path, text: bytes) -> None:
    """Put a comment extension after a GIF's header, where every reader looks (GIF89a, 24)."""
    blocks = [bytes([len(text[i : i + 255])]) + text[i : i + 255] for i in range(0, len(text), 255)]
    plain = path.rename(path.with_name(path.name + ".plain"))
    try:
        with plain.open("rb") as source, path.open("wb") as out:
            header = source.read(13)  # signature and screen descriptor
            out.write(header)
            if header[10] & 0x80:
                out.write(source.read(3 << ((header[10] & 7) + 1)))  # global colour table
            out.write(b"\x21\xfe" + b"".join(blocks) + b"\x00")
            shutil.copyfileobj(source, out)
    finally:
        plain.unlink()
