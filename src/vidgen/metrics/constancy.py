"""What stays the same over a video that shows one object on a plain background: its hue, its size, one colour.

Prompt accuracy does not see these: an object that is red in most frames and yellow in the others is read as
red. The object is what differs from the frame's median colour, as on the shapes data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["DIFFERENT", "HUE_DEGREES", "LEAST_FRAMES", "SIZE_RATIO", "Constancy", "measure_constancy"]

HUE_DEGREES = 5.0
"""How far the hue of a frame's object may be from the video's mean where the hue is kept."""

SIZE_RATIO = 1.1 / 0.9
"""The largest over the smallest area of the object where the size is kept: within a tenth either way."""

LEAST_FRAMES = 6
"""Frames of a longer video in which the object must be whole; in fewer nothing is measured."""

DIFFERENT = 0.25
"""From the background, of 1: a pixel of the object or of its soft edge."""

_INSIDE = 0.6  # of the largest difference: a pixel within the object, whose hue counts
_OTHER_HUE = math.radians(20)
_MIXED = 0.05  # share of a frame's pixels that may have another hue
_LEAST_PIXELS = 8


@dataclass(frozen=True)
class Constancy:
    """Measurements of ``b`` videos; NaN where the object is whole in too few frames.

    Attributes:
        hue: largest distance of a frame's hue from the video's mean, in degrees.
        size: largest over smallest area of the object.
        mixed: largest share of a frame's pixels within the object whose hue is more than 20 degrees from the
            object's.
    """

    hue: Float[Tensor, " b"]
    size: Float[Tensor, " b"]
    mixed: Float[Tensor, " b"]

    @property
    def measured(self) -> Bool[Tensor, " b"]:
        """Which videos have values."""
        return ~self.hue.isnan()

    @property
    def kept(self) -> dict[str, Bool[Tensor, " n"]]:
        """Of the ``n`` measured videos: whose object keeps its hue, keeps its size, is of one colour."""
        hue, size, mixed = (values[self.measured] for values in (self.hue, self.size, self.mixed))
        return {"hue": hue <= HUE_DEGREES, "size": size <= SIZE_RATIO, "one_colour": mixed <= _MIXED}


@torch.no_grad()
def measure_constancy(clips: Float[Tensor, "b 3 f h w"]) -> Constancy:
    """Measure videos of one coloured object on a plain background, by segmentation.

    Frames in which the object touches the border count for nothing: part of it is out of the picture. Hues
    are angles in the plane of equal brightness, areas count soft edges by their strength.

    Args:
        clips: pixels in [-1, 1]. A clip of one frame, an image, has hue and size 0 and 1 by definition.
    """
    least = min(LEAST_FRAMES, clips.shape[2])
    found = [_measure(clip, least) for clip in clips.detach().float().cpu()]
    hue, size, mixed = torch.tensor(found, dtype=torch.float32).reshape(-1, 3).unbind(1)
    return Constancy(hue, size, mixed)


def _measure(clip: Float[Tensor, "3 f h w"], least: int) -> tuple[float, float, float]:
    frames = (clip.transpose(0, 1) + 1) / 2
    background = frames.flatten(2).median(2).values[..., None, None]
    away = (frames - background).abs().amax(1)
    object_ = away > DIFFERENT
    border = object_[:, [0, -1]].any((1, 2)) | object_[:, :, [0, -1]].any((1, 2))
    whole = ~border & (object_.sum((1, 2)) >= _LEAST_PIXELS)
    if whole.sum() < least:
        return (math.nan,) * 3
    frames, away, object_ = frames[whole], away[whole], object_[whole]
    # A pixel of the edge counts as the share of the object's colour in it.
    full = torch.where(object_, away, torch.nan).flatten(1).nanquantile(0.8, dim=1)[:, None, None]
    areas = ((away / full).clamp_max(1) * object_).sum((1, 2))
    inside = away > _INSIDE * away.amax((1, 2), keepdim=True)
    hues = _directions(frames) * inside
    mean = _unit(hues.sum((1, 2)))
    other = ((hues / mean[:, None, None]).angle().abs() > _OTHER_HUE) & inside
    mixed = other.sum((1, 2)) / inside.sum((1, 2))
    hue = (mean / _unit(mean.sum())).angle().abs().max()
    return math.degrees(float(hue)), float(areas.max() / areas.min()), float(mixed.max())


def _directions(frames: Float[Tensor, "f 3 h w"]) -> Tensor:
    """Return each pixel's hue as a complex number of length 1, ``f h w``; 1 of a grey one."""
    red, green, blue = frames.unbind(1)
    return _unit(torch.complex(red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue)))


def _unit(numbers: Tensor) -> Tensor:
    length = numbers.abs()
    return torch.where(length > 0, numbers / length, torch.ones_like(numbers))
