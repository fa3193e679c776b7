"""The prior in which each frame's noise continues the one before."""

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

__all__ = ["Progressive"]

_ERROR = 1e-8
_LARGEST = 16.0


@dataclass(frozen=True)
class Progressive(NoisePrior):
    """PYoCo's progressive noise: a stationary first-order autoregression over frames.

    ``x_i = rho x_{i-1} + sqrt(1 - rho^2) e_i`` with ``rho = a / sqrt(1 + a^2)``. To know a frame
    without all frames before it, the recurrence starts afresh for each block of frames, so far
    ahead of the block that what it forgets changes no covariance by more than 1e-8. One frame
    costs at most ``2 * warmup`` draws, contiguous frames about two each.

    Args:
        a: standard deviation of the inherited part over that of the new one, 0 to 16; the
            warm-up grows with its square (53 frames at 1, 165 at 2, 3700 at 10).

    Raises:
        InvalidArgumentError: ``a`` is out of range.
    """

    kind: ClassVar[str] = "progressive"
    a: float = 1.0

    def __post_init__(self) -> None:
        """Check the parameter."""
        if not 0 <= self.a <= _LARGEST:
            raise InvalidArgumentError(
                f"a={self.a} was given; it must be 0 to {_LARGEST:g} (the cost of a frame grows "
                "with its square); for nearly equal frames use 'mixed'."
            )

    @property
    def rho(self) -> float:
        """Correlation between neighbouring frames."""
        return self.a / math.sqrt(1 + self.a**2)  # PYoCo (Ge et al. 2023), progressive model

    @property
    def warmup(self) -> int:
        """Frames from a fresh start to the block that uses it; also the length of a block."""
        # the start differs from the stationary process in covariances that decay as rho^n
        return math.ceil(math.log(_ERROR) / math.log(self.rho)) if self.rho > _ERROR else 1

    def sample(
        self, frames: Sequence[int], shape: tuple[int, int, int], key: NoiseKey
    ) -> Float[Tensor, "c f h w"]:
        """Noise of some frames; see ``NoisePrior.sample``."""
        check_request(frames, shape)
        out = np.empty((shape[0], len(frames), *shape[1:]), np.float32)
        places: dict[int, dict[int, list[int]]] = {}
        for place, frame in enumerate(frames):
            block = places.setdefault(frame // self.warmup, {})
            block.setdefault(frame, []).append(place)
        for number, wanted in places.items():
            self._run_block(number, wanted, key, out)
        return torch.from_numpy(out)

    def _run_block(
        self,
        block: int,
        wanted: dict[int, list[int]],
        key: NoiseKey,
        out: Float[np.ndarray, "c f h w"],
    ) -> None:
        """Run a block's recurrence up to its last wanted frame; write each into its places."""
        inherit = np.float32(self.rho)
        renew = np.float32(math.sqrt(1 - self.rho**2))
        shape = (out.shape[0], *out.shape[2:])
        start = (block - 1) * self.warmup  # before frame 0 in the first block
        state = key.generator(start).standard_normal(shape, dtype=np.float32)
        for frame in range(start + 1, max(wanted) + 1):
            state *= inherit
            state += renew * key.generator(frame).standard_normal(shape, dtype=np.float32)
            for place in wanted.get(frame, ()):
                out[:, place] = state

    def covariance(  # the same for every key
        self,
        frames: Sequence[int],
        key: NoiseKey,  # noqa: ARG002
    ) -> Float64[np.ndarray, "f f"]:
        """``rho^|i - j|``, which the samples follow within 1e-8."""
        index = np.asarray(frames, np.float64)
        return np.power(self.rho, np.abs(index[:, None] - index[None]))
