from __future__ import annotations

import pytest
import torch
from kernels import Kernels
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn import CrossAttention, SelfAttention, TransformerBlock, attention_backend


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pytorchs_weights(own: CrossAttention) -> nn.MultiheadAttention:
    width, source = own.to_q.in_features, own.to_k.in_features
    theirs = nn.MultiheadAttention(width, own.heads, batch_first=True, kdim=source, vdim=source)
    with torch.no_grad():
        for name, layer in (("q", own.to_q), ("k", own.to_k), ("v", own.to_v)):
            if theirs._qkv_same_embed_dim:
                part = slice("qkv".index(name) * width, ("qkv".index(name) + 1) * width)
                theirs.in_proj_weight[part] = layer.weight
            else:
                getattr(theirs, f"{name}_proj_weight").copy_(layer.weight)
        theirs.in_proj_bias.copy_(torch.cat([own.to_q.bias, own.to_k.bias, own.to_v.bias]))
        theirs.out_proj.weight.copy_(own.to_out.weight)
        theirs.out_proj.bias.copy_(own.to_out.bias)
    return theirs


def test_self_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    own, tokens = SelfAttention(12, 3, bias=True), draw(2, 5, 12)
    theirs = pytorchs_weights(own)
    torch.testing.assert_close(own(tokens), theirs(tokens, tokens, tokens)[0])
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    torch.testing.assert_close(own(tokens, causal=True), theirs(tokens, tokens, tokens, attn_mask=later)[0])
    hidden = torch.tensor([[False] * 4 + [True], [False] * 5])
    expected = theirs(tokens, tokens, tokens, key_padding_mask=hidden)[0]
    torch.testing.assert_close(own(tokens, mask=~hidden[:, None, None]), expected)


def test_cross_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    own, tokens, context = CrossAttention(12, 3, 8, bias=True), draw(2, 5, 12), draw(2, 4, 8, seed=1)
    expected = pytorchs_weights(own)(tokens, context, context)[0]
    torch.testing.assert_close(own(tokens, context), expected)


def test_block_is_pytorchs_pre_norm_layer() -> None:
    torch.manual_seed(0)
    own, tokens = TransformerBlock(12, 3), draw(2, 5, 12)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs.self_attn = pytorchs_weights(own.attention)
    theirs.linear1, theirs.linear2 = own.mlp[0], own.mlp[2]
    for norm in (own.norm1, own.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    theirs.norm1, theirs.norm2 = own.norm1, own.norm2
    torch.testing.assert_close(own(tokens), theirs(tokens))


def test_block_with_context_adds_what_it_gathers() -> None:
    torch.manual_seed(0)
    block, tokens, context = TransformerBlock(12, 3, 8), draw(2, 5, 12), draw(2, 4, 8, seed=1)
    nn.init.zeros_(block.attention.to_out.weight)
    nn.init.zeros_(block.attention.to_out.bias)
    nn.init.zeros_(block.mlp[2].weight)
    nn.init.zeros_(block.mlp[2].bias)
    expected = tokens + block.cross_attention(block.norm_cross(tokens), context)
    torch.testing.assert_close(block(tokens, context), expected)
    seen = torch.tensor([True, True, False, False])[None, None, None]
    masked = block(tokens, context, context_mask=seen)
    torch.testing.assert_close(masked, block(tokens, context[:, :2]))
    assert not torch.allclose(masked, expected, atol=1e-3)


def test_a_causal_block_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    block, tokens = TransformerBlock(12, 3), draw(2, 5, 12)
    torch.testing.assert_close(block(tokens, causal=True)[:, :3], block(tokens[:, :3], causal=True))
    first = torch.tensor([True, True, True, False, False])[None, None, None]
    torch.testing.assert_close(block(tokens, mask=first)[:, :3], block(tokens[:, :3]))


@pytest.mark.parametrize("context_channels", [None, 8])
def test_a_block_can_start_as_the_identity_and_learn(context_channels: int | None) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(12, 3, context_channels, zero_init=True)
    tokens = draw(2, 5, 12)
    context = [] if context_channels is None else [draw(2, 4, 8, seed=1)]
    output = block(tokens, *context)
    assert torch.equal(output, tokens)
    (output * draw(2, 5, 12, seed=2)).sum().backward()
    outputs = [block.attention.to_out, block.mlp[2]]
    outputs += [] if block.cross_attention is None else [block.cross_attention.to_out]
    assert len(outputs) == (2 if context_channels is None else 3)
    assert all(layer.weight.grad.any() for layer in outputs)


def test_layers_choose_their_kernel_by_context() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(12, 3, 8)
    for name, flash in (("math", 0), ("flash", 2)):
        with attention_backend(name), Kernels() as kernels:
            block(draw(2, 5, 12), draw(2, 4, 8))
        assert kernels.flash == flash


def test_contexts_missing_or_too_many_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="has no cross-attention and was given a context"):
        TransformerBlock(12, 3)(draw(2, 5, 12), draw(2, 4, 8))
    with pytest.raises(InvalidArgumentError, match="has cross-attention and was given no context"):
        TransformerBlock(12, 3, 8)(draw(2, 5, 12))


@pytest.mark.parametrize("heads", [5, 0])
def test_heads_that_do_not_fit_are_refused(heads: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"12 channels do not split into {heads} heads"):
        SelfAttention(12, heads)
