"""diffusers' ``Attention`` modules through ``attend``."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn.attention import attend

__all__ = ["AttendHandle", "AttentionProcessor", "use_attend"]


class AttentionProcessor:
    """Computes a diffusers ``Attention`` module by ``attend``, equal to ``AttnProcessor2_0``.

    It has no parameters: a network saves and loads with it as without it.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What ``attn`` makes of tokens ``b n d`` or of an image ``b d h w``.

        Args:
            attn: the module, which owns the weights.
            hidden_states: what asks.
            encoder_hidden_states: what is attended to; None for ``hidden_states`` themselves.
            attention_mask: added to the scores, in any of diffusers' shapes.
            temb: what a spatial norm is conditioned on.
        """
        tokens: Tensor = hidden_states
        if attn.spatial_norm is not None:
            tokens = attn.spatial_norm(tokens, temb)
        if hidden_states.ndim == 4:
            tokens = rearrange(tokens, "b d h w -> b (h w) d")
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        context = tokens
        if encoder_hidden_states is not None:
            context = encoder_hidden_states
            if attn.norm_cross:
                context = attn.norm_encoder_hidden_states(context)
        tokens = _attend(attn, tokens, context, attention_mask)
        for layer in attn.to_out:
            tokens = layer(tokens)
        if hidden_states.ndim == 4:
            tokens = rearrange(tokens, "b (h w) d -> b d h w", w=hidden_states.shape[-1])
        if attn.residual_connection:
            tokens = tokens + hidden_states
        output: Tensor = tokens / attn.rescale_output_factor
        return output

    # The name that diffusers' `set_attention_backend` looks for.
    @property
    def _attention_backend(self) -> None:
        return None

    @_attention_backend.setter
    def _attention_backend(self, name: object) -> None:
        if name is not None:
            raise InvalidArgumentError(
                f"set_attention_backend({getattr(name, 'value', name)!r}) would switch the whole process "
                "and leave out this network's temporal layers; write `with vidgen.nn.attention_backend(...):` "
                "around the calls instead."
            )


def _attend(attn: Attention, tokens: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    query, key, value = (
        rearrange(x, "b n (h d) -> b n h d", h=attn.heads)
        for x in (attn.to_q(tokens), attn.to_k(context), attn.to_v(context))
    )
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    if mask is not None:
        batch, keys = context.shape[:2]
        mask = attn.prepare_attention_mask(mask, keys, batch)
        mask = mask.view(batch, attn.heads, -1, mask.shape[-1])
    scale = None if attn.scale_qk else attn.scale
    gathered: Tensor = rearrange(attend(query, key, value, mask=mask, scale=scale), "b n h d -> b n (h d)")
    return gathered.to(query.dtype)


class AttendHandle:
    """What ``use_attend`` did to a network, to be undone by ``remove``.

    Args:
        before: the modules it changed, each with the processor it had.
        untouched: paths of attention modules that keep a processor of their own.
    """

    def __init__(self, before: list[tuple[Attention, Any]], untouched: tuple[str, ...]) -> None:
        self._before = before
        self.untouched = untouched

    def remove(self) -> None:
        """Give every module the processor it had, unless it was given another one since."""
        for module, processor in self._before:
            if type(module.processor) is AttentionProcessor:
                module.set_processor(processor)
        self._before = []


def use_attend(network: nn.Module) -> AttendHandle:
    """Send every stock diffusers ``Attention`` inside ``network`` through ``attend``.

    Values, gradients, parameters and the saved checkpoint stay what they were. A module with a
    processor of another kind (an IP-adapter's, a sliced or fused one, added keys) was given it on
    purpose and keeps it; the handle's ``untouched`` names those, which choose no backend.
    Networks whose attention is no such module (newer transformers) are left alone.
    """
    before: list[tuple[Attention, Any]] = []
    untouched = []
    for path, module in network.named_modules():
        if not isinstance(module, Attention):
            continue
        if type(module.processor) in (AttnProcessor, AttnProcessor2_0):
            before.append((module, module.processor))
            module.set_processor(AttentionProcessor())
        elif type(module.processor) is not AttentionProcessor:
            untouched.append(path)
    return AttendHandle(before, tuple(untouched))
