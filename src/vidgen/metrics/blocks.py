"""Frechet distances of parts of videos: of blocks of frames along long ones, and of pooled frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.distances import frechet_distance, null_distance, sample_size_notes
from vidgen.metrics.exact import full_precision
from vidgen.metrics.features import FeatureExtractor
from vidgen.metrics.statistics import HalvedStatistics

__all__ = [
    "BlockDistances",
    "BlockStatistics",
    "Blocks",
    "FrameStatistics",
    "average_fid",
    "block_frechet_distance",
    "split_blocks",
]

BLOCK = 16
"""Frames of a block, as NUWA-XL's B-FVD-16 has it."""


class Blocks(NamedTuple):
    """Consecutive blocks of a clip (views), and the frames at the end that fill none."""

    blocks: tuple[Tensor, ...]
    dropped: int


def split_blocks(clips: Float[Tensor, "b 3 f h w"], size: int = BLOCK) -> Blocks:
    """Cut clips into consecutive blocks of ``size`` frames; an incomplete last one is dropped and counted.

    Raises:
        InvalidArgumentError: ``size`` is below 1, or there are too few frames for one block.
    """
    frames = clips.shape[2]
    if not 1 <= size <= frames:
        raise InvalidArgumentError(
            f"blocks of {size} frames were asked for, of videos with {frames}; expected from 1 to {frames}. "
            "Generate longer videos, or choose a smaller block (another metric)."
        )
    whole = frames - frames % size
    return Blocks(clips[:, :, :whole].split(size, dim=2), frames % size)


class BlockStatistics:
    """Statistics of every block of a set of long videos, block 0 apart from block 1 and so on.

    Args:
        extractor: describes one block; of one that works frame by frame the frames of a block are pooled.
        size: frames of a block.
        seed: of the halves, see ``HalvedStatistics``.

    Attributes:
        blocks: for each block its statistics; empty before the first video.
        dropped: frames at the end of each video that fill no block.

    Raises:
        InvalidArgumentError: the extractor needs longer blocks.
    """

    def __init__(self, extractor: FeatureExtractor, size: int = BLOCK, seed: int = 0) -> None:
        if size < max(extractor.min_frames, 1):
            raise InvalidArgumentError(
                f"blocks of {size} frames were asked for; expected {max(extractor.min_frames, 1)} or more, "
                f"which {extractor.name} needs."
            )
        self.extractor, self.size, self.seed = extractor, size, seed
        self.blocks: tuple[HalvedStatistics, ...] = ()
        self.dropped = 0
        self.num_videos = 0
        self._frames: int | None = None

    def update(self, clips: Float[Tensor, "b 3 f h w"]) -> None:
        """Take more videos, in [-1, 1] and all of one length; they are not changed.

        Raises:
            InvalidArgumentError: fewer frames than a block, or another length than the videos before.
        """
        blocks, dropped = split_blocks(clips, self.size)
        if self._frames not in (None, clips.shape[2]):
            raise InvalidArgumentError(
                f"videos of {clips.shape[2]} frames came after some of {self._frames}; expected one length, so "
                "that every block has the same number of videos. Cut the longer ones."
            )
        videos = range(self.num_videos, self.num_videos + len(clips))
        for index, block in enumerate(blocks):
            values, items = _described(self.extractor, block, videos)
            if len(self.blocks) == index:
                self.blocks += (HalvedStatistics(values.shape[1], self.seed),)
            self.blocks[index].update(values, items)
        self._frames, self.dropped = clips.shape[2], dropped
        self.num_videos += len(clips)


@dataclass(frozen=True)
class BlockDistances:
    """The Frechet distance along long videos.

    Attributes:
        distances: of each block, against the same block of the real set.
        nulls: of each block, between two halves of the real set; see ``null_distance``.
        notes: what to know of the number.
    """

    distances: tuple[float, ...]
    nulls: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def value(self) -> float:
        """The average over blocks: B-FVD (Yin et al. 2023, NUWA-XL)."""
        return sum(self.distances) / len(self.distances)

    @property
    def null(self) -> float:
        """The average of the nulls."""
        return sum(self.nulls) / len(self.nulls)


