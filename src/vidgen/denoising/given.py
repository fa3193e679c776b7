"""Given frames: which of a training clip's are, and how a network is told of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.errors import InvalidArgumentError
from vidgen.tensors import KnownMask, Latents
from vidgen.trainable import TrainingStep

__all__ = ["GivenFrames", "mark_given", "sample_known"]


def sample_known(uniform: Tensor, frames: int, past: float, random: float, single: float = 0.0) -> KnownMask:
    """Draw which frames of each clip are given.

    Args:
        uniform: ``(b, frames + 2)`` numbers in [0, 1).
        frames: frames of a clip.
        past: share of clips whose first 1 to ``frames - 1`` frames are given.
        random: share of clips with a random set of given frames (never all).
        single: share of clips with one given frame: the first in half of them, any in the others.
    """
    kind, length, each = uniform[:, 0], uniform[:, 1], uniform[:, 2:]
    index = torch.arange(frames)
    count = 1 + (length * (frames - 1)).long()  # 1 .. frames - 1
    is_past = (kind < past)[:, None] & (index < count[:, None])
    ranks = each.argsort(dim=1).argsort(dim=1)
    is_random = ((kind >= past) & (kind < past + random))[:, None] & (ranks < count[:, None])
    is_single = ((kind >= past + random) & (kind < past + random + single))[:, None]
    place = ((2 * length - 1) * frames).long().clamp(min=0)  # the lower half is the first frame
    return (is_past | is_random | (is_single & (index == place[:, None]))) & (frames > 1)


@dataclass(frozen=True)
class GivenFrames:
    """Which frames of training clips are given.

    Args:
        past, random, single: see ``sample_known``.

    Raises:
        InvalidArgumentError: they are no shares.
    """

    past: float = 0.0
    random: float = 0.0
    single: float = 0.0

    def __post_init__(self) -> None:
        """Check the shares."""
        shares = (self.past, self.random, self.single)
        if min(shares) < 0 or sum(shares) > 1:
            raise InvalidArgumentError(
                f"past={self.past}, random={self.random} and single={self.single} are shares of the clips; "
                "expected 0 or more, together at most 1."
            )

    def draw(self, step: TrainingStep, clips: int, frames: int) -> KnownMask:
        """Draw the mask ``b f`` of this step for ``clips`` clips of ``frames`` frames."""
        uniform = torch.stack([step.uniforms(i, "known", frames + 2) for i in range(clips)])
        return sample_known(uniform, frames, self.past, self.random, self.single)


def mark_given(x_t: Latents, cond: Conditioning) -> Tensor:
    """Return a network's input ``b c+1 f h w``: given frames clean, and marked by 1 in the last channel.

    Frames that the solver itself replaces (``cond.replace``) stay noisy and unmarked.
    """
    mask = torch.zeros_like(x_t[:, :1])
    if cond.known is not None and cond.clean is not None and not cond.replace:
        known = cond.known[:, None, :, None, None]
        x_t = torch.where(known, cond.clean.to(x_t.dtype), x_t)
        mask = known.to(x_t.dtype).expand_as(mask)
    return torch.cat([x_t, mask], dim=1)
