"""B-FVD and Avg-FID: which frames are compared with which."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.blocks import (
    BlockStatistics,
    FrameStatistics,
    average_fid,
    block_frechet_distance,
    split_blocks,
)
from vidgen.metrics.distances import frechet_of, null_distance
from vidgen.metrics.features import FeatureExtractor, Features
from vidgen.metrics.statistics import half_of


class Means(FeatureExtractor):
    """Mean and spread of each channel, of a clip or of each frame."""

    name = "means"

    def __init__(self, per_frame: bool = False, min_frames: int = 1, scale: float = 1.0) -> None:
        self.per_frame, self.min_frames, self.scale = per_frame, min_frames, scale

    def extract(self, clips: torch.Tensor) -> Features:
        if self.per_frame:
            clips = clips.transpose(1, 2).flatten(0, 1)[:, :, None]
        pixels = clips.flatten(2) * self.scale
        return Features(torch.cat([pixels.mean(2), pixels.std(2)], dim=1))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> Means:
        return self

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "scale": self.scale}


def videos(count: int, frames: int, seed: int = 0, drift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, 3, 1, 1, 1, generator=generator) / 5
    noise = torch.randn(count, 3, frames, 4, 4, generator=generator) / 5
    clips = offset + noise + drift * torch.arange(frames)[:, None, None] / frames
    return clips.clamp(-1, 1)


def blocks_of(clips: torch.Tensor, batch: int = 5, **more: Any) -> BlockStatistics:
    statistics = BlockStatistics(more.pop("extractor", Means()), **more)
    for part in clips.split(batch):
        statistics.update(part)
    return statistics


def frames_of(clips: torch.Tensor, batch: int = 5, scale: float = 1.0) -> FrameStatistics:
    statistics = FrameStatistics(Means(per_frame=True, scale=scale))
    for part in clips.split(batch):
        statistics.update(part)
    return statistics


def test_an_incomplete_last_block_is_dropped_and_counted() -> None:
    clips = videos(2, 37)
    blocks, dropped = split_blocks(clips)
    assert (len(blocks), dropped) == (2, 5)
    assert torch.equal(torch.cat(blocks, dim=2), clips[:, :, :32])
    assert split_blocks(clips, 37).dropped == 0
    for size in (0, 38):
        with pytest.raises(InvalidArgumentError, match=f"blocks of {size} frames"):
            split_blocks(clips, size)


def test_each_block_is_compared_with_the_same_block() -> None:
    real, generated = videos(24, 37), videos(18, 37, seed=1, drift=0.5)
    before = real.clone()
    found = block_frechet_distance(blocks_of(real), blocks_of(generated, batch=7))
    expected = [
        frechet_of(Means().extract(one).values, Means().extract(other).values)
        for one, other in zip(split_blocks(real)[0], split_blocks(generated)[0], strict=True)
    ]
    assert found.distances == pytest.approx(expected, rel=1e-9)
    assert found.value == pytest.approx(sum(expected) / 2, rel=1e-9)
    assert found.distances[1] > found.distances[0]  # the drift grows
    nulls = [null_distance(Means().extract(block).values) for block in split_blocks(real)[0]]
    assert found.nulls == pytest.approx(nulls, rel=1e-9)
    assert found.null == pytest.approx(sum(nulls) / 2, rel=1e-9)
    assert torch.equal(real, before)


def test_the_same_videos_have_no_distance_in_any_block() -> None:
    clips = videos(10, 48)
    found = block_frechet_distance(blocks_of(clips), blocks_of(clips, batch=3))
    assert len(found.distances) == 3
    assert max(map(abs, found.distances)) < 1e-9


def test_dropped_frames_and_few_videos_are_said() -> None:
    real, generated = blocks_of(videos(30, 32)), blocks_of(videos(29, 37))
    notes = block_frechet_distance(real, generated).notes
    assert notes[0] == "the last 5 frames of each generated video fill no block of 16 and were dropped."
    assert [note[:25] for note in notes[1:]] == ["29 generated videos for 6"]


def test_an_extractor_of_frames_pools_those_of_a_block_by_video() -> None:
    extractor = Means(per_frame=True)
    statistics = blocks_of(videos(6, 8), batch=4, extractor=extractor, size=4)
    assert [block.n for block in statistics.blocks] == [24, 24]
    assert statistics.num_videos == 6
    values = extractor.extract(videos(6, 8)[:, :, 4:]).values
    first = torch.tensor([half_of(video, 0) == 0 for video in range(6)]).repeat_interleave(4)
    assert statistics.blocks[1].halves[0].n == 12
    torch.testing.assert_close(
        statistics.blocks[1].halves[0].mean, values[first].double().mean(0), rtol=1e-6, atol=1e-6
    )


def test_blocks_that_do_not_belong_together_are_refused() -> None:
    real = blocks_of(videos(6, 32))
    for other, message in (
        (blocks_of(videos(6, 48)), "have 2 blocks of 16 frames, the generated ones 3"),
        (blocks_of(videos(6, 32), size=8), "expected one size and one extractor"),
        (blocks_of(videos(6, 32), extractor=Means(scale=2)), "expected one size and one extractor"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            block_frechet_distance(real, other)
    with pytest.raises(InvalidArgumentError, match="have 0 blocks"):
        block_frechet_distance(BlockStatistics(Means()), BlockStatistics(Means()))
    with pytest.raises(InvalidArgumentError, match="videos of 48 frames came after some of 32"):
        real.update(videos(1, 48))
    with pytest.raises(InvalidArgumentError, match="expected 10 or more, which means needs"):
        BlockStatistics(Means(min_frames=10), size=8)


def test_frames_are_pooled_over_videos() -> None:
    real, generated = videos(8, 6), videos(12, 4, seed=1, drift=0.3)
    extractor = Means(per_frame=True)
    expected = frechet_of(extractor.extract(real).values, extractor.extract(generated).values)
    one, other = frames_of(real), frames_of(generated, batch=7)
    assert average_fid(one, other) == pytest.approx(expected, rel=1e-9)
    assert abs(average_fid(one, frames_of(real, batch=8))) < 1e-9


def test_the_null_of_frames_halves_videos_and_not_frames() -> None:
    clips = videos(9, 6)
    statistics = frames_of(clips, batch=4).statistics
    assert statistics is not None
    values = Means(per_frame=True).extract(clips).values
    first = torch.tensor([half_of(video, 0) == 0 for video in range(9)]).repeat_interleave(6)
    assert null_distance(statistics) == pytest.approx(frechet_of(values[first], values[~first]), rel=1e-9)


def test_frames_that_do_not_belong_together_are_refused() -> None:
    one = frames_of(videos(4, 6))
    with pytest.raises(InvalidArgumentError, match="24 real and 20 generated frames"):
        average_fid(one, frames_of(videos(4, 5)))
    with pytest.raises(InvalidArgumentError, match="0 real and 0 generated"):
        average_fid(FrameStatistics(Means(per_frame=True)), FrameStatistics(Means(per_frame=True)))
    with pytest.raises(InvalidArgumentError, match="expected one extractor"):
        average_fid(one, frames_of(videos(4, 6), scale=2))
    with pytest.raises(InvalidArgumentError, match="means describes whole videos"):
        FrameStatistics(Means())


def test_an_extractor_that_gives_another_number_of_items_is_named() -> None:
    class Wrong(Means):
        def extract(self, clips: torch.Tensor) -> Features:
            return Features(super().extract(clips).values[1:])

    with pytest.raises(
        InvalidArgumentError, match="means gave 4 items for 5 clips of 16 frames; expected 1 each"
    ):
        blocks_of(videos(5, 16), extractor=Wrong())
