"""GLOBER's video generator (section 3.2): a diffusion transformer that makes the global feature ``v``.

The transformer of Peebles and Xie 2022 (DiT, adaLN-Zero) with a token for every pixel of ``v``, as ``v`` is
small, and the prompt's tokens ahead of them.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn import CrossAttention, SelfAttention
from vidgen.nn.recompute import Recomputed, RecomputingModel
from vidgen.nn.zero import zeroed
from vidgen.tensors import Tokens

__all__ = ["GlobalGenerator"]

_TIME_CHANNELS = 256  # of the timestep's sinusoid, as in DiT

_Vectors = Float[Tensor, "b d"]


class _Block(Recomputed):
    """Self-attention and an MLP, scaled, shifted and gated by the condition (DiT section 3.2, adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _plain_norm(width), _plain_norm(width)
        self.attention = SelfAttention(width, heads, bias=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU("tanh"), nn.Linear(mlp_ratio * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def run(self, tokens: Tokens, condition: _Vectors) -> Tokens:
        """The block's output: its input until the modulation is trained."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attention(self.norm1(tokens) * (1 + scale1) + shift1)
        changed: Tensor = tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)
        return changed


class _Output(nn.Module):
    """From tokens to pixels of the prediction; zero until trained."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = _plain_norm(width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, channels)

    def forward(self, tokens: Tokens, condition: _Vectors) -> Float[Tensor, "b n c"]:
        """``b n d`` to ``b n c``."""
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm(tokens) * (1 + scale) + shift)  # type: ignore[no-any-return]


class _Pool(nn.Module):
    """A learned query gathers the prompt's tokens into one vector."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(text_width)
        self.query = nn.Parameter(torch.randn(width))
        self.attention = CrossAttention(width, heads, text_width, bias=True)

    def forward(self, tokens: Float[Tensor, "b n e"]) -> _Vectors:
        """``b n e`` to ``b d``."""
        query = repeat(self.query.to(tokens.dtype), "d -> b 1 d", b=len(tokens))
        return self.attention(query, self.norm(tokens))[:, 0]  # type: ignore[no-any-return]


class GlobalGenerator(RecomputingModel, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """Predicts the noise in ``v``: an adaLN-Zero transformer over the pixels of ``v`` and the prompt.

    The paper's sizes (Table 11), for ``v`` of 16 x 16 x 16 and prompts of 77 tokens of 768 features: by default
    28 blocks of 1152 channels, 674.5 million parameters and 312 GFLOP; 20 blocks of 1024, 382.0 million and
    177 GFLOP. ``v`` may have any height and width: positions are fixed sinusoids over rows and columns. A new
    network predicts zero, and each of its blocks is the identity.

    Args:
        channels: of ``v``.
        text_width: features of a prompt's token.
        width: channels of the transformer; ``heads`` and 4 divide it.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden features of an MLP per channel.
        pooled_text: also add the prompt, pooled to one vector, to the timestep's; the paper does not.

    Raises:
        InvalidArgumentError: a width that does not split, or no block.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        channels: int = 16,
        text_width: int = 768,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        mlp_ratio: int = 4,
        pooled_text: bool = False,
    ) -> None:
        super().__init__()
        if width % 4 or depth < 1:
            raise InvalidArgumentError(
                f"a generator of {depth} blocks with {width} channels is not possible; give at least one "
                "block, and a width that 4 divides: sine and cosine of row and column."
            )
        self.to_tokens = nn.Linear(channels, width)
        self.text = nn.Linear(text_width, width)
        self.time = TimestepEmbedding(_TIME_CHANNELS, width)
        self.pool = _Pool(width, heads, text_width) if pooled_text else None
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio) for _ in range(depth))
        self.output = _Output(width, channels)
        self._initialise()

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Tensor, tokens: Float[Tensor, "bt n d"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the noise in ``x_t`` as the network sees it.

        Args:
            x_t: noisy ``v``.
            t: timesteps, ``b``, or one number for all.
            tokens: of the prompt, ``b n d``.

        Raises:
            InvalidArgumentError: shapes that do not fit each other or the network.
        """
        self._check(x_t, t, tokens)
        height, width = x_t.shape[-2:]
        tokens = tokens.to(x_t.dtype)
        waves = get_timestep_embedding(
            t.expand(len(x_t)), _TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        condition = self.time(waves.to(x_t.dtype))
        if self.pool is not None:
            condition = condition + self.pool(tokens)
        pixels = self.to_tokens(rearrange(x_t, "b c h w -> b (h w) c"))
        pixels = pixels + _positions(height, width, pixels.shape[-1], x_t.device).to(pixels.dtype)
        hidden = torch.cat([self.text(tokens), pixels], dim=1)
        for block in self.blocks:
            hidden = block(hidden, condition)
        prediction = self.output(hidden[:, tokens.shape[1] :], condition)
        noise: Tensor = rearrange(prediction, "b (h w) c -> b c h w", h=height)
        return noise

    def _initialise(self) -> None:
        """Start as DiT does (its section 3.2): spread kept by linear layers, what is gated at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for linear in (self.time.linear_1, self.time.linear_2):
            nn.init.normal_(linear.weight, std=0.02)
        for block in (*self.blocks, self.output):
            zeroed(block.modulation[-1])
        zeroed(self.output.linear)

    def _check(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> None:
        channels, text_width = self.config.channels, self.config.text_width
        if x_t.shape[1] != channels or tokens.shape[0] != len(x_t) or tokens.shape[2] != text_width:
            raise InvalidArgumentError(
                f"noisy features of shape {tuple(x_t.shape)} and tokens of {tuple(tokens.shape)} do not fit "
                f"each other or a generator for 'b {channels} h w' and 'b n {text_width}'."
            )
        if t.ndim > 1 or t.numel() not in (1, len(x_t)):
            raise InvalidArgumentError(
                f"timesteps of shape {tuple(t.shape)} do not fit {len(x_t)} videos; give a scalar, or one each."
            )


def _plain_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def _positions(height: int, width: int, channels: int, device: torch.device) -> Float[Tensor, "n d"]:
    """Fixed sinusoids of each pixel's column, then row, ``(h w) d``, as masked auto-encoders have them.

    Computed anew, and not kept as a buffer, so that any size will do and no checkpoint or dtype touches them.
    """
    across, down = (
        get_timestep_embedding(torch.arange(side, device=device), channels // 2, downscale_freq_shift=0)
        for side in (width, height)
    )
    columns = repeat(across, "w d -> (h w) d", h=height)
    rows = repeat(down, "h d -> (h w) d", w=width)
    return torch.cat([columns, rows], dim=-1)
