"""Layers along time for frame batches: each is exactly the identity until it is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import get_timestep_embedding
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.nn.checkpointing import checkpoint
from vidgen.nn.rearrange import check_frames, over_time
from vidgen.nn.transformer import SelfAttention
from vidgen.nn.zero import zeroed
from vidgen.shapes import FrameBatch, Tokens

__all__ = ["TemporalAttention", "TemporalConv"]


class TemporalConv(nn.Module):
    """Two convolutions over five neighbouring frames at each pixel, added to their input.

    The group normalisation takes its statistics from one frame at a time: what a frame looks like
    to its neighbours does not depend on how many frames a call has. Frames outside the call count
    as zeros. The last convolution starts at zero.

    Args:
        channels: ``c``.
        norm_groups: groups of the normalisation; they divide ``channels``.
    """

    def __init__(self, channels: int, norm_groups: int = 8) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels)
        # A 1D convolution over f, written as 2D over (f, h*w): pixels stay contiguous.
        self.conv_in = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv_out = zeroed(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))

    def forward(self, frames: FrameBatch, num_frames: int) -> FrameBatch:
        """Mix each frame with its neighbours; ``frames`` is ``(b f) c h w``, f = ``num_frames``."""
        check_frames(frames, num_frames)
        height = frames.shape[-2]
        hidden = functional.silu(self.norm(frames))
        hidden = rearrange(hidden, "(b f) c h w -> b c f (h w)", f=num_frames)
        hidden = self.conv_out(functional.silu(self.conv_in(hidden)))
        change: Tensor = rearrange(hidden, "b c f (h w) -> (b f) c h w", h=height)
        return frames + change


class TemporalAttention(nn.Module):
    """Self-attention over the frames of a call at each pixel, added to its input.

    Sinusoidal embeddings of the position within the call make the order of frames visible. The
    output projection starts at zero.

    Args:
        channels: ``c``.
        head_dim: features of one head; ``channels // head_dim`` heads, at least one.
    """

    def __init__(self, channels: int, head_dim: int = 32) -> None:
        super().__init__()
        heads = max(1, channels // head_dim)
        if channels % heads:
            raise InvalidArgumentError(
                f"{channels} channels do not split into heads of {head_dim}; choose a head_dim "
                f"that divides {channels}."
            )
        self.norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads, zero_init=True)
        # diffusers' names: `enable_gradient_checkpointing` of the owning model sets both.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] = checkpoint

    def forward(self, frames: FrameBatch, num_frames: int) -> FrameBatch:
        """Let each pixel look along time; ``frames`` is ``(b f) c h w``, f = ``num_frames``."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return frames + self._gradient_checkpointing_func(self.change, frames, num_frames)
        return frames + self.change(frames, num_frames)

    def change(self, frames: FrameBatch, num_frames: int) -> FrameBatch:
        """What ``forward`` adds to its input."""
        return over_time(self._attend, frames, num_frames)

    def _attend(self, sequences: Tokens) -> Tokens:
        hidden = self.norm(sequences)
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        hidden = hidden + get_timestep_embedding(positions, hidden.shape[-1]).to(hidden.dtype)
        return self.attention(hidden)  # type: ignore[no-any-return]
