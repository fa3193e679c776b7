"""Distances against closed forms and computations by another route; null, bias, interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.distances import (
    frechet_distance,
    frechet_infinity,
    frechet_of,
    inception_score,
    inception_size_notes,
    kernel_distance,
    kernel_size_notes,
    null_distance,
    sample_size_notes,
    subsample_interval,
)
from vidgen.metrics.statistics import HalvedStatistics, Statistics, half_of


def normal(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def exact(count: int, mean: np.ndarray, root: np.ndarray, seed: int) -> torch.Tensor:
    """Rows whose sample mean is ``mean`` and whose sample covariance is ``root^T root``, to rounding."""
    raw = np.random.default_rng(seed).standard_normal((count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T).reshape(len(mean), -1)).T)
    return torch.from_numpy(white @ root + mean)


def by_eigenvalues(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition, with the eigenvalues of the product of covariances, which is not symmetric."""
    a, b = x.double().numpy(), y.double().numpy()
    one, two = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(one @ two).astype(complex)).real.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * roots)


def by_newton(one: np.ndarray, two: np.ndarray) -> float:
    """tr sqrt(S1 S2) by Denman and Beavers' iteration."""
    root, inverse = one @ two, np.eye(len(one))
    for _ in range(60):
        root, inverse = (root + np.linalg.inv(inverse)) / 2, (inverse + np.linalg.inv(root)) / 2
    return float(np.trace(root))


def test_one_dimension_has_a_closed_form() -> None:
    x = exact(50, np.array([3.0]), np.array([[2.0]]), 0)
    y = exact(90, np.array([-1.0]), np.array([[0.5]]), 1)
    assert frechet_of(x, y) == pytest.approx(4**2 + 1.5**2, rel=1e-12)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    means = np.array([[0.0, 1.0, 2.0, 0.0], [1.0, 1.0, -2.0, 0.5]])
    deviations = np.array([[1.0, 2.0, 0.1, 3.0], [1.5, 2.0, 0.4, 1e-3]])
    x, y = (exact(200, m, np.diag(s), i) for i, (m, s) in enumerate(zip(means, deviations, strict=True)))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_of(x, y) == pytest.approx(expected, rel=1e-11)
    turn = torch.linalg.qr(normal(4, 4, 9).double()).Q  # no axis is special
    assert frechet_of(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-11)


