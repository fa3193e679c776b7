"""Mean and standard deviation of data that are read once, piece by piece."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError

__all__ = ["Moments"]


class Moments:
    """Running mean and standard deviation of some channels, each over all of its values."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(1, dtype=torch.float64)
        self._spread = torch.zeros(1, dtype=torch.float64)  # sum of squared deviations

    def add(self, values: Float[Tensor, "c n"]) -> None:
        """Take ``n`` more values of each of ``c`` channels."""
        values = values.detach().double()
        size, local = values.shape[1], values.mean(1).cpu()
        spread = (values - local.to(values.device)[:, None]).square().sum(1).cpu()
        # Chan, Golub & LeVeque 1983, eq. 2.1: merge two sums of squared deviations.
        weight = self._count * size / (self._count + size)
        self._spread = self._spread + spread + (local - self._mean).square() * weight
        self._mean = self._mean + (local - self._mean) * (size / (self._count + size))
        self._count += size

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel.

        Raises:
            InvalidArgumentError: no value, one that is not finite, or a channel whose values are
                all equal.
        """
        if not self._count:
            raise InvalidArgumentError("no clips to measure: give at least one clip 'b c f h w'.")
        mean = tuple(self._mean.tolist())
        std = tuple((self._spread / self._count).sqrt().tolist())
        for channel, (middle, deviation) in enumerate(zip(mean, std, strict=True)):
            if not 0 < deviation < float("inf"):
                which = f" of channel {channel}" if len(mean) > 1 else ""
                raise InvalidArgumentError(
                    f"the {self._count} values{which} measured have mean {middle} and standard deviation "
                    f"{deviation}; both must be finite and the deviation above 0. Look at the clips: are "
                    "they blank or broken?"
                )
        return mean, std
