"""Priors whose frames share one base noise: none of it, a part of it, or all in some frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.noise.keys import NoiseKey
from vidgen.noise.prior import NoisePrior, check_request

__all__ = ["Decomposed", "Independent", "Mixed"]


@dataclass(frozen=True)
class Independent(NoisePrior):
    """Every frame has noise of its own."""

    kind: ClassVar[str] = "independent"

    def sample(
        self, frames: Sequence[int], shape: tuple[int, int, int], key: NoiseKey
    ) -> Float[Tensor, "c f h w"]:
        """Noise of some frames; see ``NoisePrior.sample``."""
        return _share(frames, shape, key, [0.0] * len(frames))

    def covariance(  # the same for every key
        self,
        frames: Sequence[int],
        key: NoiseKey,  # noqa: ARG002
    ) -> Float64[np.ndarray, "f f"]:
        """The identity."""
        return _shared_covariance(frames, [0.0] * len(frames))


@dataclass(frozen=True)
class Decomposed(NoisePrior):
    """VideoFusion's base noise, which all frames share, plus residual noise of each frame.

    Frame i has noise ``sqrt(lambda_i) base + sqrt(1 - lambda_i) residual_i``.

    Args:
        lam: the share of the base's variance in a frame, 0 to 1.
        anchor: the frame whose noise is the base itself (lambda = 1); ``None`` for no such
            frame.
        period: with a period, every frame with ``i % period == anchor`` is an anchor.

    Raises:
        InvalidArgumentError: a parameter is out of range, or a period lacks its anchor.
    """

    kind: ClassVar[str] = "decomposed"
    lam: float = 0.5
    anchor: int | None = None
    period: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.lam <= 1:
            raise InvalidArgumentError(f"lam={self.lam} was given; the base noise's share is 0 to 1.")
        if self.period is not None and self.anchor is None:
            raise InvalidArgumentError(
                f"period={self.period} was given without an anchor; give the anchor's place in "
                "the period, or leave out both."
            )
        end = math.inf if self.period is None else self.period
        if self.anchor is not None and not 0 <= self.anchor < end:
            raise InvalidArgumentError(
                f"anchor={self.anchor} and period={self.period} were given; the anchor is a frame "
                "from 0, and below the period if there is one."
            )

    def share(self, frame: int) -> float:
        """lambda of a frame, the base's share of its variance."""
        place = frame if self.period is None else frame % self.period
        return 1.0 if place == self.anchor else self.lam

    def sample(
        self, frames: Sequence[int], shape: tuple[int, int, int], key: NoiseKey
    ) -> Float[Tensor, "c f h w"]:
        """Noise of some frames; see ``NoisePrior.sample``."""
        return _share(frames, shape, key, [self.share(frame) for frame in frames])

    def covariance(  # the same for every key
        self,
        frames: Sequence[int],
        key: NoiseKey,  # noqa: ARG002
    ) -> Float64[np.ndarray, "f f"]:
        """``sqrt(lambda_i lambda_j)`` off the diagonal."""
        return _shared_covariance(frames, [self.share(frame) for frame in frames])


@dataclass(frozen=True)
class Mixed(NoisePrior):
    """PYoCo's mixed noise: a base that all frames share in equal parts.

    Args:
        a: standard deviation of the shared part over that of each frame's own (>= 0).

    Raises:
        InvalidArgumentError: ``a`` is negative or not finite.
    """

    kind: ClassVar[str] = "mixed"
    a: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not 0 <= self.a < math.inf:
            raise InvalidArgumentError(f"a={self.a} was given; it must be finite and >= 0.")

    @property
    def share(self) -> float:
        """The base's share of a frame's variance."""
        return self.a**2 / (1 + self.a**2)  # PYoCo (Ge et al. 2023), mixed model

    def sample(
        self, frames: Sequence[int], shape: tuple[int, int, int], key: NoiseKey
    ) -> Float[Tensor, "c f h w"]:
        """Noise of some frames; see ``NoisePrior.sample``."""
        return _share(frames, shape, key, [self.share] * len(frames))

    def covariance(  # the same for every key
        self,
        frames: Sequence[int],
        key: NoiseKey,  # noqa: ARG002
    ) -> Float64[np.ndarray, "f f"]:
        """``a^2 / (1 + a^2)`` off the diagonal."""
        return _shared_covariance(frames, [self.share] * len(frames))


def _share(
    frames: Sequence[int], shape: tuple[int, int, int], key: NoiseKey, shares: Sequence[float]
) -> Float[Tensor, "c f h w"]:
    """Base and own noise added with the given shares of the variance."""
    check_request(frames, shape)
    # NumPy rounds a product and a sum separately everywhere, so that subsets are equal to the bit
    base = _noise(key, "base", shape) if any(shares) else None
    out = np.empty((shape[0], len(frames), *shape[1:]), np.float32)
    for index, (frame, share) in enumerate(zip(frames, shares, strict=True)):
        # VideoFusion (Luo et al. 2023): eps_i = sqrt(lambda_i) b + sqrt(1 - lambda_i) r_i
        parts = []
        if base is not None and share > 0:
            parts.append(np.float32(math.sqrt(share)) * base)
        if share < 1:
            parts.append(np.float32(math.sqrt(1 - share)) * _noise(key, frame, shape))
        out[:, index] = sum(parts[1:], parts[0])
    return torch.from_numpy(out)


def _shared_covariance(frames: Sequence[int], shares: Sequence[float]) -> Float64[np.ndarray, "f f"]:
    root = np.sqrt(np.asarray(shares, np.float64))
    index = np.asarray(frames)
    return np.where(index[:, None] == index[None], 1.0, np.outer(root, root))


def _noise(key: NoiseKey, frame: int | str, shape: tuple[int, int, int]) -> Float[np.ndarray, "c h w"]:
    return key.generator(frame).standard_normal(shape, dtype=np.float32)
