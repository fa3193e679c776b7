"""The discriminator of GLOBER's coherence and realism loss (Sun et al. 2023, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.nn import SelfAttention, checkpoint, over_time
from vidgen.nn.zero import zeroed

__all__ = ["PairDiscriminator"]

Pairs = Float[Tensor, "b c 2 h w"]
Changed = Float[Tensor, "b d 2 g k"]
SLOT_STD = 0.1
"""Of the slots' embeddings at first: visible beside frames of unit variance, and not as loud as they are."""


class PairDiscriminator(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """Two frames of a video, the earlier one first, to one logit: high where both are real and in order.

    A learned embedding of each slot is added to its frame (e_0 and e_1 in the paper). A 3D convolution; then
    per level a residual block, attention, and a 3D convolution that halves height and width; a 3D convolution,
    the mean over frames and pixels, and a linear layer.

    The paper publishes no sizes. With 40.2M parameters on latents (``PairDiscriminator.latent``) and 8.3M on
    pixels (``.pixel``) this is the released code's size: one residual block per level with 2D
    convolutions in each frame, and kernels of 3 x 3 x 3 where the two frames are convolved together (stem,
    downsampling, tail), which hold half of the latent version's parameters. Embeddings have the size of a
    frame. Attention is over all pixels of both frames; on the fine levels of pixels, where that would be 32,768
    tokens of a 256 x 256 pair, it is over the two frames at each pixel.

    Args:
        in_channels: channels of a frame.
        sample_size: side, or (height, width), of the frames.
        width: channels of the first level.
        multipliers: channels of each level over ``width``.
        full_levels: levels (from 0) with attention over all pixels of both frames.
        time_levels: levels with attention over the two frames at each pixel, before the other kind.
        layers: residual blocks per level, each followed by the level's attention.
        head_dim: width of an attention head.

    Raises:
        InvalidArgumentError: no level, or levels with attention that do not exist.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 4,
        sample_size: int | Sequence[int] = 32,
        width: int = 256,
        multipliers: Sequence[int] = (1, 1, 2, 2, 2),
        full_levels: Collection[int] = (1, 2, 3, 4),
        time_levels: Collection[int] = (),
        layers: int = 1,
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        _check_levels(multipliers, {*full_levels, *time_levels}, layers)
        height, across = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        self.slots = nn.Parameter(SLOT_STD * torch.randn(in_channels, 2, height, across))
        self.stem = nn.Conv3d(in_channels, width, 3, padding=1)
        self.levels = nn.ModuleList()
        channels = width
        for level, multiplier in enumerate(multipliers):
            parts: list[nn.Module] = []
            for _ in range(layers):
                parts.append(_FrameResidual(channels, width * multiplier))
                channels = width * multiplier
                kinds = [_TimeAttention] * (level in time_levels) + [_FullAttention] * (level in full_levels)
                parts += [kind(channels, head_dim) for kind in kinds]
            if level < len(multipliers) - 1:
                parts.append(nn.Conv3d(channels, channels, 3, stride=(1, 2, 2), padding=1))
            self.levels.append(_Level(parts))
        self.tail = nn.Conv3d(channels, width, 3, padding=1)
        self.logit = nn.Linear(width, 1)

    @classmethod
    def latent(cls, in_channels: int = 4, sample_size: int | Sequence[int] = 32) -> PairDiscriminator:
        """The version that judges latents: width 256, 40.2M parameters."""
        return cls(in_channels=in_channels, sample_size=sample_size)  # type: ignore[no-any-return]

    @classmethod
    def pixel(cls, sample_size: int | Sequence[int] = 256) -> PairDiscriminator:
        """The version that judges frames decoded to pixels: width 64, 8.3M parameters."""
        return cls(  # type: ignore[no-any-return]
            in_channels=3,
            sample_size=sample_size,
            width=64,
            multipliers=(1, 2, 3, 4, 4),
            full_levels=(4,),
            time_levels=(1, 2, 3, 4),
        )

    def forward(self, pairs: Pairs) -> Float[Tensor, " b"]:
        """One logit per pair.

        Args:
            pairs: two frames in the order that is claimed for them; gradients reach them.

        Raises:
            InvalidArgumentError: frames of another size or number of channels.
        """
        if pairs.shape[1:] != self.slots.shape:
            raise InvalidArgumentError(
                f"pairs of shape {tuple(pairs.shape)} were given to a discriminator of pairs "
                f"{('b', *self.slots.shape)}; set in_channels and sample_size to those of the frames."
            )
        hidden = self.stem(pairs.to(self.slots.dtype) + self.slots)
        for level in self.levels:
            hidden = level(hidden)
        # No norm here: over pixels and frames it would take away what the mean is to tell.
        hidden = functional.silu(self.tail(hidden))
        logits: Tensor = self.logit(hidden.mean((2, 3, 4)))[:, 0]
        return logits

    def enable_gradient_checkpointing(
        self, gradient_checkpointing_func: Callable[..., Any] = checkpoint
    ) -> None:
        """Recompute the levels in the backward pass, by default with the backend of the forward pass."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func)


class _Level(nn.Module):
    """The layers of one level, one after the other."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)
        # diffusers' names: `enable_gradient_checkpointing` of the owning model sets both.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] = checkpoint

    def forward(self, pairs: Pairs) -> Changed:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.parts, pairs)
        return self.parts(pairs)  # type: ignore[no-any-return]


class _FrameResidual(nn.Module):
    """Two 2D convolutions in each frame beside the identity, or beside a 1 x 1 convolution to another width."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_groups(given), given), nn.Conv2d(given, made, 3, padding=1)
        self.norm2, self.conv2 = (
            nn.GroupNorm(_groups(made), made),
            zeroed(nn.Conv2d(made, made, 3, padding=1)),
        )
        self.skip = nn.Identity() if given == made else nn.Conv2d(given, made, 1)

    def forward(self, pairs: Pairs) -> Changed:
        frames = rearrange(pairs, "b c f h w -> (b f) c h w")
        inner = self.conv1(functional.silu(self.norm1(frames)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        result: Tensor = rearrange(self.skip(frames) + inner, "(b f) c h w -> b c f h w", f=2)
        return result


class _FullAttention(nn.Module):
    """Attention over all pixels of both frames, added."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.attention = SelfAttention(channels, _heads(channels, head_dim), bias=True, zero_init=True)

    def forward(self, pairs: Pairs) -> Pairs:
        _, _, _, h, w = pairs.shape
        tokens = self.attention(rearrange(self.norm(pairs), "b c f h w -> b (f h w) c"))
        change: Tensor = rearrange(tokens, "b (f h w) c -> b c f h w", h=h, w=w)
        return pairs + change


class _TimeAttention(_FullAttention):
    """Attention over the two frames at each pixel, added."""

    def forward(self, pairs: Pairs) -> Pairs:
        frames = rearrange(self.norm(pairs), "b c f h w -> (b f) c h w")
        change: Tensor = rearrange(over_time(self.attention, frames, 2), "(b f) c h w -> b c f h w", f=2)
        return pairs + change


def _groups(channels: int) -> int:
    return math.gcd(32, channels)


def _heads(channels: int, head_dim: int) -> int:
    return math.gcd(channels, max(1, channels // head_dim))


def _check_levels(multipliers: Sequence[int], attended: Collection[int], layers: int) -> None:
    unknown = set(attended) - set(range(len(multipliers)))
    if not multipliers or unknown or layers < 1:
        raise InvalidArgumentError(
            f"multipliers={tuple(multipliers)}, layers={layers} and attention on levels {sorted(attended)}: "
            "give at least one level and one layer, and attention on levels that there are."
        )
