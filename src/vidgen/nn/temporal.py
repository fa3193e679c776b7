"""Layers along time for frame batches: each is exactly the identity until it is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import get_timestep_embedding
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.nn.checkpointing import checkpoint
from vidgen.nn.rearrange import check_frames, over_time
from vidgen.nn.transformer import SelfAttention
from vidgen.nn.zero import zeroed
from vidgen.tensors import FrameBatch, Tokens

__all__ = ["SpaceTimeAttention", "TemporalAttention", "TemporalConv"]


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
        return self._attend_at(sequences, _embedding(sequences.shape[1], sequences.shape[2], sequences))

    def _attend_at(self, sequences: Tokens, positions: Tensor) -> Tokens:
        return self.attention(self.norm(sequences) + positions)  # type: ignore[no-any-return]


class SpaceTimeAttention(TemporalAttention):
    """Self-attention over all pixels of all frames of a call, added to its input.

    What attention over time at one pixel cannot do at once: an object that moves meets itself in every
    other frame, wherever it is there. It costs the square of all pixels, so it belongs where these are few.
    Half of the position embedding tells frames apart, a quarter rows and a quarter columns. The output
    projection starts at zero.

    Args:
        channels: ``c``, 8 or more.
        head_dim: features of one head; ``channels // head_dim`` heads, at least one.
    """

    def change(self, frames: FrameBatch, num_frames: int) -> FrameBatch:
        """What ``forward`` adds to its input."""
        check_frames(frames, num_frames)
        channels, height, width = frames.shape[1:]
        quarter = channels // 4
        # Without the shift, two channels have an embedding too.
        time = _embedding(num_frames, channels - 2 * quarter, frames, shift=0)
        rows, columns = (_embedding(side, quarter, frames, shift=0) for side in (height, width))
        positions = torch.cat(
            [
                repeat(time, "f c -> (f h w) c", h=height, w=width),
                repeat(rows, "h c -> (f h w) c", f=num_frames, w=width),
                repeat(columns, "w c -> (f h w) c", f=num_frames, h=height),
            ],
            dim=1,
        )
        tokens = rearrange(frames, "(b f) c h w -> b (f h w) c", f=num_frames)
        changed = self._attend_at(tokens, positions)
        return rearrange(changed, "b (f h w) c -> (b f) c h w", f=num_frames, h=height)


def _embedding(count: int, channels: int, like: Tensor, shift: int = 1) -> Float[Tensor, "n c"]:
    """Sinusoidal embeddings of the positions 0 to ``count`` - 1, on the device and in the dtype of ``like``."""
    positions = torch.arange(count, device=like.device)
    return get_timestep_embedding(positions, channels, downscale_freq_shift=shift).to(like.dtype)  # type: ignore[no-any-return]
