"""Keyed random numbers for data: the same fields give the same draws in any process.

The bits come from NumPy's Philox under a 128-bit key, and are turned into numbers here, because
NumPy promises a stable stream for its bit generators and not for ``Generator``'s distributions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["Draws", "digest"]

T = TypeVar("T")


def digest(*fields: str | int, size: int = 16) -> bytes:
    """Hash ``fields`` into ``size`` bytes (blake2b of their unambiguous text form)."""
    return hashlib.blake2b(repr(fields).encode(), digest_size=size).digest()


class Draws:
    """A stream of random numbers that depends on its key ``fields`` and on nothing else."""

    def __init__(self, *fields: str | int) -> None:
        """Start the stream of ``fields``; any change of a field gives an unrelated stream."""
        self._bits = np.random.Philox(key=int.from_bytes(digest(*fields), "little"))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in ``[low, high)`` with 53 random bits."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def integer(self, stop: int) -> int:
        """Return a whole number in ``[0, stop)``; ``stop`` is below 2**53."""
        return min(math.floor(self.uniform() * stop), stop - 1)

    def choice(self, items: Sequence[T]) -> T:
        """Return one of ``items``, each with the same probability."""
        return items[self.integer(len(items))]
