"""The baseline's configuration and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vidgen.denoising import UNetConfig
from vidgen.errors import InvalidArgumentError

__all__ = ["VDMConfig", "VDMOptions"]


@dataclass(frozen=True)
class VDMConfig(UNetConfig):
    """What a ``vdm`` is; the fields that come first are ``UNetConfig``'s.

    Args:
        context: latent frames that each window of a longer video shares with the one before it.
        mask_past: share of training clips whose first frames are given clean.
        mask_random: share of training clips with a random set of given frames.
        mask_single: share of training clips with one given frame, the first in half of them. Where an object
            is now and the prompt say where it will be: so a small model learns directions soonest.
        first_frame_steps: training steps at the start in which the first frame of every clip is given and
            nothing else: the model learns image-to-video before text-to-video.
        joint_middle: attention over all pixels of all frames together in the middle block, after the factorised
            attention: an object that moves then keeps its colour and size. The paper has none.
    """

    context: int = 4
    mask_past: float = 0.4
    mask_random: float = 0.1
    mask_single: float = 0.0
    first_frame_steps: int = 0
    joint_middle: bool = False

    def __post_init__(self) -> None:
        """Check what annotations cannot say."""
        super().__post_init__()
        shares = (self.mask_past, self.mask_random, self.mask_single)
        if min(shares) < 0 or sum(shares) > 1:
            raise InvalidArgumentError(
                f"mask_past={self.mask_past}, mask_random={self.mask_random} and "
                f"mask_single={self.mask_single} are shares of the clips; expected 0 or more, together at "
                "most 1."
            )
        if self.first_frame_steps < 0:
            raise InvalidArgumentError(f"first_frame_steps is {self.first_frame_steps}; expected 0 or more.")
        if not 0 < self.context < self.sample_frames and self.sample_frames > 1:
            raise InvalidArgumentError(
                f"context is {self.context}; expected 1 to {self.sample_frames - 1} of the "
                f"{self.sample_frames} frames of a clip."
            )

    @property
    def takes_frames(self) -> bool:
        """Whether the network was trained with given clean frames."""
        return self.mask_past + self.mask_random + self.mask_single + self.first_frame_steps > 0


@dataclass(frozen=True)
class VDMOptions:
    """What may be chosen for every generation.

    Args:
        given: how given frames steer a call: ``"clean"`` hands them to the network as they are,
            ``"replacement"`` overwrites them with their noised selves at every solver step (Ho et al. 2022,
            section 3.1), ``"auto"`` is clean where the network was trained for it.
    """

    given: Literal["auto", "clean", "replacement"] = "auto"
