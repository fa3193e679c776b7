"""2D UNets of Stable Diffusion's layout, from which strategies start."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from diffusers import UNet2DConditionModel

from vidgen.errors import InvalidArgumentError

__all__ = ["build_unet"]


def build_unet(
    in_channels: int,
    out_channels: int,
    sample_size: int,
    widths: Sequence[int] = (32, 64),
    layers_per_block: int = 1,
    attention_levels: Collection[int] = (1,),
    cross_attention_dim: int = 64,
    head_dim: int = 32,
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
        pooled_text: also add the pooled prompt to the time embedding, which reaches every residual
            block (Ho et al. 2022, section 3); Stable Diffusion's layout has cross-attention alone.

    Raises:
        InvalidArgumentError: no level, a level that does not exist, or heads that do not fit.
    """
    unknown = set(attention_levels) - set(range(len(widths)))
    unfit = [width for width in widths if width % min(head_dim, width)]
    if not widths or unknown or unfit:
        raise InvalidArgumentError(
            f"widths={tuple(widths)}, attention_levels={tuple(attention_levels)}, head_dim="
            f"{head_dim}: give at least one width, levels below their number, and a head_dim that "
            "divides every width."
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
        attention_head_dim=tuple(max(1, width // head_dim) for width in widths),
        norm_num_groups=_norm_groups(widths),
        addition_embed_type="text" if pooled_text else None,
        addition_embed_type_num_heads=cross_attention_dim // math.gcd(cross_attention_dim, head_dim),
    )


def _up_to(widths: Sequence[int]) -> range:
    return range(len(widths))


def _norm_groups(widths: Sequence[int]) -> int:
    """Up to 32 groups as in Stable Diffusion, of 4 channels or more where there are so many."""
    common = math.gcd(*widths)
    most = max(1, min(32, min(widths) // 4))
    return max(groups for groups in range(1, most + 1) if common % groups == 0)
