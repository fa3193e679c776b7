from __future__ import annotations

import pytest
import torch

from vidgen.codecs.tiles import tiled


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(5, 40), (16, 16), (17, 23), (12, 13)])
def test_work_on_single_pixels_sees_no_tiles(height: int, width: int) -> None:
    video = picture(height, width)
    assert torch.allclose(tiled(lambda x, _: x.square(), video, 8, 1, 1), video.square(), atol=1e-5)


def test_sizes_follow_the_units() -> None:
    video = picture(36, 44)
    smaller = tiled(lambda x, _: x[..., ::2, ::2], video, 8, 2, 1)
    assert torch.equal(smaller, video[..., ::2, ::2])

    def enlarge(x: torch.Tensor, _: int) -> torch.Tensor:
        return x.repeat_interleave(3, -1).repeat_interleave(3, -2)

    assert torch.allclose(tiled(enlarge, smaller, 8, 1, 3), enlarge(smaller, 0), atol=1e-5)


def test_tiles_overlap_and_fade_into_each_other() -> None:
    seen: list[tuple[int, ...]] = []

    def number(x: torch.Tensor, index: int) -> torch.Tensor:
        seen.append((index, *x.shape[-2:]))
        return torch.full_like(x, float(index))

    out = tiled(number, picture(8, 14), 8, 1, 1)
    assert seen == [(0, 8, 8), (1, 8, 8), (2, 8, 2), (3, 2, 8), (4, 2, 8), (5, 2, 2)]
    assert out[0, 0, 0, 0].tolist() == [0.0] * 6 + [0.0, 0.5] + [1.0] * 4 + [1.0, 1.5]
    assert out[0, 0, 0, :, 0].tolist() == [0.0] * 6 + [0.0, 1.5]


def test_small_frames_and_no_tile_are_taken_whole() -> None:
    seen: list[int] = []
    tiled(lambda x, i: seen.append(i) or x, picture(8, 8), 8, 1, 1)
    tiled(lambda x, i: seen.append(i) or x, picture(80, 8), None, 1, 1)
    assert seen == [0, 0]
