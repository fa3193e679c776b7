"""What the classifier is to say: exact ground truth of the shapes data, and how numbers are coded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES
from vidgen.shapes.synthetic import ShapesSource

__all__ = [
    "MAX_BLUR",
    "MAX_FLICKER",
    "MAX_NOISE",
    "NAMES",
    "PATH_SCALE",
    "Targets",
    "decode_noise",
    "decode_positions",
    "encode_noise",
    "encode_positions",
    "path_statistics",
    "targets_of",
]

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "motion": MOTIONS,
        "background": tuple(BACKGROUNDS),
        "size": tuple(SIZES),
    }
)
"""What is told apart, and the classes of each in the order of the logits."""

NOISE_FLOOR = 0.01
MAX_NOISE = 0.3
MAX_BLUR = 2.0
MAX_FLICKER = 0.4
PATH_SCALE = 0.1
"""A number of sides that is coded as 1: twice what the fastest object moves in a frame."""


@dataclass(frozen=True)
class Targets:
    """Ground truth of clips with one object each: class indices and where it is.

    ``positions`` are ``(x, y)`` in frame sides in [0, 1), on the torus.
    """

    shape: Int64[Tensor, " b"]
    colour: Int64[Tensor, " b"]
    motion: Int64[Tensor, " b"]
    background: Int64[Tensor, " b"]
    size: Int64[Tensor, " b"]
    positions: Float[Tensor, "b f 2"]

    def to(self, device: torch.device | str) -> Targets:
        """Return the same on ``device``."""
        return Targets(**{name: value.to(device) for name, value in vars(self).items()})


def targets_of(source: ShapesSource, index: Sequence[int], frames: Sequence[Sequence[int]]) -> Targets:
    """Return the ground truth of clips of ``source``.

    Args:
        source: the data; each video has one object.
        index: the video of each clip.
        frames: the absolute frame numbers of each clip, equally many for all.

    Raises:
        InvalidArgumentError: a video with several objects, or one or a frame that is not there.
    """
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    places = []
    for video, numbers in zip(index, frames, strict=True):
        truth = source.truth(int(video), [int(number) for number in numbers])
        if len(truth.shapes) != 1:
            raise InvalidArgumentError(
                f"video {int(video)} shows {len(truth.shapes)} objects; the classifier reads one. Give shapes "
                "data with objects=(1, 1)."
            )
        said = {
            "shape": truth.shapes[0],
            "colour": truth.colours[0],
            "motion": truth.motions[0][0],
            "background": truth.background,
            "size": truth.sizes[0],
        }
        for name, known in NAMES.items():
            found[name].append(known.index(said[name]))
        # Pixels count from the centre of the first one.
        places.append((truth.positions[:, 0] + 0.5) / source.size)
    positions = torch.from_numpy(np.stack(places)).float().remainder(1.0)
    return Targets(**{name: torch.tensor(values) for name, values in found.items()}, positions=positions)


def encode_positions(positions: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 4"]:
    """Return ``(cos x, sin x, cos y, sin y)`` of positions in sides: a code without a border."""
    angles = 2 * math.pi * positions
    return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)


def decode_positions(code: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 2"]:
    """Return positions in sides, in [0, 1); the code's two lengths do not matter."""
    pairs = code.unflatten(-1, (2, 2))
    turns = torch.atan2(pairs[..., 1], pairs[..., 0]) / (2 * math.pi)
    # A tiny negative turn rounds to 1, which is 0.
    return turns.remainder(1.0).remainder(1.0)


def encode_noise(sigma: Tensor) -> Tensor:
    """Return a code in [0, 1] for noise up to 0.3, which tells the small strengths apart."""
    return torch.log1p(sigma / NOISE_FLOOR) / math.log1p(MAX_NOISE / NOISE_FLOOR)


def decode_noise(code: Tensor) -> Tensor:
    """Return the strength that ``encode_noise`` coded, 0 or more."""
    return NOISE_FLOOR * torch.expm1(code.clamp_min(0) * math.log1p(MAX_NOISE / NOISE_FLOOR))


def path_statistics(positions: Float[Tensor, "b f 2"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return the speed and the roughness of paths on the torus, in sides.

    Speed is the mean distance from frame to frame, roughness the mean size of the second difference: 0
    for an object that stands or moves straight, small on a circle, large where frames jump, stand still
    or come in another order. Fewer than three frames have roughness 0.

    Raises:
        InvalidArgumentError: fewer than two frames.
    """
    if positions.shape[1] < 2:
        raise InvalidArgumentError(f"a path of {positions.shape[1]} frame(s) has no speed; give 2 or more.")
    steps = positions.diff(dim=1)
    steps = (steps + 0.5).remainder(1.0) - 0.5
    speed = steps.norm(dim=-1).mean(dim=1)
    if steps.shape[1] < 2:
        return speed, torch.zeros_like(speed)
    return speed, steps.diff(dim=1).norm(dim=-1).mean(dim=1)