def test_full_covariances_agree_with_two_other_routes() -> None:
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((2, 7, 7))
    means = rng.standard_normal((2, 7))
    x, y = (exact(60 + 20 * i, means[i], roots[i], i) for i in range(2))
    covariances = [root.T @ root for root in roots]
    expected = (
        ((means[0] - means[1]) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * by_newton(*covariances)
    )
    assert frechet_of(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_of(x, y) == pytest.approx(by_eigenvalues(x, y), rel=1e-9)


def test_fewer_items_than_features_agree_too() -> None:
    x, y = normal(5, 12), 2 * normal(20, 12, 1) + 1
    assert frechet_of(x, y) == pytest.approx(by_eigenvalues(x, y), rel=1e-6)


@pytest.mark.parametrize(("count", "dim"), [(2, 128), (64, 128), (512, 128), (300, 5)])
def test_identical_sets_have_no_distance(count: int, dim: int) -> None:
    values = normal(count, dim) * torch.logspace(-3, 1, dim) + 4
    once, often = Statistics(dim), Statistics(dim)
    once.update(values)
    for part in values.flip(0).split(13):
        often.update(part)
    assert abs(frechet_distance(once, often)) < 1e-9
    assert abs(frechet_of(values, values)) < 1e-9


def test_the_distance_is_symmetric_and_leaves_the_features_alone() -> None:
    x, y = normal(40, 6), normal(30, 6, 1) * 2
    before = x.clone(), y.clone()
    assert frechet_of(x, y) == pytest.approx(frechet_of(y, x), rel=1e-12)
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(y, x), rel=1e-12)
    inception_score(x, 2)
    null_distance(x)
    subsample_interval(x, y, repeats=10)
    frechet_infinity(x, y, sizes=(10, 20))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_too_few_items_and_other_features_are_refused() -> None:
    one, two = Statistics(4), Statistics(4)
    one.update(normal(10, 4))
    two.update(normal(1, 4))
    with pytest.raises(InvalidArgumentError, match="the second set has 1 items"):
        frechet_distance(one, two)
    with pytest.raises(InvalidArgumentError, match="the first set has 1 items"):
        frechet_distance(two, one)
    with pytest.raises(InvalidArgumentError, match="of 4 and of 3 features"):
        frechet_distance(one, Statistics(3))


def naive_kernel_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = x.double().tolist(), y.double().tolist()

    def kernel(p: list[float], q: list[float]) -> float:
        return (math.fsum(u * v for u, v in zip(p, q, strict=True)) / len(p) + 1) ** 3

    def within(s: list[list[float]]) -> float:
        pairs = [kernel(p, q) for i, p in enumerate(s) for j, q in enumerate(s) if i != j]
        return math.fsum(pairs) / len(pairs)

    return within(a) + within(b) - 2 * math.fsum(kernel(p, q) for p in a for q in b) / (len(a) * len(b))


@pytest.mark.parametrize("block", [1, 4, 7, 1024])
def test_the_kernel_distance_is_the_double_loop_in_any_blocks(block: int) -> None:
    x, y = normal(21, 5), 1.5 * normal(12, 5, 1) + 0.3
    assert kernel_distance(x, y, block) == pytest.approx(naive_kernel_distance(x, y), rel=1e-12)


def test_the_kernel_distance_is_unbiased_and_not_clipped() -> None:
    values = [kernel_distance(normal(30, 4, 2 * i), normal(30, 4, 2 * i + 1)) for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(200)
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


def test_the_kernel_distance_refuses_what_it_cannot_use() -> None:
    x = normal(4, 3)
    for pair, message in (
        ((x, normal(4, 2)), "same features"),
        ((x, x[:1]), "sets of 4 and 1 items"),
        ((x, x / 0), "NaN or infinity"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            kernel_distance(*pair)
    with pytest.raises(InvalidArgumentError, match="block is 0"):
        kernel_distance(x, x, 0)


def test_sure_and_even_classes_score_best_and_unsure_ones_worst() -> None:
    sure = torch.eye(5).repeat(8, 1)
    for scale in (1e3, 1e6):
        assert inception_score(sure * scale, 1).mean == pytest.approx(5, rel=1e-12)
    minus = torch.where(sure > 0, 0.0, -math.inf)
    assert inception_score(minus, 1) == (pytest.approx(5, rel=1e-12), 0.0, 1)
    assert inception_score(torch.zeros(12, 5), 3) == (pytest.approx(1, rel=1e-12), pytest.approx(0), 3)
    assert inception_score(sure[:1].repeat(9, 1) * 1e3, 1).mean == pytest.approx(1)  # sure, but of one class


def test_the_inception_score_is_its_definition_on_every_split() -> None:
    logits = 3 * normal(50, 6)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)

    def definition(part: np.ndarray) -> float:
        return float(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))

    assert inception_score(logits, 1).mean == pytest.approx(definition(p), rel=1e-12)
    order = np.random.Generator(np.random.Philox(4)).permutation(50)
    parts = [definition(part) for part in np.array_split(p[order], 7)]
    score = inception_score(logits, 7, seed=4)
    assert score.mean == pytest.approx(np.mean(parts), rel=1e-12)
    assert score.std == pytest.approx(np.std(parts), rel=1e-12)


def test_a_negative_seed_deals_out_too() -> None:
    logits = 3 * normal(50, 6)
    assert inception_score(logits, 7, seed=-1).mean != inception_score(logits, 7, seed=1).mean


def test_sorted_videos_are_dealt_out_over_the_splits() -> None:
    by_prompt = torch.eye(4).repeat_interleave(100, 0) * 1e3
    assert inception_score(by_prompt, 4).mean > 3.8  # contiguous parts would hold a class each: 1


def test_the_inception_score_refuses_what_it_cannot_use() -> None:
    for splits in (0, 5):
        with pytest.raises(InvalidArgumentError, match=f"splits is {splits} for 4 items"):
            inception_score(torch.zeros(4, 3), splits)
    with pytest.raises(InvalidArgumentError, match="NaN or infinity"):
        inception_score(torch.full((4, 3), math.nan), 1)


def test_the_null_is_the_distance_of_two_halves_streamed_or_stored() -> None:
    values = normal(101, 6)
    first = torch.tensor([half_of(item, 2) == 0 for item in range(101)])
    expected = frechet_of(values[first], values[~first])
    assert null_distance(values, seed=2) == pytest.approx(expected, rel=1e-12)
    halved = HalvedStatistics(6, seed=2)
    for part in values.split(10):
        halved.update(part)
    assert null_distance(halved) == pytest.approx(expected, rel=1e-12)
    kernel = null_distance(values, kernel_distance, seed=2)
    assert kernel == pytest.approx(kernel_distance(values[first], values[~first]), rel=1e-12)
    with pytest.raises(InvalidArgumentError, match="streamed halves keep mean and covariance"):
        null_distance(halved, kernel_distance)
    with pytest.raises(InvalidArgumentError, match="3 real items"):
        null_distance(values[:3])


def test_the_null_of_halves_is_about_twice_that_of_whole_sets() -> None:
    values = normal(2000, 16)
    ratio = null_distance(values) / frechet_of(values, normal(2000, 16, 1))
    assert 1.6 < ratio < 2.5


def test_notes_say_which_set_is_too_small() -> None:
    assert sample_size_notes(640, 640, 128) == ()
    few, fewer = sample_size_notes(639, 128, 128)
    assert few.startswith("639 real videos for 128 features")
    assert "singular" in fewer
    assert "128 generated" in fewer
    assert "use 640 or more" in few


def test_frames_of_a_video_do_not_stand_for_more_videos() -> None:
    (real, generated) = sample_size_notes(40, 639, 128, frames=16)
    assert real.startswith("40 real videos (640 frames) for 128 features: the bias")
    assert "639 generated videos (10224 frames)" in generated
    assert sample_size_notes(640, 640, 128, frames=16) == ()
    assert "singular" in sample_size_notes(8, 640, 128, frames=16)[0]  # no more frames than features


def test_notes_of_the_other_distances() -> None:
    (few,) = kernel_size_notes(4, 2000)
    assert few.startswith("4 real and 2000 generated videos")
    assert kernel_size_notes(1000, 1000) == ()
    (small,) = inception_size_notes(349, 7, 10)
    assert small.startswith("349 videos in 10 split(s) for 7 classes")
    assert "use 350 or more" in small
    assert inception_size_notes(350, 7, 10) == ()


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_extrapolation_takes_the_bias_away(shift: float) -> None:
    x, y = normal(1500, 12), normal(1500, 12, 1) + shift
    truth = 12 * shift**2
    found = frechet_infinity(x, y)
    plain = frechet_of(x[:375], y[:375])
    assert abs(found.value - truth) < 0.25 * (plain - truth) + 0.1 * truth
    assert found.slope > 0
    assert (found.sizes[0], found.sizes[-1], len(found.sizes)) == (375, 1500, 8)
    assert found.distances[-1] == pytest.approx(frechet_of(x, y), rel=1e-9)  # of all items: nothing drawn
    assert found == frechet_infinity(x, y)
    assert found != frechet_infinity(x, y, seed=1)


def test_extrapolation_fits_a_line_over_one_over_n() -> None:
    found = frechet_infinity(normal(300, 3), normal(300, 3, 1), sizes=(50, 100, 300), repeats=2)
    design = np.stack([np.ones(3), 1 / np.array(found.sizes)], 1)
    (value, slope), *_ = np.linalg.lstsq(design, np.array(found.distances), rcond=None)
    assert (found.value, found.slope) == (pytest.approx(value), pytest.approx(slope))


@pytest.mark.parametrize(
    ("sizes", "repeats"), [((50,), 1), ((13, 50), 1), ((50, 101), 1), ((50, 100), 0), ((), 1)]
)
def test_extrapolation_refuses_sizes_that_do_not_fit(sizes: tuple[int, ...], repeats: int) -> None:
    with pytest.raises(InvalidArgumentError, match="expected 2 or more sizes from 14 to 100"):
        frechet_infinity(normal(100, 12), normal(120, 12, 1), sizes, repeats)


def test_extrapolation_of_too_few_videos_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="generate more videos"):
        frechet_infinity(normal(10, 12), normal(10, 12, 1))


@pytest.mark.parametrize("distance", [frechet_of, kernel_distance])
def test_the_interval_is_as_wide_as_repetitions_scatter(distance) -> None:
    def pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return normal(160, 4, 2 * seed), 1.3 * normal(120, 4, 2 * seed + 1) + 0.6

    scatter = float(np.std([distance(*pair(seed)) for seed in range(100, 300)]))
    found = [subsample_interval(*pair(seed), distance, repeats=60) for seed in range(8)]
    width = np.mean([interval.high - interval.low for interval in found])
    assert 0.75 < width / (2 * 1.96 * scatter) < 1.3
    for seed, interval in enumerate(found):
        assert interval.low < interval.value < interval.high  # a bootstrap's may leave it out
        assert interval.value == distance(*pair(seed))
    narrow = subsample_interval(*pair(0), distance, level=0.5, repeats=60)
    assert narrow.high - narrow.low < 0.6 * (found[0].high - found[0].low)


def test_the_interval_refuses_what_says_nothing() -> None:
    x = normal(20, 2)
    for change in ({"repeats": 9}, {"level": 1.0}, {"level": 0.0}):
        with pytest.raises(InvalidArgumentError, match="expected 4 items or more"):
            subsample_interval(x, x, **change)
    with pytest.raises(InvalidArgumentError, match="of 20 and 3 items"):
        subsample_interval(x, x[:3])