def block_frechet_distance(real: BlockStatistics, generated: BlockStatistics) -> BlockDistances:
    """Return the Frechet distance of each block of the generated videos from that block of the real ones.

    Raises:
        InvalidArgumentError: other blocks or another extractor, different numbers of blocks, or too few
            videos: 2 generated and 4 real ones at least.
    """
    if real.extractor.fingerprint() != generated.extractor.fingerprint() or real.size != generated.size:
        raise InvalidArgumentError(
            f"blocks of {real.size} frames described by {real.extractor.name} and blocks of {generated.size} "
            f"described by {generated.extractor.name} were given; expected one size and one extractor, with "
            "the same weights."
        )
    if len(real.blocks) != len(generated.blocks) or not real.blocks:
        raise InvalidArgumentError(
            f"the real videos have {len(real.blocks)} blocks of {real.size} frames, the generated ones "
            f"{len(generated.blocks)}; expected equally many, 1 or more. Cut the longer videos."
        )
    distances, nulls, notes = [], [], []
    for name, statistics in (("real", real), ("generated", generated)):
        if statistics.dropped:
            notes.append(
                f"the last {statistics.dropped} frames of each {name} video fill no block of "
                f"{statistics.size} and were dropped."
            )
    for one, other in zip(real.blocks, generated.blocks, strict=True):
        distances.append(frechet_distance(one.whole(), other.whole()))
        nulls.append(null_distance(one))
    # Every block has as many videos; one set of notes says it for all.
    frames = real.size if real.extractor.per_frame else 1
    notes += sample_size_notes(real.num_videos, generated.num_videos, real.blocks[0].dim, frames)
    return BlockDistances(tuple(distances), tuple(nulls), tuple(notes))


class FrameStatistics:
    """Statistics of the frames of a set of videos, pooled; the frames of a video stay in one half.

    Args:
        extractor: describes single frames.
        seed: of the halves, see ``HalvedStatistics``.

    Attributes:
        statistics: of all frames; None before the first video.

    Raises:
        InvalidArgumentError: the extractor describes videos.
    """

    def __init__(self, extractor: FeatureExtractor, seed: int = 0) -> None:
        if not extractor.per_frame:
            raise InvalidArgumentError(
                f"{extractor.name} describes whole videos; expected an extractor that describes each frame "
                "(per_frame). For whole videos take the Frechet distance of their own features."
            )
        self.extractor, self.seed = extractor, seed
        self.statistics: HalvedStatistics | None = None
        self.num_videos = 0

    def update(self, clips: Float[Tensor, "b 3 f h w"]) -> None:
        """Take the frames of more videos, in [-1, 1]; they are not changed."""
        videos = range(self.num_videos, self.num_videos + len(clips))
        values, items = _described(self.extractor, clips, videos)
        if self.statistics is None:
            self.statistics = HalvedStatistics(values.shape[1], self.seed)
        self.statistics.update(values, items)
        self.num_videos += len(clips)


def average_fid(real: FrameStatistics, generated: FrameStatistics) -> float:
    """Return Avg-FID: the Frechet distance of pooled frames, of equally many on both sides.

    Its null is ``null_distance(real.statistics)``.

    Raises:
        InvalidArgumentError: different numbers of frames, too few, or another extractor.
    """
    if real.extractor.fingerprint() != generated.extractor.fingerprint():
        raise InvalidArgumentError(
            f"frames described by {real.extractor.name} and by {generated.extractor.name} were given; expected "
            "one extractor, with the same weights."
        )
    counts = [0 if side.statistics is None else side.statistics.n for side in (real, generated)]
    if real.statistics is None or generated.statistics is None or counts[0] != counts[1]:
        raise InvalidArgumentError(
            f"{counts[0]} real and {counts[1]} generated frames were given; Avg-FID is defined for equally "
            "many, since its bias depends on the number. Take the first videos and frames of the larger set."
        )
    return frechet_distance(real.statistics.whole(), generated.statistics.whole())


def _described(
    extractor: FeatureExtractor, clips: Float[Tensor, "b 3 f h w"], videos: range
) -> tuple[Float[Tensor, "n d"], list[int]]:
    """Features, and the video of each item."""
    with full_precision():
        values = extractor.extract(clips).values
    per_video = clips.shape[2] if extractor.per_frame else 1
    if len(values) != len(clips) * per_video:
        raise InvalidArgumentError(
            f"{extractor.name} gave {len(values)} items for {len(clips)} clips of {clips.shape[2]} frames; "
            f"expected {per_video} each, in the order (video, frame)."
        )
    return values, [video for video in videos for _ in range(per_video)]
