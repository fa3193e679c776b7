"""What generation returns: frames in the form asked for, or the files written."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.video import Video, VideoWriter

__all__ = ["OUTPUT_TYPES", "FileSink", "SamplerOutput", "formatted", "output_paths", "to_uint8"]

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass
class SamplerOutput(BaseOutput):  # type: ignore[misc]
    """The result of one generation.

    Args:
        frames: ``np`` (b, f, h, w, c) in [0, 1]; ``pt`` (b, f, c, h, w) in [0, 1]; ``pil``, a list of
            frames per video; ``latent`` (b, c, f, h, w); None where the videos went to files.
        seeds: the 63-bit seed of every video.
        fps: frames per second.
        frame_indices: which frames of the whole video these are.
        height, width: in pixels, as really used.
        metadata: the settings, one mapping per video; also stored in the files.
        paths: the files written.
        output_type: what ``frames`` are.
    """

    frames: Any = None
    seeds: tuple[int, ...] = ()
    fps: float = 8.0
    frame_indices: tuple[int, ...] = ()
    height: int = 0
    width: int = 0
    metadata: tuple[Mapping[str, Any], ...] = ()
    paths: tuple[Path, ...] = field(default=())
    output_type: str = "np"

    @property
    def videos(self) -> list[Video]:
        """Every video as a ``Video``, which saves, and shows itself in a notebook.

        Raises:
            InvalidArgumentError: the result holds latents.
        """
        if self.output_type == "latent":
            raise InvalidArgumentError("the result holds latents; generate with output_type='np' for videos.")
        if self.frames is None:
            return [Video.load(path) for path in self.paths]
        settings = self.metadata or ({},) * len(self.frames)
        return [
            Video(_uint8_frames(frames), self.fps, dict(settings[i])) for i, frames in enumerate(self.frames)
        ]


def _uint8_frames(frames: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if isinstance(frames, list):
        return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    if isinstance(frames, Tensor):
        frames = frames.permute(0, 2, 3, 1).numpy()
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = (frames * 255).round().astype(np.uint8)
    return pixels


def to_uint8(clip: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Turn pixels ``c f h w`` in [-1, 1] into frames ``f h w c``."""
    pixels = ((clip.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu().numpy()


def formatted(clips: Sequence[Tensor], output_type: str) -> Any:
    """Return pixel clips (each c f h w in [-1, 1]) as ``np``, ``pt`` or ``pil``."""
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in to_uint8(clip)] for clip in clips]
    pixels = (torch.stack([clip.float().cpu() for clip in clips]).clamp(-1, 1) + 1) / 2
    if output_type == "pt":
        return pixels.permute(0, 2, 1, 3, 4)
    return pixels.permute(0, 2, 3, 4, 1).numpy()


def output_paths(out: str | Path, count: int) -> tuple[Path, ...]:
    """Return one path per video: ``out`` itself, or ``NAME-000.EXT`` and so on for several."""
    out = Path(out).expanduser()
    if count == 1:
        return (out,)
    if "%" in out.name:  # a pattern of pictures: one folder per video
        folder = out.parent
        return tuple(folder.with_name(f"{folder.name}-{i:03d}") / out.name for i in range(count))
    return tuple(out.with_name(f"{out.stem}-{i:03d}{out.suffix}") for i in range(count))


class FileSink:
    """Writes the frames of several videos to files as they come; nothing remains after an error.

    Args:
        paths: one per video; missing folders are made.
        fps: frames per second.
        metadata: the settings of every video.

    Raises:
        InvalidArgumentError, UnknownNameError: a path that names no format, or a folder in use.
        VideoError: a file cannot be written; said when the block is entered, before anything is computed.
    """

    def __init__(self, paths: Sequence[Path], fps: float, metadata: Sequence[Mapping[str, Any]]) -> None:
        self._paths, self._fps, self._metadata = tuple(paths), fps, tuple(metadata)
        self._stack = ExitStack()
        self._writers: list[VideoWriter] = []

    def __enter__(self) -> FileSink:
        with ExitStack() as opening:  # if one cannot be opened, the others are undone
            for path, metadata in zip(self._paths, self._metadata, strict=False):
                writer = _opened(path, self._fps, metadata)
                self._writers.append(opening.enter_context(writer))
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def __len__(self) -> int:
        return len(self._writers)

    def append(self, video: int, clip: Tensor) -> None:
        """Append pixels ``c f h w`` in [-1, 1] to one video."""
        self._writers[video].extend(to_uint8(clip))


def _opened(path: Path, fps: float, metadata: Mapping[str, Any]) -> VideoWriter:
    """Open a writer, and see that its file can be written: FFmpeg says so after the first frame only."""
    advice = "Give out= a path in a folder that you may write to."
    try:
        if path.parent.is_file():
            raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is a file and no folder")
        writer = VideoWriter(path, fps, metadata=metadata)
        if path.suffix.lower() not in ("", ".png"):  # the folder of pictures is there already
            trial = path.with_name(f".{path.name}.{os.getpid()}-0.test")
            trial.touch(exist_ok=False)
            trial.unlink()
    except VideoError as error:
        raise VideoError(f"{error} {advice}") from error
    except OSError as error:
        raise VideoError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error
    return writer
