"""Keyed random numbers and noise priors over the frames of a video."""

from __future__ import annotations

from vidgen.noise.autoregressive import Progressive
from vidgen.noise.keys import NoiseKey, normal, seeds_from
from vidgen.noise.prior import NoisePrior
from vidgen.noise.shared import Decomposed, Independent, Mixed
from vidgen.noise.shuffled import WindowedShuffle

__all__ = [
    "Decomposed",
    "Independent",
    "Mixed",
    "NoiseKey",
    "NoisePrior",
    "Progressive",
    "WindowedShuffle",
    "normal",
    "seeds_from",
]
