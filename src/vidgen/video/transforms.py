"""From decoded frames to clips: how to scale, where to crop, whether to mirror."""

from __future__ import annotations

import re

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vidgen.video.draws import Draws

__all__ = ["CROPS", "crop_box", "may_mirror", "scaled_size", "to_clip"]

CROPS = ("center", "random", "none")

_SIDES = re.compile(r"\b(left|right|clockwise|counterclockwise|anticlockwise)\b", re.IGNORECASE)


def scaled_size(source: tuple[int, int], size: tuple[int, int], crop: str) -> tuple[int, int]:
    """Return the ``(h, w)`` to scale ``source`` frames to, before cropping to ``size``.

    The smallest size of the source's proportions that covers ``size``; with ``crop="none"`` it is
    ``size`` itself, so the picture is squeezed rather than cropped.
    """
    if crop == "none":
        return size
    scale = max(size[0] / source[0], size[1] / source[1])
    height, width = (round(side * scale) for side in source)
    return max(height, size[0]), max(width, size[1])


def crop_box(scaled: tuple[int, int], size: tuple[int, int], crop: str, draws: Draws) -> tuple[int, int]:
    """Return the top row and left column of the ``size`` crop of ``scaled`` frames."""
    slack = (scaled[0] - size[0], scaled[1] - size[1])
    if crop == "random":
        return draws.integer(slack[0] + 1), draws.integer(slack[1] + 1)
    return slack[0] // 2, slack[1] // 2


def may_mirror(caption: str) -> bool:
    """Say whether a mirrored clip still fits ``caption``: not if it speaks of left or right."""
    return _SIDES.search(caption) is None


def to_clip(frames: UInt8[np.ndarray, "f h w 3"], mirror: bool = False) -> Float[Tensor, "3 f h w"]:
    """Turn RGB frames into a float32 clip in [-1, 1], mirrored left to right if asked."""
    if mirror:
        frames = frames[:, :, ::-1]
    clip = torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))
    return clip.to(torch.float32).div_(127.5).sub_(1.0)
