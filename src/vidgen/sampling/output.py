"""What generation returns: frames in the form asked for, or the files written."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from vidgen.errors import InvalidArgumentError, VideoError
from vidgen.paths import expanded
from vidgen.sampling.arguments import Generation
from vidgen.video import Video, VideoWriter

__all__ = ["OUTPUT_TYPES", "FileSink", "SamplerOutput", "check_memory", "formatted", "output_paths", "to_uint8"]

OUTPUT_TYPES = ("np", "pt", "pil", "latent")

_SHOWN = 6  # players in a notebook: each carries its whole video


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        if self.frames is None:
            what = ", ".join(str(path) for path in self.paths[:3]) + (", ..." if len(self.paths) > 3 else "")
        else:
            shape = tuple(getattr(self.frames, "shape", ())) or f"{len(self.frames)} lists"
            what = f"{self.output_type} {shape}"
        count, size = len(self.frame_indices), f"{self.width} x {self.height}"
        return (
            f"SamplerOutput({len(self.seeds)} video(s) of {count} frames, {size}, {self.fps:g} fps, {what}, "
            f"seeds {', '.join(map(str, self.seeds[:4]))}{', ...' if len(self.seeds) > 4 else ''})"
        )

    def _repr_html_(self) -> str:
        """The videos as players for notebooks, the first few of many; latents as their description."""
        if self.output_type == "latent":
            return f"<p>{escape(repr(self))}</p>"
        count = len(self.paths) if self.frames is None else len(self.frames)
        players = [self._video(i)._repr_html_() for i in range(min(count, _SHOWN))]
        more = f"<p>and {count - _SHOWN} more: .videos has them all</p>" if count > _SHOWN else ""
        return f'<div style="display: flex; flex-wrap: wrap; gap: 4px">{"".join(players)}</div>{more}'

    def _video(self, index: int) -> Video:
        if self.frames is None:
            return Video.load(self.paths[index])
        settings = self.metadata[index] if self.metadata else {}
        return Video(_uint8_frames(self.frames[index]), self.fps, dict(settings))

    @property
    def videos(self) -> list[Video]:
        """Every video as a ``Video``, which saves, and shows itself in a notebook.

        Raises:
            InvalidArgumentError: the result holds latents.
        """
        if self.output_type == "latent":
            raise InvalidArgumentError("the result holds latents; generate with output_type='np' for videos.")
        count = len(self.paths) if self.frames is None else len(self.frames)
        return [self._video(i) for i in range(count)]


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
    out = expanded(out)
    if count == 1:
        return (out,)
    if "%" in out.name and out.suffix.lower() == ".png":  # a pattern of pictures: one folder per video
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


def check_memory(generation: Generation) -> None:
    """Refuse frames that this machine's memory cannot hold.

    Raises:
        InvalidArgumentError: they need more than there is altogether.
    """
    request = generation.requests[0]
    frames = len(generation.requests) * len(generation.targets)
    needed = frames * request.height * request.width * 3 * 4
    there = _memory()
    if there is not None and needed > there:
        raise InvalidArgumentError(
            f"{frames} frames of {request.height} x {request.width} pixels (height x width) need "
            f"{needed / 1e9:.0f} GB, and this machine has {there / 1e9:.0f} GB of memory. Ask for fewer or "
            "smaller frames, or write them to a file with out=."
        )


def _memory() -> int | None:
    """Return the bytes of this machine's memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


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
