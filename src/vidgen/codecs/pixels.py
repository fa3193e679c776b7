"""The codec without a network: normalised pixels, small patches folded into channels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor

from vidgen.codecs.base import EncodedFrames, FrameCodec
from vidgen.codecs.moments import Moments
from vidgen.errors import InvalidArgumentError
from vidgen.tensors import FrameBatch

__all__ = ["PixelCodec", "measure"]


class PixelCodec(FrameCodec, ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """Latents are pixels: ``(x - mean) / std``, each ``patch`` x ``patch`` square as channels.

    It is inverted exactly, up to float rounding. Folding (space to depth) trades resolution for
    channels, which is what makes a network over whole frames affordable.

    Args:
        patch: side of a square in pixels; latents have ``3 * patch**2`` channels.
        mean: mean of the data's pixels in [-1, 1], over all channels.
        std: their standard deviation, above 0 (``measure`` finds both).

    Raises:
        InvalidArgumentError: ``patch`` below 1, or ``mean`` or ``std`` that are not usable.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, patch: int = 1, mean: float = 0.0, std: float = 0.5) -> None:
        super().__init__()
        if patch < 1:
            raise InvalidArgumentError(f"patch is {patch}; give a side of 1 pixel or more.")
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise InvalidArgumentError(
                f"mean {mean} and std {std} cannot normalise pixels; both must be finite and std "
                "above 0. `vidgen.codecs.measure(clips)` finds them."
            )
        self._patch, self._mean, self._std = patch, mean, std
        # There is nothing to learn: this only gives the component a device, a dtype and a file.
        self.register_buffer("anchor", torch.zeros(1))

    @classmethod
    def fit(cls, clips: Iterable[Tensor], patch: int = 1) -> PixelCodec:
        """A codec with the mean and standard deviation of ``clips``; see ``measure``."""
        mean, std = measure(clips)
        codec: PixelCodec = cls(patch=patch, mean=mean, std=std)
        return codec

    @property
    def channels(self) -> int:
        """Three colours of each pixel in a patch."""
        return 3 * self._patch**2

    @property
    def space_factor(self) -> int:
        """The side of a patch."""
        return self._patch

    def encode_frames(self, frames: FrameBatch) -> EncodedFrames:
        """Normalise, then fold patches into channels."""
        p = self._patch
        folded = rearrange(frames, "n c (h p) (w q) -> n (c p q) h w", p=p, q=p)
        return (folded - self._mean) / self._std

    def decode_frames(self, latents: EncodedFrames) -> FrameBatch:
        """Unfold channels into patches, then undo the normalisation."""
        p = self._patch
        frames = rearrange(latents, "n (c p q) h w -> n c (h p) (w q)", p=p, q=p)
        return frames * self._std + self._mean


def measure(clips: Iterable[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of ``clips``, read once, one at a time.

    Args:
        clips: clips ``b c f h w`` in [-1, 1]; sizes and lengths may differ.

    Raises:
        InvalidArgumentError: no clip, a pixel that is not finite, or all pixels equal.
    """
    moments = Moments()
    for clip in clips:
        moments.add(clip.reshape(1, -1))
    (mean,), (std,) = moments.result()
    return mean, std
