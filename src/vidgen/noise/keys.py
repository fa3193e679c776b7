"""Random numbers named by a key, so that they depend on nothing else.

A key is (seed, stream, level) plus a frame. Its 128-bit hash keys NumPy's Philox, because
torch's CPU generator keeps only 32 bits of a seed. Equal keys give equal numbers whatever was
drawn before, in whatever process.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError

__all__ = ["NoiseKey", "normal", "seeds_from"]

_SEEDS = 1 << 63


@dataclass(frozen=True)
class NoiseKey:
    """The name of a family of random numbers, one sequence per frame.

    Args:
        seed: of one video, 0 to 2^63 - 1.
        stream: what the numbers are for: ``"start"``, ``"step-3"``, ``"condition"``, ...
        level: the plan's level whose frames they belong to.

    Raises:
        InvalidArgumentError: the seed is out of range.
    """

    seed: int
    stream: str
    level: str

    def __post_init__(self) -> None:
        """Check the seed."""
        _check_seed(self.seed)

    def with_stream(self, stream: str) -> NoiseKey:
        """The key of the same video and level for another purpose."""
        return replace(self, stream=stream)

    def generator(self, frame: int | str) -> np.random.Generator:
        """A fresh generator for one frame, or for a name that stands for no single frame.

        Frame 1 and name ``"1"`` differ. Frames may be negative (numbers before the video).
        """
        # JSON quotes and separates the parts, so no two keys share an encoding
        name = frame if isinstance(frame, str) else int(frame)
        text = json.dumps([int(self.seed), self.stream, self.level, name])
        digest = blake2b(text.encode(), digest_size=16, person=b"vidgen.noise.v1").digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal(key: NoiseKey, frame: int | str, shape: tuple[int, ...]) -> Float[Tensor, "*shape"]:
    """Standard normal float32 numbers of a frame, on the CPU."""
    return torch.from_numpy(key.generator(frame).standard_normal(shape, dtype=np.float32))


def seeds_from(
    generator: torch.Generator | Sequence[torch.Generator] | None, seed: int | None, count: int
) -> list[int]:
    """One 63-bit seed per video, from diffusers' ``generator`` or from ``seed``.

    * ``seed=s``: video i has seed ``s + i`` (modulo 2^63).
    * one generator that is still fresh: the same with its initial seed, so that ``seed=s``
      equals ``torch.Generator().manual_seed(s)``.
    * one generator that was used before: one seed is drawn from it per video.
    * a list: one generator per video; a fresh one gives its initial seed, else one is drawn.
    * neither: as ``seed`` with a base from the operating system; keep the result to repeat it.

    Every generator advances by one draw per video, so that using it again gives other videos.

    Args:
        generator: of any device; excludes ``seed``.
        seed: 0 to 2^63 - 1; excludes ``generator``.
        count: videos (>= 1).

    Raises:
        InvalidArgumentError: both are given, or the seed, the count or the list does not fit.
    """
    if count < 1:
        raise InvalidArgumentError(f"count={count} videos asked for; ask for at least 1.")
    if generator is None:
        return _consecutive(secrets.randbelow(_SEEDS) if seed is None else seed, count)
    if seed is not None:
        raise InvalidArgumentError(
            f"seed={seed} and a generator were given; give one of them (seed=s equals "
            "torch.Generator().manual_seed(s))."
        )
    if isinstance(generator, torch.Generator):
        return _read(generator, count)
    if len(generator) != count:
        raise InvalidArgumentError(
            f"{len(generator)} generators were given for {count} videos; give one per video, or "
            "a single one for all."
        )
    return [_read(each, 1)[0] for each in generator]


def _read(generator: torch.Generator, count: int) -> list[int]:
    """Seeds from one generator, which advances by ``count`` draws."""
    initial = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(initial)
    unused = torch.equal(fresh.get_state(), generator.get_state())
    drawn = [
        int(torch.randint(_SEEDS - 1, (), generator=generator, device=generator.device)) for _ in range(count)
    ]
    return _consecutive(initial % _SEEDS, count) if unused else drawn


def _consecutive(base: int, count: int) -> list[int]:
    _check_seed(base)
    return [(base + index) % _SEEDS for index in range(count)]


def _check_seed(seed: int) -> None:
    if not 0 <= seed < _SEEDS:
        raise InvalidArgumentError(f"seed={seed} was given; seeds are 0 to 2^63 - 1.")
