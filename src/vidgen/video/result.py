"""A video in memory: what generation returns and what a notebook shows."""

from __future__ import annotations

import base64
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.video.color import to_rgb
from vidgen.video.reader import Damaged, VideoReader
from vidgen.video.writer import VideoWriter, noted_rate, read_record

__all__ = ["Video"]

_NOTEBOOK_WIDTH = 320
_LARGEST = 16 << 30
"""Bytes of pixels that are loaded at once."""
# A name in the folder itself, with one number.
_PATTERN = re.compile(r"([^/\\%\x00]|%%)*%0?[0-9]{0,2}[di]([^/\\%\x00]|%%)*\.png", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Video:
    """Frames with their rate and the settings that made them.

    Args:
        frames: ``uint8`` RGB of shape ``(f, h, w, 3)``, at least one frame.
        fps: frames per second.
        metadata: settings, as JSON can say them; stored in files and read back.

    Raises:
        InvalidArgumentError: frames of another type or shape, or a rate that is not positive.
    """

    frames: NDArray[Any]
    fps: int | float
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = self.frames
        good = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
        if not good or 0 in frames.shape:
            raise InvalidArgumentError(
                f"frames of dtype {frames.dtype} and shape {frames.shape} were given; expected "
                "uint8 RGB of shape (frames, height, width, 3). Video.from_tensor converts a "
                "tensor in [-1, 1]."
            )
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InvalidArgumentError(f"fps={self.fps!r} must be a positive, finite number.")

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return int(self.frames.shape[0])

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Pixels per row."""
        return int(self.frames.shape[2])

    @property
    def duration(self) -> float:
        """Seconds, the last frame included."""
        return self.num_frames / self.fps

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, frames: slice) -> Video:
        """The frames of a slice; a step changes the rate, so that motion keeps its pace.

        Raises:
            InvalidArgumentError: not a slice, or one that selects nothing.
        """
        if not isinstance(frames, slice):
            raise InvalidArgumentError(
                f"{frames!r} is not a slice of frames; write video[3:4], or video.frames[3] for "
                "the pixels of one frame."
            )
        chosen = self.frames[frames]
        if not len(chosen):
            raise InvalidArgumentError(
                f"{frames} selects none of the {self.num_frames} frames; give a wider slice."
            )
        return Video(chosen, self.fps / abs(frames.step or 1), dict(self.metadata))

    def __repr__(self) -> str:
        size = f"{self.num_frames} frames, {self.width} x {self.height}"
        return f"Video({size}, {self.fps:g} fps, {self.duration:.2f} s)"

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, damaged: Damaged = "error") -> Video:
        """Read a whole video file, or a folder of PNG files that ``save`` wrote.

        Frames of a file with a variable rate are all kept and take its average rate.

        Args:
            path: the file or folder.
            damaged: ``"error"`` or ``"skip"``: what to do about damaged frames; see ``VideoReader``.

        Raises:
            VideoError: the file is missing, is no video, is broken, or is too large for memory.
        """
        path = Path(path)
        record: dict[str, Any] = read_record(path) if path.exists() else {}
        if path.is_dir():
            frames, rate = _read_folder(path, record), noted_rate(record, path)
            if rate is None:
                raise VideoError(f'{path}: its metadata.json lacks the rate, "fps"; write it again.')
            return cls(frames, float(rate), record["vidgen"])
        with VideoReader(path, threads=0, damaged=damaged) as reader:
            _check_memory(path, len(reader), reader.info.height, reader.info.width)
            frames, fps = reader.read(0, len(reader)), reader.index.fps
        noted = noted_rate(record, path)
        # A GIF rounds each frame to hundredths of a second; the note has the rate that was meant.
        if noted is not None and abs(noted - fps) < fps / 20:
            fps = noted
        return cls(frames, float(fps), record.get("vidgen", {}))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        codec: str | None = None,
        crf: int | None = None,
        lossless: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> Path:
        """Write the video with its metadata; the suffix chooses the format (see ``VideoWriter``).

        Raises:
            InvalidArgumentError: an option does not fit the format.
            UnknownNameError: an unknown suffix or codec.
            VideoError: the file cannot be written.
        """
        with VideoWriter(
            path,
            self.fps,
            codec=codec,
            crf=crf,
            lossless=lossless,
            metadata=self.metadata,
            options=options,
        ) as writer:
            writer.extend(self.frames)
        return writer.path

    @classmethod
    def grid(
        cls, videos: Sequence[Video], columns: int | None = None, *, gap: int = 2, fill: int = 255
    ) -> Video:
        """Tile several videos into one, row by row; shorter ones hold their last frame.

        Args:
            videos: of one size and rate.
            columns: videos per row; None makes the grid about square.
            gap: pixels between videos.
            fill: grey value, 0 to 255, of gaps and empty places.

        Raises:
            InvalidArgumentError: no videos, sizes or rates that differ, or an argument out of range.
        """
        columns = _columns(len(videos), columns)
        first = videos[0]
        for video in videos[1:]:
            if video.frames.shape[1:] != first.frames.shape[1:] or video.fps != first.fps:
                raise InvalidArgumentError(
                    f"a grid needs videos of one size and rate, but got {first!r} and {video!r}. "
                    "Resize or resample them first."
                )
        if gap < 0 or not 0 <= fill <= 255:
            raise InvalidArgumentError(f"gap={gap} must be 0 or more, fill={fill} 0 to 255.")
        length = max(len(video) for video in videos)
        tiles = [v.frames[np.minimum(np.arange(length), len(v) - 1)] for v in videos]
        return cls(_tile(tiles, columns, gap, fill), first.fps)

    def contact_sheet(self, columns: int = 4, count: int = 16) -> Image.Image:
        """One picture of ``count`` evenly spaced frames (first and last among them), numbered.

        Raises:
            InvalidArgumentError: ``columns`` or ``count`` is less than 1.
        """
        if count < 1:
            raise InvalidArgumentError(f"count={count} must be at least 1.")
        chosen = np.unique(np.linspace(0, self.num_frames - 1, count).round().astype(int))
        columns = min(_columns(len(chosen), columns), len(chosen))
        tiles = _numbered(self.frames[chosen], [str(k) for k in chosen])
        return Image.fromarray(_tile(tiles, columns, 2, 255)[0])

    def to_tensor(self) -> Any:
        """The frames as a ``torch.Tensor``, ``float32`` in [-1, 1], shape ``(c, f, h, w)``."""
        import torch  # here, because showing and saving videos should not load it

        frames = torch.from_numpy(np.ascontiguousarray(self.frames))
        return frames.permute(3, 0, 1, 2).to(torch.float32) / 127.5 - 1

    @classmethod
    def from_tensor(cls, clip: Any, fps: int | float, metadata: dict[str, Any] | None = None) -> Video:
        """A video from a ``torch.Tensor`` in [-1, 1] of shape ``(3, f, h, w)``.

        Values outside are clipped. Inverts ``to_tensor`` exactly.

        Raises:
            InvalidArgumentError: another shape, an integer type, or values that are not finite.
        """
        import torch

        if not isinstance(clip, torch.Tensor) or not clip.is_floating_point():
            kind = getattr(clip, "dtype", type(clip).__name__)
            raise InvalidArgumentError(f"{kind} was given; expected a floating-point torch.Tensor in [-1, 1].")
        if clip.ndim != 4 or clip.shape[0] != 3:
            raise InvalidArgumentError(
                f"a tensor of shape {tuple(clip.shape)} was given; expected (3, frames, height, "
                "width); take one clip of a batch."
            )
        clip = clip.detach().float()
        if not clip.isfinite().all():
            raise InvalidArgumentError("the clip holds NaN or infinite values; nothing to show.")
        frames = ((clip.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0)
        return cls(frames.contiguous().cpu().numpy(), fps, dict(metadata or {}))

    def _repr_html_(self) -> str:
        """A player for notebooks, with the video inside the page."""
        even = [(0, 0), (0, self.height % 2), (0, self.width % 2), (0, 0)]  # as H.264 needs
        shown = Video(np.pad(self.frames, even, mode="edge"), self.fps)
        with tempfile.TemporaryDirectory() as folder:
            data = shown.save(Path(folder) / "video.mp4").read_bytes()
        source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        width = max(self.width, min(_NOTEBOOK_WIDTH, self.width * 4))
        style = "image-rendering: pixelated" if width > self.width else ""
        return (
            f'<video controls loop autoplay muted playsinline width="{width}" style="{style}">'
            f'<source src="{source}" type="video/mp4"></video>'
        )


def _columns(videos: int, columns: int | None) -> int:
    if videos == 0:
        raise InvalidArgumentError("no videos were given to tile; give at least one.")
    if columns is None:
        return math.ceil(math.sqrt(videos))
    if columns < 1:
        raise InvalidArgumentError(f"columns={columns} must be at least 1.")
    return columns


def _tile(tiles: Sequence[NDArray[Any]], columns: int, gap: int, fill: int) -> NDArray[np.uint8]:
    """Place tiles ``(f, h, w, 3)`` in rows, ``gap`` pixels apart."""
    length, height, width, _ = tiles[0].shape
    rows = math.ceil(len(tiles) / columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    out = np.full((length, *size, 3), fill, np.uint8)
    for position, tile in enumerate(tiles):
        top = position // columns * (height + gap)
        left = position % columns * (width + gap)
        out[:, top : top + height, left : left + width] = tile
    return out


def _numbered(frames: NDArray[Any], labels: Sequence[str]) -> list[NDArray[Any]]:
    """Each frame under a strip with its label, so that the pixels stay whole."""
    font = ImageFont.load_default()
    boxes = [font.getbbox(label) for label in labels]
    strip = math.ceil(max(box[3] for box in boxes)) + 4
    width = max(frames.shape[2], math.ceil(max(box[2] for box in boxes)) + 4)
    tiles = []
    for frame, label in zip(frames, labels, strict=True):
        tile = Image.new("RGB", (width, frame.shape[0] + strip), "white")
        ImageDraw.Draw(tile).text((2, 2), label, fill="black", font=font)
        tile.paste(Image.fromarray(frame), (0, strip))
        tiles.append(np.asarray(tile)[None])
    return tiles


def _check_memory(path: Path, num_frames: int, height: int, width: int) -> None:
    """Refuse what a file of a few kilobytes may ask for."""
    size = num_frames * height * width * 3
    if size > _LARGEST:
        raise VideoError(
            f"{path}: {num_frames} frames of {height} x {width} (height x width) take {size / 2**30:.0f} GiB; "
            f"Video.load holds up to {_LARGEST / 2**30:.0f}. Read the frames that you need with VideoReader."
        )


def _read_folder(path: Path, record: Mapping[str, Any]) -> NDArray[np.uint8]:
    pattern, count = record.get("pattern"), record.get("num_frames")
    try:
        if not (isinstance(pattern, str) and _PATTERN.fullmatch(pattern)):
            raise ValueError(f"the pattern {str(pattern)[:60]!r}, where a name such as %05d.png is expected")
        if type(count) is not int or count < 1:
            raise ValueError(f"{str(count)[:20]!r} for the number of frames")
        lost = next((n for n in range(count) if not (path / (pattern % n)).is_file()), None)
        if lost is not None:
            raise ValueError(f"{pattern % lost} is missing")
        frames: NDArray[np.uint8] | None = None
        for number in range(count):
            with Image.open(path / (pattern % number)) as picture:
                _check_memory(path, count, picture.height, picture.width)
                if frames is None:
                    frames = np.empty((count, picture.height, picture.width, 3), np.uint8)
                if (picture.height, picture.width) != frames.shape[1:3]:
                    raise ValueError(f"{pattern % number} has another size than the first frame")
                frames[number] = np.asarray(to_rgb(picture))
        assert frames is not None  # count is 1 or more
        return frames
    except VideoError:
        raise
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{path}: not a complete folder of PNG frames written by vidgen ({error}). Expected "
            "numbered .png files and a metadata.json."
        ) from error
