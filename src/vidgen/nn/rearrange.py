"""Space, time and the token sequences that attention works on.

A layer of token sequences ``b n d -> b n d`` becomes one over the pixels of each frame or over the
frames at each pixel by how a clip is laid out for it.
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.tensors import FrameBatch

__all__ = ["check_frames", "over_space", "over_time"]

TokenLayer = Callable[[Tensor], Tensor]


def over_space(layer: TokenLayer, frames: FrameBatch) -> FrameBatch:
    """``layer`` over the pixels of each frame: sequences ``(b f) (h w) c``, row by row.

    Args:
        layer: from token sequences to as many of the same width.
        frames: ``(b f) c h w``.
    """
    width = frames.shape[-1]
    tokens = layer(rearrange(frames, "b c h w -> b (h w) c"))
    return rearrange(tokens, "b (h w) c -> b c h w", w=width)


def over_time(layer: TokenLayer, frames: FrameBatch, num_frames: int) -> FrameBatch:
    """``layer`` over the frames at each pixel: sequences ``(b h w) f c``.

    Args:
        layer: from token sequences to as many of the same width.
        frames: ``(b f) c h w``, the frames of a clip one after the other.
        num_frames: ``f``.

    Raises:
        InvalidArgumentError: the batch is no whole number of clips of ``num_frames`` frames.
    """
    check_frames(frames, num_frames)
    height, width = frames.shape[-2:]
    tokens = layer(rearrange(frames, "(b f) c h w -> (b h w) f c", f=num_frames))
    return rearrange(tokens, "(b h w) f c -> (b f) c h w", h=height, w=width)


def check_frames(frames: Float[Tensor, "bf c h w"], num_frames: int) -> None:
    """Raise unless ``frames`` are whole clips of ``num_frames`` frames.

    Raises:
        InvalidArgumentError: they are not.
    """
    if num_frames < 1 or frames.shape[0] % num_frames:
        raise InvalidArgumentError(
            f"a batch of {frames.shape[0]} frames is no whole number of clips of {num_frames} "
            "frames; flatten clips as '(b f) c h w' and pass their f as num_frames."
        )
