"""The prior that repeats the first window's noise, locally shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.noise.keys import NoiseKey
from vidgen.noise.prior import NoisePrior, check_request

__all__ = ["WindowedShuffle"]


@dataclass(frozen=True)
class WindowedShuffle(NoisePrior):
    """FreeNoise's long-range noise: each window repeats the first, shuffled inside blocks.

    FreeNoise shuffles the window before. Blocks stay in place from window to window, and a
    uniform shuffle of a shuffled block is a uniform shuffle of the original that does not
    depend on the one before; so each block is shuffled from the first window directly, which
    has the same distribution and makes any frame cost the same.

    The order is drawn from the key's seed and level, not from its stream: start noise and
    solver noise repeat the same frames.

    Args:
        window: frames with noise of their own (>= 1).
        stride: frames of a block; divides ``window``.

    Raises:
        InvalidArgumentError: a parameter is out of range.
    """

    kind: ClassVar[str] = "windowed-shuffle"
    window: int = 16
    stride: int = 4

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.window < 1 or self.stride < 1 or self.window % self.stride:
            raise InvalidArgumentError(
                f"window={self.window} and stride={self.stride} were given; both are at least 1 "
                "and the stride divides the window."
            )

    def sample(
        self, frames: Sequence[int], shape: tuple[int, int, int], key: NoiseKey
    ) -> Float[Tensor, "c f h w"]:
        """Noise of some frames; see ``NoisePrior.sample``."""
        check_request(frames, shape)
        sources = self.sources(frames, key)
        unique, places = np.unique(sources, return_inverse=True)
        drawn = [key.generator(int(frame)).standard_normal(shape, dtype=np.float32) for frame in unique]
        return torch.from_numpy(np.stack([drawn[place] for place in places], axis=1))

    def covariance(self, frames: Sequence[int], key: NoiseKey) -> Float64[np.ndarray, "f f"]:
        """1 between frames that repeat the same frame of the first window, else 0."""
        sources = self.sources(frames, key)
        same: Bool[np.ndarray, "f f"] = np.equal.outer(sources, sources)
        return same.astype(np.float64)

    def sources(self, frames: Sequence[int], key: NoiseKey) -> list[int]:
        """The frame of the first window that each frame repeats."""
        # FreeNoise (Qiu et al. 2024), noise rescheduling by local shuffling
        orders: dict[int, list[int]] = {}
        found = []
        for frame in frames:
            block, offset = divmod(frame, self.stride)
            if block not in orders:
                orders[block] = self._order(block * self.stride, key)
            found.append(orders[block][offset])
        return found

    def _order(self, start: int, key: NoiseKey) -> list[int]:
        """The frames of the first window that a block repeats, in order."""
        first = start % self.window
        if start < self.window:
            return list(range(first, first + self.stride))
        shuffle = key.with_stream("windowed-shuffle").generator(start)
        return [first + int(place) for place in shuffle.permutation(self.stride)]
