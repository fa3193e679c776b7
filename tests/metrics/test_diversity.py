"""Spread of positions and of samples against closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.metrics import diversity
from vidgen.shapes.synthetic import ShapesDataset


def uniform(n, seed=0, dim=2):
    return torch.rand(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(points):
    steps = [np.abs(a - b) for a, b in itertools.combinations(points.numpy(), 2)]
    return np.mean([math.hypot(*np.minimum(step, 1 - step)) for step in steps]) / diversity.UNIFORM_DISTANCE


def test_reference_distance_is_the_mean_over_the_torus():
    # Shortest ways are uniform in [0, 1/2]^2.
    middle = (np.arange(1000) + 0.5) / 2000
    mean = np.hypot(middle[:, None], middle[None]).mean()
    assert pytest.approx(mean, rel=1e-6) == diversity.UNIFORM_DISTANCE


def test_one_place_has_no_spread_and_uniform_points_spread_by_one():
    assert diversity.position_spread(torch.tensor([[0.3, 0.9]] * 7)) == 0
    for n in (100, 1500):  # more than one block of rows; no bias in the number
        found = np.mean([diversity.position_spread(uniform(n, seed)) for seed in range(40 if n == 100 else 3)])
        assert found == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("n", [2, 3, 40])
def test_spread_is_the_mean_over_pairs(n):
    assert diversity.position_spread(uniform(n)) == pytest.approx(brute(uniform(n)), rel=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    whole = diversity.position_spread(uniform(50))
    monkeypatch.setattr(diversity, "PAIRS", 400)
    assert diversity.position_spread(uniform(50)) == pytest.approx(whole, rel=1e-12)


def test_spread_goes_the_short_way_round():
    pair = torch.tensor([[0.05, 0.9], [0.95, 0.1]])
    expected = math.hypot(0.1, 0.2) / diversity.UNIFORM_DISTANCE
    assert diversity.position_spread(pair) == pytest.approx(expected, rel=1e-6)
    assert diversity.position_spread((uniform(30) + 0.37) % 1) == pytest.approx(
        diversity.position_spread(uniform(30))
    )


def test_ratio_to_the_data():
    data = uniform(50)
    assert diversity.spread_ratio(data, data) == 1
    # A cloud of half the size away from the border has half the distances, if none goes round.
    small = 0.25 + data / 4
    assert diversity.spread_ratio(small, 0.25 + data / 2) == pytest.approx(0.5)
    with pytest.raises(InvalidArgumentError, match="all the same"):
        diversity.spread_ratio(data, torch.full((4, 2), 0.5))


def test_start_positions_of_the_shapes_data_spread_widely():
    shapes = ShapesDataset(300, num_frames=1)
    starts = torch.from_numpy(np.stack([shapes.scene(i).objects[0].positions([0])[0] for i in range(300)]))
    assert 0.85 < diversity.position_spread(starts) < 1


def test_coverage_of_cells():
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4)).double() / 4 + 0.1
    assert diversity.cell_coverage(every, cells=4) == pytest.approx(1 / (1 - (15 / 16) ** 16))
    one = torch.full((100, 2), 0.4)
    assert diversity.cell_coverage(one, cells=8) == pytest.approx(1 / 64 / (1 - (63 / 64) ** 100))
    assert diversity.cell_coverage(one[:1], cells=8) == pytest.approx(1)
    assert diversity.cell_coverage(torch.tensor([[-1e-12, 0.99]], dtype=torch.float64), cells=1) == 1
    wrapped = torch.tensor([[0.99, 0.0], [-0.01, 1.0]])
    assert diversity.cell_coverage(wrapped) == pytest.approx(1 / 64 / (1 - (63 / 64) ** 2))
    found = np.mean([diversity.cell_coverage(uniform(60, seed)) for seed in range(60)])
    assert found == pytest.approx(1, abs=0.02)


def test_two_far_clusters_spread_and_do_not_cover():
    ends = torch.tensor([[0.25, 0.25], [0.75, 0.75]]).repeat(50, 1)
    assert diversity.position_spread(ends) == pytest.approx(
        math.hypot(0.5, 0.5) / 2 / 0.3826 * 100 / 99, rel=1e-4
    )
    assert diversity.cell_coverage(ends) < 0.05


def test_one_position_is_no_set():
    with pytest.raises(InvalidArgumentError, match=r"\(1, 2\)"):
        diversity.position_spread(torch.zeros(1, 2))
    with pytest.raises(InvalidArgumentError, match=r"\(0, 2\)"):
        diversity.cell_coverage(torch.zeros(0, 2))


def test_cells_are_one_or_more():
    with pytest.raises(InvalidArgumentError, match="cells=0"):
        diversity.cell_coverage(uniform(3), cells=0)


def pairs(features, prompts):
    groups = {True: [], False: []}
    for (a, p), (b, q) in itertools.combinations(zip(features.numpy(), prompts, strict=True), 2):
        groups[p == q].append(((a - b) ** 2).sum())
    return np.mean(groups[True]), np.mean(groups[False])


def test_prompt_diversity_equals_all_pairs():
    features = uniform(23, dim=6) + 1000.0  # far from the origin: sums of squares would cancel
    prompts = [f"prompt {i % 5}" for i in range(22)] + ["alone"]
    counter = diversity.PromptDiversity()
    counter.update(features[:9], prompts[:9])
    counter.update(features[9:], prompts[9:])
    found = counter.result()
    within, across = pairs(features, prompts)
    assert found.within == pytest.approx(within, rel=1e-9)
    assert found.across == pytest.approx(across, rel=1e-9)
    assert found.ratio == pytest.approx(within / across, rel=1e-9)
    assert found.prompts == 5


def test_same_video_for_a_prompt_is_no_diversity():
    rows = uniform(3, dim=4)
    counter = diversity.PromptDiversity()
    for _ in range(4):
        counter.update(rows, ["a", "b", "c"])
    found = counter.result()
    assert found.within == pytest.approx(0, abs=1e-12)
    assert found.across > 0.1
    assert found.ratio == pytest.approx(0, abs=1e-12)


def test_prompts_that_change_nothing_have_ratio_one():
    counter = diversity.PromptDiversity()
    counter.update(uniform(4000, dim=3), [str(i % 4) for i in range(4000)])
    assert counter.result().ratio == pytest.approx(1, abs=0.02)


def test_collapsed_samples_have_no_ratio():
    counter = diversity.PromptDiversity()
    counter.update(torch.ones(4, 3), ["a", "a", "b", "b"])
    assert math.isnan(counter.result().ratio)


def test_unusable_samples_are_refused():
    counter = diversity.PromptDiversity()
    with pytest.raises(InvalidArgumentError, match="0 samples of 0 prompts"):
        counter.result()
    with pytest.raises(InvalidArgumentError, match="2 rows of features and 1 prompts"):
        counter.update(uniform(2), ["a"])
    counter.update(uniform(2), ["a", "b"])
    with pytest.raises(InvalidArgumentError, match="two samples or more of some"):
        counter.result()
    with pytest.raises(InvalidArgumentError, match="width 3 after some of width 2"):
        counter.update(uniform(1, dim=3), ["a"])
    alone = diversity.PromptDiversity()
    alone.update(uniform(5), ["a"] * 5)
    with pytest.raises(InvalidArgumentError, match="1 prompts"):
        alone.result()
