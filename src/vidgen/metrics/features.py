"""What turns videos into the numbers that distances compare: one interface for every network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FeatureExtractor", "Features"]


@dataclass(frozen=True)
class Features:
    """What an extractor says of ``n`` items: videos, or single frames where it works frame by frame.

    Attributes:
        values: ``n d``, float32, on the CPU.
        logits: ``n k`` of the extractor's classes, where it has any.
    """

    values: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"] | None = None


class FeatureExtractor(ABC):
    """A network that describes videos, with its preprocessing and a name for both.

    Attributes:
        name: part of every metric's key, such as ``"shapes_v1"`` or ``"i3d_k400"``: another network, other
            weights or another preprocessing is another metric.
        per_frame: True where each frame is an item of its own.
        min_frames: the fewest frames of a video.
    """

    name: str
    per_frame: bool = False
    min_frames: int = 1

    @abstractmethod
    def extract(self, clips: Float[Tensor, "b 3 f h w"]) -> Features:
        """Describe videos with pixels in [-1, 1]; of frames, in the order (video, frame).

        The given tensor is not changed. Preprocessing (size, range, normalisation) is the extractor's.

        Raises:
            InvalidArgumentError: too few frames, or not RGB.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network is."""

    @abstractmethod
    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the network and return the extractor itself."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return, in plain JSON values, all that decides the features: name, weight hash, preprocessing."""
