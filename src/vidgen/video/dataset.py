"""The data of a training run, from one config: a folder of videos or the shapes data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidgen.errors import InvalidArgumentError
from vidgen.paths import expanded
from vidgen.video.clips import ClipBatch, ClipDataset, ClipSample, ClipSubset, ClipView, collate, split
from vidgen.video.folder import VideoFolder
from vidgen.video.shapes_clips import ShapesClips
from vidgen.video.story import ShapesStory
from vidgen.video.synthetic import ShapesDataset, ShapesSource

__all__ = [
    "ClipBatch",
    "ClipDataset",
    "ClipSample",
    "ClipSubset",
    "ClipView",
    "DataConfig",
    "ShapesClips",
    "VideoFolder",
    "collate",
    "open_dataset",
    "split",
    "summarize",
]


PROCEDURAL = ("shapes", "story")
"""Paths that stand for data made on the fly."""


@dataclass(frozen=True)
class DataConfig:
    """Which clips to train on.

    Args:
        path: a folder of videos, or ``"shapes"`` or ``"story"`` for the procedural data.
        clip_length: frames of a clip.
        stride: source frames from one frame of a clip to the next.
        size: pixels, ``(height, width)`` or one number for both.
        crop: ``"center"``, ``"random"``, or ``"none"`` to squeeze (folders only).
        flip: mirror half of the clips whose caption does not speak of left or right.
        fps: rate to resample to, instead of a stride; for the procedural data, the rate it has.
        captions: where captions are, see ``captions.load_captions`` (folders only).
        seed: keys what is random in clips, and the procedural data itself.
        cache_dir: where what is learnt of files is kept; default ``$VIDGEN_CACHE``,
            ``$XDG_CACHE_HOME/vidgen`` or ``~/.cache/vidgen``.
        videos: how many procedural videos.
        frames: frames of a procedural video; default 64 (shapes) or 480 (story).
        objects: least and most objects in a procedural video.
        split: ``"train"`` or ``"test"`` videos of the procedural data.
        hold_out: share of combinations that only the test split shows (shapes only).
        caption_style: ``"short"``, ``"size"``, ``"background"`` or ``"full"`` (procedural).
    """

    path: str = "shapes"
    clip_length: int = 16
    stride: int = 1
    size: int | tuple[int, int] = 64
    crop: str = "center"
    flip: bool = False
    fps: int | float | None = None
    captions: str = "auto"
    seed: int = 0
    cache_dir: str | None = None
    videos: int = 4096
    frames: int | None = None
    objects: tuple[int, int] = (1, 1)
    split: str = "train"
    hold_out: int | float = 0.0
    caption_style: str = "short"


def open_dataset(config: DataConfig, *, progress: bool = True) -> ClipDataset:
    """Open the data that ``config`` names; ``progress`` shows a bar while files are indexed.

    Raises VideoError if a folder cannot be used, InvalidArgumentError and UnknownNameError for
    fields out of range.
    """
    if config.path in PROCEDURAL:
        source = procedural(config)
        return ShapesClips(source, config.clip_length, config.stride, config.flip, config.seed)
    return VideoFolder(
        expanded(config.path),
        clip_length=config.clip_length,
        stride=config.stride,
        size=config.size,
        crop=config.crop,
        flip=config.flip,
        fps=config.fps,
        captions=config.captions,
        seed=config.seed,
        cache_dir=config.cache_dir,
        progress=progress,
    )


def procedural(config: DataConfig) -> ShapesSource:
    """Return the shapes data or stories that ``config.path`` names."""
    height, width = (config.size,) * 2 if isinstance(config.size, int) else config.size
    if height != width:
        raise InvalidArgumentError(f"size={config.size}: the procedural data is square; give one number.")
    common: dict[str, Any] = {
        "size": height,
        "objects": config.objects,
        "seed": config.seed,
        "fps": 8.0 if config.fps is None else config.fps,
        "split": config.split,
        "caption_style": config.caption_style,
    }
    if config.path == "story":
        if config.hold_out:
            raise InvalidArgumentError(
                f"hold_out={config.hold_out}: stories hold no combination out; use shapes."
            )
        return ShapesStory(config.videos, config.frames or 480, **common)
    return ShapesDataset(config.videos, config.frames or 64, hold_out=config.hold_out, **common)


def summarize(dataset: ClipDataset) -> dict[str, Any]:
    """Return what ``dataset`` holds in plain values (``vidgen data inspect``).

    Always ``items``, ``broken`` (name to reason) and ``classes``; the datasets here add
    ``videos``, ``seconds``, ``sizes``, ``fps`` and example ``captions``.
    """
    return dataset.summary()
