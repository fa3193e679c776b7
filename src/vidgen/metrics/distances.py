"""Distances between sets of features, their null, bias and uncertainty; the inception score.

All in float64: in float32 the Frechet distance of a set to itself can be off by tenths and negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.statistics import HalvedStatistics, Statistics, half_of

__all__ = [
    "Distance",
    "Extrapolation",
    "InceptionScore",
    "Interval",
    "frechet_distance",
    "frechet_infinity",
    "frechet_of",
    "inception_score",
    "inception_size_notes",
    "kernel_distance",
    "kernel_size_notes",
    "null_distance",
    "sample_size_notes",
    "subsample_interval",
]

Distance = Callable[[Tensor, Tensor], float]
"""A distance between two sets of features ``n d`` and ``m d``."""

ENOUGH = 5
"""Videos for each feature below which a note is due: FVD's usual 2,048 videos for 400 features.

Of the inception score videos for each class in each part: 5,000 pictures for the 1,000 classes of ImageNet.
"""

ENOUGH_KERNEL = 1000
"""Videos below which a note beside a kernel distance is due: the subsets that KID is averaged over."""


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return the squared Frechet distance of the two sets, each taken for a Gaussian (Heusel et al. 2017).

    ``|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)``, the last trace as the nuclear norm of ``A B^T``
    with ``A^T A = S1`` and ``B^T B = S2``. On I3D's features it is the FVD (Unterthiner et al. 2018). It is
    biased upwards by about ``c (1/n + 1/m)``: compare it only at equal numbers of videos, and with the null.
    Rounding may give a set's distance to itself a tiny negative value.

    Raises:
        InvalidArgumentError: fewer than 2 items in a set, or sets with different numbers of features.
    """
    if a.dim != b.dim:
        raise InvalidArgumentError(
            f"statistics of {a.dim} and of {b.dim} features were given; they come from different extractors."
        )
    for name, statistics in (("first", a), ("second", b)):
        if statistics.n < 2:
            raise InvalidArgumentError(
                f"the {name} set has {statistics.n} items; a Frechet distance needs a covariance, and so 2 or "
                f"more: better {ENOUGH * a.dim}, {ENOUGH} for each of the {a.dim} features."
            )
    one, two = a.factor / math.sqrt(a.n - 1), b.factor / math.sqrt(b.n - 1)
    shift = (a.mean - b.mean).square().sum()
    overlap = torch.linalg.svdvals(one @ two.T).sum()
    return float(shift + (one.square().sum() + two.square().sum() - 2 * overlap))


def frechet_of(x: Float[Tensor, "n d"], y: Float[Tensor, "m _d"]) -> float:
    """Return ``frechet_distance`` of two sets of stored features.

    Raises:
        InvalidArgumentError: as ``frechet_distance`` and ``Statistics.update``.
    """
    sets = []
    for values in (x, y):
        sets.append(Statistics(values.shape[1]))
        sets[-1].update(values)
    return frechet_distance(*sets)


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m _d"], block: int = 1024) -> float:
    """Return the unbiased squared MMD with the kernel ``(x.y / d + 1)^3`` (KID; KVD on features of videos).

    Binkowski et al. 2018. Being unbiased it is negative for about half of all pairs of samples of one
    distribution; negative values are kept, since clipping them would bias every average.

    Args:
        x: features of one set.
        y: features of the other.
        block: rows of the kernel matrix in memory at a time; no matter to the value.

    Raises:
        InvalidArgumentError: fewer than 2 items in a set, different numbers of features, values that are
            not finite, or ``block`` below 1.
    """
    if block < 1:
        raise InvalidArgumentError(f"block is {block}; expected 1 row or more.")
    _check_sets(x, y)
    n, m = len(x), len(y)
    within = _within(x, block) / (n * (n - 1)) + _within(y, block) / (m * (m - 1))
    across = sum(float(_kernel(p, q).sum()) for p in x.split(block) for q in y.split(block))
    return within - 2 * across / (n * m)


def _within(x: Tensor, block: int) -> float:
    """The sum of the kernel over all ordered pairs of different items."""
    parts = x.split(block)
    total = 0.0
    for index, rows in enumerate(parts):
        total += float(_kernel(rows, rows).fill_diagonal_(0).sum())
        total += sum(2 * float(_kernel(rows, other).sum()) for other in parts[index + 1 :])
    return total


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x.detach().double() @ y.detach().double().T / x.shape[1] + 1) ** 3


