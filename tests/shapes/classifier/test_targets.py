"""Ground truth against the scenes and the pixels themselves; codes against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.classifier.targets import (
    NAMES,
    decode_noise,
    decode_positions,
    encode_noise,
    encode_positions,
    path_statistics,
    targets_of,
)
from vidgen.shapes.scene import BACKGROUNDS
from vidgen.shapes.synthetic import ShapesDataset


def test_positions_come_back_from_their_code_also_at_the_border():
    positions = torch.tensor([[0.0, 0.25], [0.999, 0.5], [0.001, 0.75], [0.5, 0.0]])
    code = encode_positions(positions)
    torch.testing.assert_close(code[0], torch.tensor([1.0, 0.0, 0.0, 1.0]), atol=1e-6, rtol=0)
    stretched = code * torch.tensor([3.0, 3.0, 0.2, 0.2])  # the lengths of the two pairs do not matter
    for given in (code, stretched):
        away = (decode_positions(given) - positions + 0.5).remainder(1.0) - 0.5
        assert away.abs().max() < 1e-6
    # The two sides of the border are neighbours, and nothing decodes to 1.
    assert (code[1] - code[2]).norm() < 2
    edge = decode_positions(torch.tensor([[1.0, -1e-12, 1.0, 1e-12]]))
    assert ((edge >= 0) & (edge < 1)).all()


def test_noise_comes_back_from_its_code_which_tells_small_strengths_apart():
    sigma = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.3])
    code = encode_noise(sigma)
    torch.testing.assert_close(decode_noise(code), sigma)
    assert float(code[0]) == 0
    assert float(code[-1]) == pytest.approx(1)
    assert (code[1:] - code[:-1] > 0.1).all()
    assert float(decode_noise(torch.tensor(-1.0))) == 0


def test_targets_are_what_the_scenes_say():
    data = ShapesDataset(12, num_frames=40, size=32, seed=4)
    index, frames = [7, 2, 11, 0], [[0, 3, 39], [5, 4, 3], [1, 1, 1], [20, 21, 22]]
    targets = targets_of(data, index, frames)
    for i, (video, numbers) in enumerate(zip(index, frames, strict=True)):
        scene = data.scene(video)
        (item,) = scene.objects
        said = {**vars(item.spec), "background": scene.background}
        for name, known in NAMES.items():
            assert known[int(getattr(targets, name)[i])] == said[name], name
        expected = item.positions(numbers)
        away = np.mod(targets.positions[i].numpy() - expected + 0.5, 1) - 0.5
        assert np.abs(away).max() < 1e-6


def test_positions_are_where_the_object_is_drawn():
    data = ShapesDataset(8, num_frames=30, size=64, seed=1)
    frames = [0, 9, 29]
    targets = targets_of(data, range(8), [frames] * 8)
    centres = 2 * np.pi * (np.arange(64) + 0.5) / 64
    for video in range(8):
        back = np.array(BACKGROUNDS[data.scene(video).background])
        drawn = np.abs(data.render(video, frames).astype(float) - back).sum(-1)
        for axis, shares in enumerate((drawn.sum(1), drawn.sum(2))):
            middle = np.angle((shares * np.exp(1j * centres)).sum(-1)) / (2 * np.pi)
            away = np.mod(targets.positions[video, :, axis].numpy() - middle + 0.5, 1) - 0.5
            assert np.abs(away).max() < 0.25 / 64  # a quarter of a pixel


def test_videos_of_several_objects_are_refused():
    with pytest.raises(InvalidArgumentError, match="2 objects"):
        targets_of(ShapesDataset(2, objects=(2, 2)), [1], [[0, 1]])


def test_speed_and_roughness_of_a_line_across_the_border_and_of_a_circle():
    time = torch.arange(12, dtype=torch.float64)
    line = torch.stack([(0.9 + 0.03 * time) % 1, (0.02 - 0.04 * time) % 1], dim=1)
    radius, rate = 0.2, 1 / 13
    angle = 2 * math.pi * rate * time
    circle = torch.stack([0.5 + radius * angle.cos(), 0.5 + radius * angle.sin()], dim=1)
    still = torch.full((12, 2), 0.3, dtype=torch.float64)
    speed, roughness = path_statistics(torch.stack([line, circle, still]))
    chord = 2 * radius * math.sin(math.pi * rate)
    assert speed.tolist() == pytest.approx([0.05, chord, 0])
    assert roughness.tolist() == pytest.approx([0, chord * 2 * math.sin(math.pi * rate), 0], abs=1e-12)


def test_short_paths():
    speed, roughness = path_statistics(torch.tensor([[[0.1, 0.5], [0.2, 0.5]]]))
    assert (float(speed), float(roughness)) == pytest.approx((0.1, 0))
    with pytest.raises(InvalidArgumentError, match="2 or more"):
        path_statistics(torch.zeros(1, 1, 2))
