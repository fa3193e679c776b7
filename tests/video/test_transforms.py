"""Scaling, cropping and mirroring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidgen.video.draws import Draws
from vidgen.video.transforms import crop_box, may_mirror, scaled_size, to_clip


@pytest.mark.parametrize(
    ("source", "size", "crop", "expected"),
    [
        ((1080, 1920), (64, 64), "center", (64, 114)),
        ((1920, 1080), (64, 64), "center", (114, 64)),
        ((100, 100), (32, 64), "random", (64, 64)),
        ((17, 1000), (64, 64), "center", (64, 3765)),
        ((1080, 1920), (64, 64), "none", (64, 64)),
        ((3, 7), (64, 64), "center", (64, 149)),
    ],
)
def test_scaled_frames_cover_the_size_in_the_sources_proportions(
    source: tuple[int, int], size: tuple[int, int], crop: str, expected: tuple[int, int]
) -> None:
    assert scaled_size(source, size, crop) == expected


def test_crops_reach_every_place_and_the_centre_is_the_centre() -> None:
    assert crop_box((64, 115), (64, 64), "center", Draws(0)) == (0, 25)
    boxes = {crop_box((65, 66), (64, 64), "random", Draws("k", draw)) for draw in range(100)}
    assert boxes == {(top, left) for top in range(2) for left in range(3)}


def test_clips_are_scaled_to_minus_one_and_one_and_mirrored_by_columns() -> None:
    frames = np.zeros((2, 2, 3, 3), dtype=np.uint8)
    frames[1, 0, 2] = (255, 51, 0)
    clip = to_clip(frames)
    assert clip[:, 1, 0, 2] == pytest.approx([1.0, -0.6, -1.0])
    assert (clip == -1).sum() == 2 * 2 * 3 * 3 - 2
    torch.testing.assert_close(to_clip(frames, mirror=True), clip.flip(-1))


def test_captions_that_speak_of_sides_forbid_mirroring() -> None:
    for caption in ("a red circle moves left", "Right hand waves", "turns clockwise"):
        assert not may_mirror(caption)
    for caption in ("", "a bright leftover", "copyright", "a dog runs"):
        assert may_mirror(caption)
