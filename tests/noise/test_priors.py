"""Every prior against its own covariance, and the promises that all priors make."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.noise import (
    Decomposed,
    Independent,
    Mixed,
    NoiseKey,
    NoisePrior,
    Progressive,
    WindowedShuffle,
    normal,
)

KEY = NoiseKey(11, "start", "video")
SHAPE = (2, 3, 5)

PRIORS = [
    Independent(),
    Decomposed(),
    Decomposed(lam=0.25, anchor=7),
    Decomposed(lam=0.9, anchor=2, period=5),
    Decomposed(lam=0.0),
    Decomposed(lam=1.0),
    Mixed(),
    Mixed(a=0.0),
    Mixed(a=3.0),
    Progressive(),
    Progressive(a=0.0),
    Progressive(a=2.0),
    WindowedShuffle(),
    WindowedShuffle(window=6, stride=3),
    WindowedShuffle(window=4, stride=1),
]
each_prior = pytest.mark.parametrize("prior", PRIORS, ids=str)


def empirical(noise: torch.Tensor) -> np.ndarray:
    """Covariance over the frames of noise c f h w; every position is a sample."""
    rows = noise.transpose(0, 1).flatten(1).double().numpy()
    return rows @ rows.T / rows.shape[1]


@each_prior
def test_samples_follow_the_stated_covariance(prior: NoisePrior):
    # 45 to 60 crosses the edge of Progressive's blocks, 20 and more FreeNoise's window
    frames = [0, 1, 2, 3, 7, 8, 17, 20, 23, 24, 45, 50, 51, 52, 53, 54, 60]
    shape = (3, 80, 80)
    noise = prior.sample(frames, shape, KEY)
    stated = prior.covariance(frames, KEY)
    # a product of unit Gaussians with correlation r has variance 1 + r^2
    error = np.abs(empirical(noise) - stated) / np.sqrt((1 + stated**2) / np.prod(shape))
    assert error.max() < 4.5
    assert np.allclose(np.diag(stated), 1)
    assert noise.mean().abs() < 5 / np.prod(shape) ** 0.5


@each_prior
def test_any_subset_in_any_order_has_the_same_bits(prior: NoisePrior):
    whole = prior.sample(range(60), SHAPE, KEY)
    generator = np.random.default_rng(0)
    for size in (1, 2, 5, 30, 60):
        frames = generator.permutation(60)[:size].tolist()
        assert torch.equal(prior.sample(frames, SHAPE, KEY), whole[:, frames])
    assert torch.equal(prior.sample([9, 9], SHAPE, KEY), whole[:, [9, 9]])
    assert torch.equal(prior.sample(range(50, 200), SHAPE, KEY)[:, :10], whole[:, 50:])


@each_prior
def test_covariance_agrees_on_subsets_and_streams(prior: NoisePrior):
    whole = prior.covariance(range(40), KEY)
    frames = [31, 2, 2, 18]
    assert np.array_equal(prior.covariance(frames, KEY), whole[np.ix_(frames, frames)])
    assert np.array_equal(prior.covariance(range(40), KEY.with_stream("step-3")), whole)
    assert np.linalg.eigvalsh(whole).min() > -1e-9


@each_prior
def test_other_keys_have_unrelated_noise(prior: NoisePrior):
    frames = [0, 7, 8, 20]
    keys = [
        KEY,
        NoiseKey(12, "start", "video"),
        NoiseKey(11, "step-0", "video"),
        NoiseKey(11, "start", "x1"),
    ]
    batch = prior.sample_batch(frames, (2, 60, 60), keys)
    rows = batch.flatten(3).transpose(1, 2).flatten(2).double()
    for a in range(len(keys)):
        assert torch.equal(batch[a], prior.sample(frames, (2, 60, 60), keys[a]))
        for b in range(a):
            assert (rows[a] @ rows[b].T / 7200).abs().max() < 5 / 7200**0.5


@each_prior
def test_noise_is_float32_on_the_cpu(prior: NoisePrior):
    noise = prior.sample((3, 4), (1, 2, 2), KEY)
    assert (noise.dtype, noise.device.type) == (torch.float32, "cpu")
    noise += 1  # owns its memory: the next sample is not changed
    assert torch.equal(prior.sample((3, 4), (1, 2, 2), KEY) + 1, noise)


@each_prior
@pytest.mark.parametrize(
    ("frames", "shape", "message"),
    [
        ((), SHAPE, "at least one frame"),
        ((0, -1), SHAPE, r"frames \[0, -1\] were given"),
        ((0,), (1, 0, 2), r"shape \(1, 0, 2\) was given"),
    ],
)
def test_bad_requests_are_refused(prior: NoisePrior, frames, shape, message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        prior.sample(frames, shape, KEY)
    with pytest.raises(InvalidArgumentError, match="no key was given"):
        prior.sample_batch((0,), SHAPE, [])


def test_independent_noise_is_the_key_itself():
    noise = Independent().sample((5, 2), SHAPE, KEY)
    assert torch.equal(noise, torch.stack([normal(KEY, 5, SHAPE), normal(KEY, 2, SHAPE)], 1))


def test_decomposed_anchor_is_the_base_and_segments_share_it():
    prior = Decomposed(lam=0.5, anchor=7)
    base = prior.sample((7,), SHAPE, KEY)[:, 0]
    assert torch.equal(base, normal(KEY, "base", SHAPE))
    frames = prior.sample((6, 100), SHAPE, KEY)
    for index, frame in enumerate((6, 100)):
        own = normal(KEY, frame, SHAPE)
        assert torch.allclose(frames[:, index], 0.5**0.5 * (base + own), atol=1e-6)
    periodic = Decomposed(lam=0.5, anchor=7, period=16)
    assert torch.equal(periodic.sample((23,), SHAPE, KEY)[:, 0], base)
    assert [periodic.share(i) for i in (7, 8, 23, 39)] == [1, 0.5, 1, 1]


def test_mixed_share():
    assert Mixed(a=2.0).covariance((0, 9), KEY)[0, 1] == pytest.approx(4 / 5)
    assert Mixed(a=0.0).covariance((0, 9), KEY)[0, 1] == 0


def test_progressive_is_a_stationary_autoregression():
    prior = Progressive(a=1.0)
    assert prior.rho == pytest.approx(0.5**0.5)
    assert prior.rho**prior.warmup <= 1e-8 < prior.rho ** (prior.warmup - 1)
    noise = prior.sample(range(40, 60), SHAPE, KEY).double()
    for index in range(1, 20):
        fresh = normal(KEY, 40 + index, SHAPE).double()
        expected = prior.rho * noise[:, index - 1] + (1 - prior.rho**2) ** 0.5 * fresh
        # also across the edge of a block, where both sides forget what lies 1e-8 away
        assert (noise[:, index] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("a", [0.3, 1.0, 2.0])
def test_progressive_weights_give_the_covariance_within_1e_8(a: float, monkeypatch):
    prior = Progressive(a=a)
    size = 3 * prior.warmup
    frames = range(prior.warmup - 2, 2 * prior.warmup + 3)

    class OneHot:
        """A generator whose noise is 1 at the position that stands for its frame."""

        def __init__(self, frame: int):
            self.frame = frame

        def standard_normal(self, shape, dtype):
            out = np.zeros(shape, dtype)
            out[0, 0, self.frame + prior.warmup] = 1
            return out

    monkeypatch.setattr(NoiseKey, "generator", lambda self, frame: OneHot(frame))
    weights = prior.sample(frames, (1, 1, size + prior.warmup), KEY)[0, :, 0].double()
    error = (weights @ weights.T).numpy() - prior.covariance(frames, KEY)
    assert np.abs(error).max() < 3e-7  # 1e-8 and the rounding of float32 weights


def test_shuffle_repeats_each_block_of_the_first_window():
    prior = WindowedShuffle(window=8, stride=4)
    sources = prior.sources(range(80), KEY)
    assert sources[:8] == list(range(8))
    blocks = [sources[i : i + 4] for i in range(0, 80, 4)]
    for index, block in enumerate(blocks):
        first = 4 * (index % 2)
        assert sorted(block) == list(range(first, first + 4))
    assert len({tuple(block) for block in blocks[::2]}) > 3  # shuffled anew each time
    whole = prior.sample(range(80), SHAPE, KEY)
    assert torch.equal(whole, whole[:, sources])


def test_shuffle_is_the_same_for_start_and_solver_noise_only():
    prior = WindowedShuffle()
    sources = prior.sources(range(16, 80), KEY)
    assert prior.sources(range(16, 80), KEY.with_stream("step-3")) == sources
    assert prior.sources(range(16, 80), NoiseKey(12, "start", "video")) != sources
    assert prior.sources(range(16, 80), NoiseKey(11, "start", "x1")) != sources


def test_every_shuffle_is_equally_likely():
    prior = WindowedShuffle(window=3, stride=3)
    orders = np.reshape(prior.sources(range(3, 3 + 3 * 3000), KEY), (-1, 3))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.abs(counts - 500).max() < 5 * 500**0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decomposed(lam=-0.1), "lam=-0.1"),
        (lambda: Decomposed(lam=1.1), "lam=1.1"),
        (lambda: Decomposed(lam=float("nan")), "lam=nan"),
        (lambda: Decomposed(anchor=-1), "anchor=-1"),
        (lambda: Decomposed(period=4), "period=4 was given without an anchor"),
        (lambda: Decomposed(anchor=4, period=4), "anchor=4 and period=4"),
        (lambda: Decomposed(anchor=0, period=0), "anchor=0 and period=0"),
        (lambda: Mixed(a=-1.0), "a=-1.0"),
        (lambda: Mixed(a=float("inf")), "a=inf"),
        (lambda: Mixed(a=float("nan")), "a=nan"),
        (lambda: Progressive(a=-1.0), "a=-1.0"),
        (lambda: Progressive(a=17.0), "a=17.0.*use 'mixed'"),
        (lambda: Progressive(a=float("nan")), "a=nan"),
        (lambda: WindowedShuffle(window=0), "window=0"),
        (lambda: WindowedShuffle(stride=0), "stride=0"),
        (lambda: WindowedShuffle(window=16, stride=5), "stride=5.*divides"),
    ],
)
def test_bad_parameters_are_refused(make, message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_priors_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mixed().a = 2.0
