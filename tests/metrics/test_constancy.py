"""Constancy: what it calls kept, on drawn videos whose hue, size and colours are known."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch

from vidgen.metrics.constancy import measure_constancy
from vidgen.metrics.evaluate import Settings, evaluate
from vidgen.metrics.sources import View
from vidgen.shapes.bench.generated import GeneratedClips
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video import Video
from vidgen.video.transforms import to_clip

GREY = 0.2


def disc(hue=0.0, radius=8.0, centre=(32.0, 32.0), split=None, side=64):
    """A frame ``h w 3`` in [0, 1] with a soft-edged disc; ``split`` is the hue of its right half."""
    y, x = np.mgrid[:side, :side] + 0.5
    cover = np.clip(radius + 0.5 - np.hypot(y - centre[0], x - centre[1]), 0, 1)[..., None]
    colour = np.broadcast_to(colorsys.hsv_to_rgb(hue / 360, 1, 1), (side, side, 3)).copy()
    if split is not None:
        colour[x > centre[1] + split[1]] = colorsys.hsv_to_rgb(split[0] / 360, 1, 1)
    return GREY + cover * (colour - GREY)


def clip(frames):
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None] * 2 - 1


def kept(frames):
    return {name: bool(values.item()) for name, values in measure_constancy(clip(frames)).kept.items()}


ALL = {"hue": True, "size": True, "one_colour": True}


def test_a_disc_that_only_moves_keeps_everything():
    frames = [disc(centre=(32 + 0.3 * k, 20 + 1.7 * k)) for k in range(12)]
    assert kept(frames) == ALL
    found = measure_constancy(clip(frames))
    assert found.hue.item() < 1e-3
    assert found.size.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("turn", "stays"), [(3, True), (12, False), (60, False)])
def test_one_frame_of_another_hue_is_seen(turn, stays):
    frames = [disc(hue=120 + (turn if k == 5 else 0)) for k in range(16)]
    assert kept(frames) == ALL | {"hue": stays}
    # The hue's angle in the plane of equal brightness is within 1.2 degrees of HSV's.
    expected = turn * 15 / 16
    assert measure_constancy(clip(frames)).hue.item() == pytest.approx(expected, abs=1.2)


def test_hues_on_both_sides_of_red_are_near():
    assert kept([disc(hue=358 if k % 2 else 2) for k in range(8)]) == ALL


@pytest.mark.parametrize(("radius", "stays"), [(8.3, True), (9.2, False), (7.0, False)])
def test_one_frame_of_another_size_is_seen(radius, stays):
    frames = [disc(radius=radius if k == 3 else 8) for k in range(8)]
    assert kept(frames) == ALL | {"size": stays}
    ratio = (max(radius, 8) / min(radius, 8)) ** 2
    assert measure_constancy(clip(frames)).size.item() == pytest.approx(ratio, abs=0.02)


def test_a_spot_in_one_frame_is_seen_and_a_speck_is_not():
    spotted = [disc(split=(60, 4) if k == 2 else None) for k in range(8)]
    assert not kept(spotted)["one_colour"]
    speck = [disc(split=(60, 7.5) if k == 2 else None) for k in range(8)]
    assert kept(speck) == ALL


def test_frames_at_the_border_do_not_count():
    inside, cut = disc(centre=(32, 30)), disc(hue=200, centre=(32, 2))
    assert kept([inside] * 6 + [cut] * 6) == ALL
    nothing = measure_constancy(clip([inside] * 5 + [cut] * 7))
    assert not nothing.measured.any()
    assert all(math.isnan(value.item()) for value in (nothing.hue, nothing.size, nothing.mixed))


def test_a_video_without_object_is_not_measured():
    assert not measure_constancy(torch.zeros(2, 3, 8, 16, 16)).measured.any()


def test_an_image_is_of_one_colour_or_not():
    found = measure_constancy(torch.cat([clip([disc()]), clip([disc(split=(240, 0))])]))
    assert found.kept["one_colour"].tolist() == [True, False]


def test_the_shapes_data_keep_everything():
    data = ShapesDataset(24, 16, split="test")
    found = measure_constancy(torch.stack([to_clip(data.render(i, range(16))) for i in range(24)]))
    assert int(found.measured.sum()) >= 20
    assert all(values.all() for values in found.kept.values())


def videos(*kinds):
    return GeneratedClips(
        [Video(np.uint8(255 * np.stack(frames)), 8) for frames in kinds], ["a red circle"] * len(kinds)
    )


def test_evaluate_counts_the_shares():
    good = [disc(centre=(32, 20 + k)) for k in range(8)]
    turns = [disc(hue=40 * (k % 2)) for k in range(8)]
    grows = [disc(radius=6 + k / 3) for k in range(8)]
    cut = [disc(centre=(0, 32))] * 8
    settings = Settings(view=View(num_frames=8))
    scores = evaluate(videos(good, turns, grows, cut), metrics=["constancy"], settings=settings)
    assert {score.key: score.value for score in scores} == {
        "constancy_hue": pytest.approx(2 / 3),
        "constancy_size": pytest.approx(2 / 3),
        "constancy_one_colour": 1.0,
    }
    assert all(score.num_generated == 3 and score.higher_is_better for score in scores)
    assert any("3 of 4 videos" in note for note in scores[0].notes)


def test_evaluate_of_images_asks_for_one_colour_alone():
    settings = Settings(view=View(num_frames=1))
    scores = evaluate(videos([disc()], [disc(split=(240, 0))]), metrics=["constancy"], settings=settings)
    assert [(score.key, score.value) for score in scores] == [("constancy_one_colour", 0.5)]


def test_no_value_where_nothing_is_measured(caplog):
    settings = Settings(view=View(num_frames=8))
    cut = [disc(centre=(0, 32))] * 8
    assert evaluate(videos(cut), metrics=["constancy"], settings=settings) == []
    assert "no video shows one whole object" in caplog.text