def _check_sets(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InvalidArgumentError(
            f"features of shapes {tuple(x.shape)} and {tuple(y.shape)} were given; expected n and m rows of "
            "the same features."
        )
    if min(len(x), len(y)) < 2:
        raise InvalidArgumentError(
            f"sets of {len(x)} and {len(y)} items were given; expected 2 or more in each."
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InvalidArgumentError("the features hold NaN or infinity; look at the videos and the extractor.")


class InceptionScore(NamedTuple):
    """Mean and standard deviation over ``splits`` parts of the set; the deviation is 0 for one part."""

    mean: float
    std: float
    splits: int


def inception_score(logits: Float[Tensor, "n k"], splits: int, seed: int = 0) -> InceptionScore:
    """Return ``exp E KL(p(class | video) || p(class))`` (Salimans et al. 2016): 1 at worst, ``k`` at best.

    Args:
        logits: of ``k`` classes, before the softmax.
        splits: near-equal parts, each scored on its own; 10 is customary, and smaller parts score lower:
            the number belongs in the protocol.
        seed: of the order in which the items are dealt out, since videos often come sorted by prompt.

    Raises:
        InvalidArgumentError: fewer items than splits, no split, or logits that are NaN or plus infinity.
    """
    if not 1 <= splits <= len(logits):
        raise InvalidArgumentError(
            f"splits is {splits} for {len(logits)} items; expected from 1 to the number of items."
        )
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise InvalidArgumentError("the logits hold NaN or infinity; look at the videos and the classifier.")
    order = torch.from_numpy(_generator(seed).permutation(len(logits)))
    log_p = torch.log_softmax(logits.detach().to("cpu", torch.float64), dim=1)[order]
    scores = [_exp_kl(part) for part in log_p.tensor_split(splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)


def _exp_kl(log_p: Tensor) -> float:
    log_marginal = torch.logsumexp(log_p, dim=0) - math.log(len(log_p))
    p = log_p.exp()
    # A class of probability 0 adds nothing; as a product it would be 0 times infinity.
    terms = torch.where(p > 0, p * (log_p - log_marginal), 0.0)
    return math.exp(float(terms.sum(dim=1).mean()))


def null_distance(real: HalvedStatistics | Tensor, distance: Distance = frechet_of, seed: int = 0) -> float:
    """Return the distance between two disjoint halves of the real set: what chance alone gives.

    Halves of ``N`` videos have ``N / 2`` each: a distance that falls as 1/N is about twice as large between
    them as between two sets of ``N``. An unbiased one, such as the kernel distance, is about 0 in either
    sign; its size says how much chance moves it.

    Args:
        real: streamed halves, of which the Frechet distance is taken; or features ``n d``, an item a video,
            which are split in the same way.
        distance: of stored features, such as ``kernel_distance``.
        seed: of the split of stored features.

    Raises:
        InvalidArgumentError: fewer than 4 videos, or another ``distance`` of streamed halves.
    """
    if isinstance(real, HalvedStatistics):
        if distance is not frechet_of:
            raise InvalidArgumentError(
                "streamed halves keep mean and covariance only, which give the Frechet distance. Give the "
                "features of the real videos for another distance."
            )
        return frechet_distance(*real.halves)
    if len(real) < 4:
        raise InvalidArgumentError(f"{len(real)} real items were given; halves of 2 or more need 4.")
    second = torch.tensor([half_of(item, seed) for item in range(len(real))], dtype=torch.bool)
    second = second.to(real.device)
    return distance(real[~second], real[second])


def sample_size_notes(num_real: int, num_generated: int, dim: int, frames: int = 1) -> tuple[str, ...]:
    """Return sentences to stand beside a Frechet distance of too few videos; none where there are enough.

    Args:
        num_real: videos of the real set.
        num_generated: generated videos.
        dim: features.
        frames: items that each video gives. Frames of one video are alike, so that more of them do not stand
            for more videos.
    """
    notes = []
    for name, count in (("real", num_real), ("generated", num_generated)):
        pooled = f" ({count * frames} frames)" if frames > 1 else ""
        few = f"{count} {name} videos{pooled} for {dim} features"
        if count * frames <= dim:
            notes.append(
                f"{few}: the covariance is singular and the distance mostly bias; use {ENOUGH * dim} or more."
            )
        elif count < ENOUGH * dim:
            notes.append(
                f"{few}: the bias, which falls as 1/N, is large; use {ENOUGH * dim} or more, and compare only "
                "equal numbers."
            )
    return tuple(notes)


def kernel_size_notes(num_real: int, num_generated: int) -> tuple[str, ...]:
    """Return sentences to stand beside a kernel distance of too few videos; none where there are enough."""
    if min(num_real, num_generated) >= ENOUGH_KERNEL:
        return ()
    return (
        f"{num_real} real and {num_generated} generated videos: without bias, but chance moves the distance; "
        f"hold it against the null, and use {ENOUGH_KERNEL} or more of each.",
    )


def inception_size_notes(count: int, classes: int, splits: int) -> tuple[str, ...]:
    """Return sentences to stand beside an inception score of too few videos; none where there are enough."""
    if count >= ENOUGH * classes * splits:
        return ()
    return (
        f"{count} videos in {splits} split(s) for {classes} classes: small parts score lower, and one video "
        f"alone 1; use {ENOUGH * classes * splits} or more, or fewer splits, and compare only equal numbers.",
    )


@dataclass(frozen=True)
class Extrapolation:
    """A distance extrapolated to endless samples, and what it was fitted to.

    Attributes:
        value: the intercept, at 1/N = 0.
        slope: the bias is about ``slope / N``.
        sizes: items in each set of every fitted point.
        distances: the distance at each size, averaged over the repeats.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m _d"],
    sizes: Sequence[int] | None = None,
    repeats: int = 3,
    seed: int = 0,
) -> Extrapolation:
    """Return the Frechet distance without the bias of finite samples, by a straight line over 1/N.

    After Chong and Forsyth 2020, but both sets are subsampled (without replacement) to ``N`` items, so that
    the bias of the real set is removed too.

    Args:
        real: features of the real videos.
        generated: features of the generated ones.
        sizes: values of ``N``; by default 8 from a quarter of the smaller set, but above ``d``, to all of it,
            evenly spaced in 1/N.
        repeats: subsamples averaged at each size.
        seed: of the subsamples.

    Raises:
        InvalidArgumentError: fewer than 2 different sizes, a size that the sets do not have or at which the
            covariance is singular (the bias is no longer a multiple of 1/N), or no repeat.
    """
    _check_sets(real, generated)
    most, dim = min(len(real), len(generated)), real.shape[1]
    if sizes is None:
        least = max(most // 4, dim + 2)
        inverse = np.linspace(1 / least, 1 / most, 8) if least < most else np.array([1 / most])
        sizes = np.rint(1 / inverse).astype(int).tolist()
    sizes = sorted({int(size) for size in sizes})
    if len(sizes) < 2 or sizes[0] <= dim + 1 or sizes[-1] > most or repeats < 1:
        raise InvalidArgumentError(
            f"sizes {sizes} with {repeats} repeats were to be fitted, for sets of {len(real)} and "
            f"{len(generated)} items with {dim} features; expected 2 or more sizes from {dim + 2} to {most}, "
            f"and 1 repeat or more. With fewer the covariance is singular: generate more videos."
        )
    generator = _generator(seed)
    distances = []
    for size in sizes:
        drawn = [(_drawn(real, size, generator), _drawn(generated, size, generator)) for _ in range(repeats)]
        distances.append(float(np.mean([frechet_of(*pair) for pair in drawn])))
    slope, value = np.polyfit(1 / np.array(sizes), distances, 1)
    return Extrapolation(float(value), float(slope), tuple(sizes), tuple(distances))


class Interval(NamedTuple):
    """A distance with the ends of its interval."""

    value: float
    low: float
    high: float


def subsample_interval(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m _d"],
    distance: Distance = frechet_of,
    level: float = 0.95,
    repeats: int = 100,
    seed: int = 0,
) -> Interval:
    """Return the distance of two sets with an interval for the chance in both samples.

    From half-samples drawn without replacement, whose spread about their own mean is that of the whole
    samples about the truth (Politis and Romano 1994; the delete-half jackknife). A bootstrap repeats items,
    which narrows the covariance and shifts the distance until its interval leaves out the estimate. The bias of
    the value stays in it: see ``frechet_infinity``. Where the two distributions are nearly one, the
    distance is no longer normal and the interval only a rough guide; compare with the null there.

    Args:
        real: features of the real videos.
        generated: features of the generated ones.
        distance: ``frechet_of``, ``kernel_distance``, or another one.
        level: share of repetitions of the experiment whose interval holds the expected value.
        repeats: half-samples.
        seed: of the half-samples.

    Raises:
        InvalidArgumentError: fewer than 4 items in a set, fewer than 10 repeats, or a level outside (0, 1).
    """
    _check_sets(real, generated)
    if min(len(real), len(generated)) < 4 or repeats < 10 or not 0 < level < 1:
        raise InvalidArgumentError(
            f"{repeats} half-samples of {len(real)} and {len(generated)} items at level {level} were asked "
            "for; expected 4 items or more in each set, 10 repeats or more and a level between 0 and 1."
        )
    generator = _generator(seed)
    drawn = [
        distance(*(_drawn(values, len(values) // 2, generator) for values in (real, generated)))
        for _ in range(repeats)
    ]
    value = distance(real, generated)
    low, high = np.quantile(np.array(drawn) - np.mean(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, value + float(low), value + float(high))


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed % 2**64))  # NumPy refuses negative ones


def _drawn(values: Tensor, size: int, generator: np.random.Generator) -> Tensor:
    chosen = generator.permutation(len(values))[:size]
    return values[torch.from_numpy(chosen).to(values.device)]
