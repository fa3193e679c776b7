"""Damage has the strength that its level says, comes from its seed alone, and leaves its input as it is."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.shapes.classifier.corruptions import (
    CORRUPTIONS,
    add_noise,
    blur,
    compress,
    corrupt,
    freeze_order,
    jitter_shifts,
    kept_colours,
    relight,
    reorder,
    shift,
    shuffle_order,
)
from vidgen.shapes.scene import COLOURS
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video.transforms import to_clip


def philox(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def shapes(count: int = 3, frames: int = 16, size: int = 32) -> torch.Tensor:
    data = ShapesDataset(count, num_frames=frames, size=size, seed=2)
    return torch.stack([to_clip(data.render(i, range(frames))) for i in range(count)])


def test_noise_has_its_standard_deviation_and_each_clip_its_own():
    clips = shapes()
    sigma = torch.tensor([0.02, 0.3, 0.0])
    noise = add_noise(clips, sigma, [philox(0), philox(1), philox(2)]) - clips
    assert noise.std(dim=(1, 2, 3, 4)).tolist() == pytest.approx(sigma.tolist(), rel=0.01)
    assert noise.mean(dim=(1, 2, 3, 4)).abs().max() < 0.003
    alone = add_noise(clips[1:2], sigma[1:2], [philox(1)]) - clips[1:2]
    assert torch.equal(alone[0], noise[1])


def test_blur_keeps_constants_and_spreads_a_dot_as_a_gaussian():
    constant = torch.full((2, 3, 2, 16, 24), 0.3)
    torch.testing.assert_close(blur(constant, torch.tensor([0.7, 3.0])), constant)
    dot = torch.zeros(1, 3, 1, 33, 33)
    dot[..., 16, 3] = 1
    spread = blur(dot, torch.tensor([1.5]))[0, 0, 0].double()
    assert float(spread.sum()) == pytest.approx(1)
    gap = torch.arange(33, dtype=torch.float64) - 16
    assert float((spread.sum(1) * gap**2).sum()) == pytest.approx(1.5**2, rel=1e-4)  # rows
    across = spread.sum(0)
    assert float(across[3]) == pytest.approx(1 / (1.5 * math.sqrt(2 * math.pi)), rel=1e-4)
    assert float(across[32]) == pytest.approx(float(across[7]))  # over the border: 4 pixels either way


def test_blur_of_nothing_and_twice():
    clips = shapes()
    torch.testing.assert_close(blur(clips, torch.zeros(3)), clips)
    twice = blur(blur(clips, torch.full((3,), 1.2)), torch.full((3,), 0.9))
    torch.testing.assert_close(twice, blur(clips, torch.full((3,), 1.5)), atol=2e-4, rtol=0)


def test_compressed_blocks_have_rounded_cosine_coefficients():
    clips, step = shapes(2, frames=2), torch.tensor([0.11, 0.0])
    made = compress(clips, step)
    torch.testing.assert_close(made[1], clips[1])
    place = np.arange(8)
    for corner in ((0, 0), (8, 16)):
        block = made[0, 1, 1, corner[0] : corner[0] + 8, corner[1] : corner[1] + 8].double().numpy()
        for v, u in ((0, 0), (2, 1), (7, 7)):
            scale = 0.25 / (math.sqrt(2) ** ((v == 0) + (u == 0)))
            wave = np.outer(np.cos((place + 0.5) * v * np.pi / 8), np.cos((place + 0.5) * u * np.pi / 8))
            ratio = scale * (block * wave).sum() / 0.11
            assert ratio == pytest.approx(round(ratio), abs=1e-4)
    error = (made[0] - clips[0]).norm() / math.sqrt(clips[0].numel())
    assert 0 < float(error) < 0.11 / 2  # no coefficient is off by more than half a step
    with pytest.raises(InvalidArgumentError, match="12 x 16"):
        compress(torch.zeros(1, 3, 2, 12, 16), torch.ones(1))


@pytest.mark.parametrize("level", [0.0, 0.125, 0.5, 1.0])
def test_shuffled_frames_are_a_permutation_that_moves_just_the_share(level):
    orders = [shuffle_order(16, level, philox(key)) for key in range(20)]
    for order in orders:
        assert sorted(order) == list(range(16))
        assert (order != np.arange(16)).sum() == round(16 * level)
    if level:
        assert len({tuple(order) for order in orders}) > 10


def test_frozen_frames():
    assert freeze_order(8, 0.5).tolist() == [0, 1, 2, 3, 3, 3, 3, 3]
    assert freeze_order(8, 0.0).tolist() == list(range(8))
    assert freeze_order(8, 1.0).tolist() == [0] * 8


def test_reorder_and_shift_move_what_they_say():
    clips = shapes(2, frames=4)
    order = torch.tensor([[3, 1, 1, 0], [0, 1, 2, 3]])
    shown = reorder(clips, order)
    for i in range(2):
        for k in range(4):
            assert torch.equal(shown[i, :, k], clips[i, :, order[i, k]])
    pixels = torch.tensor([[[0, 0], [3, -2], [33, 0], [-5, 7]], [[1, 0], [0, 1], [0, 0], [40, 40]]])
    moved = shift(clips, pixels)
    for i in range(2):
        for k in range(4):
            x, y = pixels[i, k].tolist()
            assert torch.equal(moved[i, :, k], clips[i, :, k].roll((y, x), (1, 2)))


def test_jitter_has_its_standard_deviation():
    shifts = jitter_shifts(20000, 3.0, philox(5))
    assert shifts.std() == pytest.approx(math.sqrt(9 + 1 / 12), rel=0.02)  # rounding adds its twelfth


def test_relight_scales_from_black():
    clips = shapes(1, frames=2)
    lit = relight(clips, torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 0.1]]))
    torch.testing.assert_close(lit[0, :, 0] + 1, 0.5 * (clips[0, :, 0] + 1))
    torch.testing.assert_close(lit[0, :, 1], clips[0, :, 1] + 0.1)


def test_flicker_has_the_standard_deviation_of_its_level():
    clips = torch.full((40, 3, 50, 8, 8), -0.6)
    gains = (corrupt(clips, "flicker", 0.1, range(40))[:, 0, :, 0, 0] + 1) / 0.4
    assert float(gains.std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_come_from_their_seeds_alone_and_leave_their_input(name):
    clips, kind = shapes(), CORRUPTIONS[name]
    kept = clips.clone()
    worst = corrupt(clips, name, kind.levels[-1], [5, 6, 7])
    assert torch.equal(clips, kept)
    assert not torch.equal(worst, clips)
    assert worst.shape == clips.shape
    assert worst.abs().max() <= 1
    alone = corrupt(clips[2:], name, kind.levels[-1], [7])
    torch.testing.assert_close(alone[0], worst[2], atol=1e-6, rtol=0)
    if not kind.control:
        torch.testing.assert_close(corrupt(clips, name, 0.0, [5, 6, 7]), clips, atol=1e-6, rtol=0)
        errors = [float((corrupt(clips, name, level, [5, 6, 7]) - clips).abs().mean()) for level in kind.levels]
        assert errors[-1] > errors[0] > 0


@pytest.mark.parametrize("name", [name for name, kind in CORRUPTIONS.items() if kind.temporal])
def test_temporal_corruptions_show_only_frames_that_were_there(name):
    clips = shapes(2)
    shown = corrupt(clips, name, CORRUPTIONS[name].levels[-1], [0, 1])
    for before, after in zip(clips.transpose(1, 2), shown.transpose(1, 2), strict=True):
        assert all(any(torch.equal(frame, other) for other in before) for frame in after)


def test_controls_undo_themselves():
    clips = shapes()
    for name in ("reversal", "flip"):
        once = corrupt(clips, name, 1.0, [0, 1, 2])
        assert torch.equal(corrupt(once, name, 1.0, [0, 1, 2]), clips)


def test_more_dropped_colours_contain_fewer():
    kept = [kept_colours(dropped) for dropped in range(len(COLOURS))]
    assert [len(colours) for colours in kept] == [6, 5, 4, 3, 2, 1]
    for more, fewer in pairwise(kept):
        assert set(fewer) < set(more) <= set(COLOURS)
    for dropped in (-1, 6):
        with pytest.raises(InvalidArgumentError, match="give 0 to 5"):
            kept_colours(dropped)


def test_wrong_arguments_are_refused():
    clips = shapes(2, frames=2)
    with pytest.raises(UnknownNameError, match="'shuffle'"):
        corrupt(clips, "shufle", 0.5, [0, 1])
    with pytest.raises(InvalidArgumentError, match="level -1"):
        corrupt(clips, "noise", -1, [0, 1])
    with pytest.raises(InvalidArgumentError, match="1 seeds"):
        corrupt(clips, "noise", 0.1, [0])
