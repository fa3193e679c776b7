"""Layers of token sequences ``b n d``: self-attention, cross-attention, the transformer block.

Each is the *change* or the whole of a residual layer as its docstring says; attention itself is
``vidgen.nn.attention.attend``. Laid over space or time by ``vidgen.nn.rearrange``.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn.attention import attend
from vidgen.nn.zero import zeroed

__all__ = ["CrossAttention", "SelfAttention", "TransformerBlock"]


class CrossAttention(nn.Module):
    """Tokens gather from a context, such as a prompt: ``b n d, b m e -> b n d``, nothing added.

    Args:
        channels: ``d``.
        heads: attention heads; they divide ``channels``.
        context_channels: ``e``; by default ``channels``.
        bias: whether queries, keys and values have one (the output always has).
        zero_init: start with zero output, so that a residual layer starts as the identity.

    Raises:
        InvalidArgumentError: ``heads`` does not divide ``channels``.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int | None = None,
        *,
        bias: bool = False,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise InvalidArgumentError(
                f"{channels} channels do not split into {heads} heads; choose a number of heads that divides "
                f"{channels}."
            )
        source = channels if context_channels is None else context_channels
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(source, channels, bias=bias)
        self.to_v = nn.Linear(source, channels, bias=bias)
        self.to_out = nn.Linear(channels, channels)
        if zero_init:
            zeroed(self.to_out)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m e"],
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """What ``tokens`` gather from ``context``; ``mask`` and ``causal`` as ``attend`` takes them."""
        query, key, value = (
            rearrange(x, "b n (h d) -> b n h d", h=self.heads)
            for x in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        gathered = attend(query, key, value, mask=mask, causal=causal)
        return self.to_out(rearrange(gathered, "b n h d -> b n (h d)"))  # type: ignore[no-any-return]


class SelfAttention(CrossAttention):
    """Tokens gather from each other: ``b n d -> b n d``, nothing added.

    Args:
        channels: ``d``.
        heads: attention heads; they divide ``channels``.
        bias: whether queries, keys and values have one (the output always has).
        zero_init: start with zero output, so that a residual layer starts as the identity.

    Raises:
        InvalidArgumentError: ``heads`` does not divide ``channels``.
    """

    def __init__(self, channels: int, heads: int, *, bias: bool = False, zero_init: bool = False) -> None:
        super().__init__(channels, heads, bias=bias, zero_init=zero_init)

    def forward(  # type: ignore[override]  # its context is itself
        self,
        tokens: Float[Tensor, "b n d"],
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """What ``tokens`` gather from each other; ``mask`` and ``causal`` as ``attend`` takes them."""
        return super().forward(tokens, tokens, mask=mask, causal=causal)


class TransformerBlock(nn.Module):
    """Self-attention, optional cross-attention and an MLP, each normalised first and added.

    The pre-norm block of Xiong et al. 2020, figure 1(b), with GELU.

    Args:
        channels: ``d``.
        heads: attention heads; they divide ``channels``.
        context_channels: features ``e`` of the context; None for a block without cross-attention.
        mlp_ratio: hidden features of the MLP per channel.
        bias: whether queries, keys and values have one.
        zero_init: start as exactly the identity.

    Raises:
        InvalidArgumentError: ``heads`` does not divide ``channels``.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int | None = None,
        *,
        mlp_ratio: int = 4,
        bias: bool = True,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads, bias=bias, zero_init=zero_init)
        self.norm_cross: nn.LayerNorm | None = None
        self.cross_attention: CrossAttention | None = None
        if context_channels is not None:
            self.norm_cross = nn.LayerNorm(channels)
            self.cross_attention = CrossAttention(
                channels, heads, context_channels, bias=bias, zero_init=zero_init
            )
        self.norm2 = nn.LayerNorm(channels)
        last = nn.Linear(mlp_ratio * channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), zeroed(last) if zero_init else last
        )

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m e"] | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """The block's output.

        Args:
            tokens: ``b n d``.
            context: ``b m e``, for a block made with ``context_channels`` and only for one.
            mask: which tokens see each other, as ``attend`` takes it.
            context_mask: which tokens see which of the context.
            causal: tokens see those up to their own place.

        Raises:
            InvalidArgumentError: a context missing or too many.
        """
        tokens = tokens + self.attention(self.norm1(tokens), mask=mask, causal=causal)
        if self.cross_attention is not None and self.norm_cross is not None and context is not None:
            tokens = tokens + self.cross_attention(self.norm_cross(tokens), context, mask=context_mask)
        elif self.cross_attention is not None or context is not None:
            raise InvalidArgumentError(
                f"this block has {'no ' if self.cross_attention is None else ''}cross-attention and was given "
                f"{'no' if context is None else 'a'} context; pass one exactly where the block was made with "
                "context_channels."
            )
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]
