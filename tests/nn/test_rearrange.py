from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.nn import over_space, over_time

B, F, C, H, W = 2, 3, 4, 5, 6


def clips() -> Tensor:
    return torch.arange(float(B * F * C * H * W)).view(B * F, C, H, W)


def test_over_time_lays_the_frames_at_each_pixel_out() -> None:
    seen: list[Tensor] = []
    over_time(lambda tokens: seen.append(tokens) or tokens, clips(), F)
    (tokens,) = seen
    video = clips().view(B, F, C, H, W)
    for b, y, x in ((0, 0, 0), (1, 2, 3), (0, 4, 5)):
        assert torch.equal(tokens[(b * H + y) * W + x], video[b, :, :, y, x])


def test_over_space_lays_the_pixels_of_each_frame_out() -> None:
    seen: list[Tensor] = []
    over_space(lambda tokens: seen.append(tokens) or tokens, clips())
    (tokens,) = seen
    for frame, y, x in ((0, 0, 0), (5, 2, 3), (1, 4, 5)):
        assert torch.equal(tokens[frame, y * W + x], clips()[frame, :, y, x])


def test_everything_comes_back_to_its_place() -> None:
    assert torch.equal(over_space(lambda tokens: tokens + 1, clips()), clips() + 1)
    assert torch.equal(over_time(lambda tokens: tokens + 1, clips(), F), clips() + 1)
    first = over_time(lambda tokens: tokens[:, :1].expand_as(tokens), clips(), F)
    assert torch.equal(first, clips()[[0, 0, 0, 3, 3, 3]])


@pytest.mark.parametrize("wrong", [4, 0, -1])
def test_frame_counts_that_do_not_fit_are_refused(wrong: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"6 frames.*clips of {wrong}"):
        over_time(lambda tokens: tokens, clips(), wrong)
