"""2D UNets of Stable Diffusion's layout, from which strategies start."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vidgen.errors import InvalidArgumentError

__all__ = ["build_unet", "check_takes_time_and_tokens", "norm_groups", "times_per_frame", "token_width"]


def build_unet(
    in_channels: int,
    out_channels: int,
    sample_size: int,
    widths: Sequence[int] = (32, 64),
    layers_per_block: int = 1,
    attention_levels: Collection[int] = (1,),
    cross_attention_dim: int = 64,
    head_dim: int = 32,
    heads: int | None = None,
    pooled_text: bool = False,
) -> UNet2DConditionModel:
    """A fresh 2D UNet of Stable Diffusion's layout, as small as wished.

    Args:
        in_channels: channels it reads: those of the latents, and of what else is given with them.
        out_channels: channels it predicts.
        sample_size: height and width of the latents it is made for, in latent pixels.
        widths: channels of each level; the resolution halves from one to the next.
        layers_per_block: residual blocks per level.
        attention_levels: levels (from 0) with spatial and cross-attention; the middle always has.
        cross_attention_dim: features of a token.
        head_dim: features of an attention head.
        heads: attention heads of every level instead, as Stable Diffusion 1 has 8.
        pooled_text: also add the pooled prompt to the time embedding, which reaches every residual
            block (Ho et al. 2022, section 3); Stable Diffusion's layout has cross-attention alone.

    Raises:
        InvalidArgumentError: no level, a level that does not exist, or heads that do not fit.
    """
    unknown = set(attention_levels) - set(range(len(widths)))
    unfit = [width for width in widths if width % (heads or min(head_dim, width))]
    if not widths or unknown or unfit:
        raise InvalidArgumentError(
            f"widths={tuple(widths)}, attention_levels={tuple(attention_levels)}, head_dim={head_dim}, "
            f"heads={heads}: give at least one width, levels below their number, and a head_dim (or heads) "
            "that divides every width."
        )
    down = ["CrossAttnDownBlock2D" if i in attention_levels else "DownBlock2D" for i in _up_to(widths)]
    up = ["CrossAttnUpBlock2D" if i in attention_levels else "UpBlock2D" for i in _up_to(widths)]
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(reversed(up)),
        block_out_channels=tuple(widths),
        layers_per_block=layers_per_block,
        cross_attention_dim=cross_attention_dim,
        # Despite its name, diffusers reads the number of heads here (diffusers issue 2011).
        attention_head_dim=tuple(heads or max(1, width // head_dim) for width in widths),
        norm_num_groups=norm_groups(widths),
        addition_embed_type="text" if pooled_text else None,
        addition_embed_type_num_heads=cross_attention_dim // math.gcd(cross_attention_dim, head_dim),
    )


def token_width(unet: UNet2DConditionModel) -> int:
    """Return the features of a prompt's token that ``unet`` reads."""
    return int(unet.config.encoder_hid_dim or unet.config.cross_attention_dim)


def check_takes_time_and_tokens(unet: UNet2DConditionModel) -> None:
    """Refuse a UNet that needs to be told more than the time and a prompt's tokens.

    Raises:
        InvalidArgumentError: it needs class labels, added embeddings, or tokens of several widths.
    """
    asked = [name for name in ("class_embed_type", "num_class_embeds") if unet.config.get(name) is not None]
    if unet.config.get("addition_embed_type") not in (None, "text"):  # "text" pools the tokens themselves
        asked.append("addition_embed_type")
    if asked or not isinstance(unet.config.cross_attention_dim, int):
        raise InvalidArgumentError(
            "this UNet needs more than time and tokens, which is all that a denoiser of videos is given: "
            f"{', '.join(asked) or 'several widths of cross_attention_dim'} in its config. Use one of Stable "
            "Diffusion 1 or 2's layout, or build_unet(...)."
        )


def times_per_frame(t: Tensor | float | int, batch: int, frames: int, device: torch.device) -> Tensor:
    """Return the timesteps ``t`` (a scalar, one per video, or one per frame) as ``b f``.

    Raises:
        InvalidArgumentError: ``t`` has another shape.
    """
    times = torch.as_tensor(t, device=device)
    if times.ndim == 1:
        times = times[:, None]
    if times.ndim > 2 or (times.ndim == 2 and times.shape not in ((batch, 1), (batch, frames))):
        raise InvalidArgumentError(
            f"timesteps of shape {tuple(times.shape)} do not fit {batch} videos of {frames} frames; give a "
            "scalar, one per video (b,), or one per frame (b, f)."
        )
    return times.expand(batch, frames)


def _up_to(widths: Sequence[int]) -> range:
    return range(len(widths))


def norm_groups(widths: Sequence[int]) -> int:
    """Return how many groups divide every width: up to 32, each of 4 channels or more where possible."""
    common = math.gcd(*widths)
    most = max(1, min(32, min(widths) // 4))
    return max(groups for groups in range(1, most + 1) if common % groups == 0)
