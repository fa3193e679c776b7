"""How varied samples are: where objects start, and how far the samples of one prompt lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError

__all__ = [
    "UNIFORM_DISTANCE",
    "PromptDiversity",
    "SampleDiversity",
    "cell_coverage",
    "position_spread",
    "spread_ratio",
]

UNIFORM_DISTANCE = (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 6
"""Mean distance of two points that lie anywhere on the torus [0, 1)^2 with equal chance: 0.3826."""

PAIRS = 2**21
"""Pairs of points whose distances are in memory at once: some 100 MB, however many points there are."""


def position_spread(positions: Float[Tensor, "n 2"]) -> float:
    """Return the mean distance of two positions on the torus [0, 1)^2, relative to uniform ones.

    ``mean over i < j of |p_i - p_j| / 0.3826``, distances the shortest way round in x and in y: 0 if all
    objects are in one place, about 1 if they are anywhere. Free of bias in the number of points, so sets of
    different sizes compare. Two far clusters can exceed 1: ``cell_coverage`` tells those apart.

    Raises:
        InvalidArgumentError: fewer than two positions.
    """
    points = _checked(positions, 2)
    number = len(points)
    # A sum over blocks of rows: all pairs of 50,000 points would be 40 GB.
    rows = max(1, PAIRS // number)
    total = sum(_distances(points[at : at + rows], points).sum().item() for at in range(0, number, rows))
    return total / (number * (number - 1)) / UNIFORM_DISTANCE


def spread_ratio(positions: Float[Tensor, "n 2"], data: Float[Tensor, "m 2"]) -> float:
    """Return ``position_spread`` of samples over that of the data: 1 where they vary as much.

    Raises:
        InvalidArgumentError: fewer than two positions in either, or data that are all in one place.
    """
    reference = position_spread(data)
    if not reference:
        raise InvalidArgumentError(
            f"the data's {len(data)} positions are all the same, so nothing varies as they do; give data in "
            "which objects start in different places."
        )
    return position_spread(positions) / reference


def cell_coverage(positions: Float[Tensor, "n 2"], cells: int = 8) -> float:
    """Return the share of the cells of a ``cells`` x ``cells`` grid that hold a position.

    Relative to the share that ``n`` uniform points hold on average, ``1 - (1 - 1 / cells^2)^n``: about 1 if
    positions are anywhere, near 0 if many are in few places.

    Raises:
        InvalidArgumentError: no position, or no cell.
    """
    if cells < 1:
        raise InvalidArgumentError(f"cells={cells}; give 1 or more.")
    points = _checked(positions, 1) % 1
    places = (points * cells).long().clamp_(max=cells - 1)  # x % 1 of a tiny negative x rounds to 1
    held = len(torch.unique(places, dim=0)) / cells**2
    return held / -math.expm1(len(points) * math.log1p(-1 / cells**2)) if cells > 1 else held


@dataclass(frozen=True)
class SampleDiversity:
    """How far apart samples lie in feature space, by mean squared distance.

    Attributes:
        within: of two samples of one prompt.
        across: of two samples of different prompts.
        prompts: how many prompts have two samples or more.
    """

    within: float
    across: float
    prompts: int

    @property
    def ratio(self) -> float:
        """``within / across``: 0 if a prompt always gives the same video, 1 if prompts change nothing."""
        return self.within / self.across if self.across else math.nan


class PromptDiversity:
    """Collects features of samples and their prompts; keeps one vector per prompt.

    With ``S(A)`` the sum of squared distances over the pairs within ``A``, ``within`` is the sum of
    ``S(samples of p)`` over prompts p, over the number of those pairs, and ``across`` is what is left of
    ``S(all)``, over the number of pairs that is left. All sums follow from counts, means and norms:
    ``S(A) = |A| sum |x - mean(A)|^2``.
    """

    def __init__(self) -> None:
        self._moments: dict[str, _Moments] = {}

    def update(self, features: Float[Tensor, "n d"], prompts: Sequence[str]) -> None:
        """Take in one row of features for each prompt.

        Raises:
            InvalidArgumentError: unequal numbers, or features of another width than before.
        """
        if len(features) != len(prompts):
            raise InvalidArgumentError(
                f"got {len(features)} rows of features and {len(prompts)} prompts; give one prompt per row."
            )
        for row, prompt in zip(features.detach().double().cpu().numpy(), prompts, strict=True):
            known = next(iter(self._moments.values()), None)
            if known is not None and known.mean.shape != row.shape:
                raise InvalidArgumentError(
                    f"got features of width {len(row)} after some of width {len(known.mean)}; collect the "
                    "features of one extractor."
                )
            self._moments.setdefault(prompt, _Moments(np.zeros_like(row))).add(row)

    def result(self) -> SampleDiversity:
        """Return the diversity of all samples so far.

        Raises:
            InvalidArgumentError: no prompt has two samples, or there is but one prompt.
        """
        groups = list(self._moments.values())
        repeated = [group for group in groups if group.n > 1]
        if not repeated or len(groups) < 2:
            raise InvalidArgumentError(
                f"got {sum(group.n for group in groups)} samples of {len(groups)} prompts; give two prompts or "
                "more, and two samples or more of some."
            )
        whole = _Moments(np.zeros_like(groups[0].mean))
        for group in groups:
            whole.merge(group)
        within = sum(group.n * group.square for group in groups)
        pairs = sum(group.n * (group.n - 1) // 2 for group in groups)
        others = whole.n * (whole.n - 1) // 2 - pairs
        across = max(whole.n * whole.square - within, 0.0) / others
        return SampleDiversity(within / pairs, across, len(repeated))


@dataclass
class _Moments:
    """Count, mean and sum of squared distances from the mean, updated without cancellation."""

    mean: np.ndarray
    n: int = 0
    square: float = 0.0

    def add(self, row: np.ndarray) -> None:
        self.merge(_Moments(row, 1))

    def merge(self, other: _Moments) -> None:
        total = self.n + other.n
        step = other.mean - self.mean
        self.square += other.square + float(step @ step) * self.n * other.n / total
        self.mean = self.mean + step * (other.n / total)
        self.n = total


def _distances(some: Tensor, others: Tensor) -> Tensor:
    steps = some[:, None] - others[None]
    steps -= steps.round()
    return steps.square().sum(dim=-1).sqrt()


def _checked(positions: Tensor, least: int) -> Tensor:
    if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) < least:
        raise InvalidArgumentError(
            f"got positions of the shape {tuple(positions.shape)}; expected (n, 2) with n of {least} or more."
        )
    return positions.detach().double().cpu()
