"""The shapes data and stories as datasets: ``shapes`` and ``story`` of the group ``vidgen.datasets``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.clips import ShapesClips
from vidgen.shapes.export import write_folder
from vidgen.shapes.story import ShapesStory
from vidgen.shapes.synthetic import ShapesDataset, ShapesSource
from vidgen.video.dataset import DataConfig, DataSource

__all__ = ["ShapesData", "ShapesOptions", "StoryData", "StoryOptions"]


@dataclass(frozen=True)
class StoryOptions:
    """Stories.

    Args:
        videos: how many.
        frames: of each.
        objects: least and most objects in a video.
        split: ``"train"`` or ``"test"`` videos.
        caption_style: ``"short"``, ``"size"``, ``"background"`` or ``"full"``.
    """

    videos: int = 4096
    frames: int = 480
    objects: tuple[int, int] = (1, 1)
    split: str = "train"
    caption_style: str = "short"


@dataclass(frozen=True)
class ShapesOptions:
    """The shapes data.

    Args:
        videos, frames, objects, split, caption_style: see ``StoryOptions``.
        hold_out: share of combinations that only the test split shows.
    """

    videos: int = 4096
    frames: int = 64
    objects: tuple[int, int] = (1, 1)
    split: str = "train"
    hold_out: int | float = 0.0
    caption_style: str = "short"


class _Procedural(DataSource):
    """Videos made on the fly."""

    @classmethod
    @abstractmethod
    def source(cls, config: DataConfig) -> ShapesSource:
        """Return the videos that ``config`` asks for."""

    @classmethod
    def open(cls, config: DataConfig, *, progress: bool = True) -> ShapesClips:
        """See ``DataSource.open``."""
        del progress  # nothing is read
        return ShapesClips(cls.source(config), config.clip_length, config.stride, config.flip, config.seed)

    @classmethod
    def make(
        cls, config: DataConfig, folder: Path, *, count: int, num_frames: int | None, progress: bool = True
    ) -> None:
        """Write videos with captions and ground truth."""
        config = config.changed(videos=count, **({} if num_frames is None else {"frames": num_frames}))
        write_folder(cls.source(config), folder, progress=progress)


class ShapesData(_Procedural):
    """Videos in which every object keeps its motion."""

    Options = ShapesOptions

    @classmethod
    def source(cls, config: DataConfig) -> ShapesDataset:
        """Return the videos that ``config`` asks for."""
        options: ShapesOptions = config.options
        return ShapesDataset(options.videos, options.frames, hold_out=options.hold_out, **_common(config))


class StoryData(_Procedural):
    """Long videos in which objects change their motion."""

    Options = StoryOptions

    @classmethod
    def source(cls, config: DataConfig) -> ShapesStory:
        """Return the videos that ``config`` asks for."""
        options: StoryOptions = config.options
        return ShapesStory(options.videos, options.frames, **_common(config))


def _common(config: DataConfig) -> dict[str, Any]:
    height, width = (config.size,) * 2 if isinstance(config.size, int) else config.size
    if height != width:
        raise InvalidArgumentError(f"size={config.size}: the procedural data is square; give one number.")
    return {
        "size": height,
        "objects": config.options.objects,
        "seed": config.seed,
        "fps": 8.0 if config.fps is None else config.fps,
        "split": config.options.split,
        "caption_style": config.options.caption_style,
    }
