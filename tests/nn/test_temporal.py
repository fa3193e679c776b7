from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_timestep_embedding
from einops import rearrange
from kernels import Kernels
from torch import nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn import SpaceTimeAttention, TemporalAttention, TemporalConv, attention, attention_backend

B, F, C = 2, 6, 8


def frames(seed: int = 0) -> torch.Tensor:
    return torch.randn(B * F, C, 3, 2, generator=torch.Generator().manual_seed(seed))


def layer(kind: type[nn.Module], trained: bool = True) -> nn.Module:
    """A layer as it is made, or with weights all over it, as after training."""
    torch.manual_seed(0)
    module = kind(C)
    if trained:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return module


def changed_frames(module: nn.Module, which: int, pixel: tuple[int, int]) -> torch.Tensor:
    """Where the output of clip 0 differs when one pixel of frame ``which`` does: ``f h w``."""
    other = frames()
    other[which, :, *pixel] += torch.linspace(-1, 1, C)  # not a shift, which a norm removes
    change = (module(frames(), F) - module(other, F)).abs().amax(dim=1) > 1e-5
    assert not change[F:].any()  # the other clip of the batch
    return change[:F]


@pytest.mark.parametrize("kind", [TemporalConv, TemporalAttention, SpaceTimeAttention])
def test_fresh_layer_is_exactly_the_identity(kind: type[nn.Module]) -> None:
    assert torch.equal(layer(kind, trained=False)(frames(), F), frames())


@pytest.mark.parametrize("kind", [TemporalConv, TemporalAttention, SpaceTimeAttention])
def test_fresh_layer_has_a_gradient(kind: type[nn.Module]) -> None:
    module = layer(kind, trained=False)
    (module(frames(), F) - frames(1)).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_attention_reaches_every_frame_at_its_pixel_only() -> None:
    changed = changed_frames(layer(TemporalAttention), 3, (1, 1))
    assert changed[:, 1, 1].all()
    changed[:, 1, 1] = False
    assert not changed.any()


def test_joint_attention_reaches_every_pixel_of_every_frame() -> None:
    assert changed_frames(layer(SpaceTimeAttention), 3, (1, 1)).all()


@pytest.mark.parametrize("dims", [(0,), (2,), (3,)])
def test_joint_attention_sees_the_order_of_frames_rows_and_columns(dims: tuple[int, ...]) -> None:
    module, clip = layer(SpaceTimeAttention), frames()[:F]
    mirrored = module(clip.flip(dims), F).flip(dims)
    assert (module(clip, F) - mirrored).abs().max() > 1e-3


def test_convolution_reaches_two_frames_each_way() -> None:
    module = layer(TemporalConv)
    with torch.no_grad():
        module.norm.weight.zero_()  # keep the statistics of the frame out of it
        module.norm.bias.zero_()
    assert not changed_frames(module, 3, (1, 1))[[0, 1, 2, 4, 5]].any()
    module = layer(TemporalConv)
    changed = changed_frames(module, 3, (1, 1))[:, 1, 1]
    assert changed.tolist() == [False, True, True, True, True, True]
    assert changed_frames(module, 0, (1, 1))[:, 1, 1].tolist() == [True] * 3 + [False] * 3


def test_a_frame_is_normalised_without_the_other_frames() -> None:
    """Far frames change nothing, and a call of another length gives the same inner frames."""
    module, clip = layer(TemporalConv), frames()[:F]
    whole, part = module(clip, F), module(clip[:5], 5)
    assert torch.allclose(whole[:3], part[:3], atol=1e-5)


def test_attention_over_time_sees_the_order_of_frames() -> None:
    module, clip = layer(TemporalAttention), frames()[:F]
    backwards = module(clip.flip(0), F).flip(0)
    assert (module(clip, F) - backwards).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [TemporalConv, TemporalAttention, SpaceTimeAttention])
def test_clips_of_a_batch_do_not_see_each_other(kind: type[nn.Module]) -> None:
    module = layer(kind)
    alone = torch.cat([module(frames()[:F], F), module(frames()[F:], F)])
    assert torch.allclose(module(frames(), F), alone, atol=1e-5)


def test_attention_over_many_pixels_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer(TemporalAttention)
    whole = module(frames(), F)
    monkeypatch.setattr(attention, "_MOST_SEQUENCES", 5)
    with Kernels() as kernels, attention_backend("flash"):
        assert torch.allclose(module(frames(), F), whole, atol=1e-5)
    assert kernels.flash == 3  # 12 sequences as 5, 5, 2


def test_attention_has_its_positions_and_weights_where_diffusers_has_them() -> None:
    """The layer is diffusers' attention over normalised, numbered frames."""
    module = layer(TemporalAttention)
    theirs = Attention(C, heads=1, dim_head=C)
    names = {name.replace("to_out.0", "to_out"): name for name in theirs.state_dict()}
    theirs.load_state_dict({names[name]: value for name, value in module.attention.state_dict().items()})
    sequences = rearrange(frames(), "(b f) c h w -> (b h w) f c", f=F)
    hidden = module.norm(sequences) + get_timestep_embedding(torch.arange(F), C)
    expected = rearrange(theirs(hidden), "(b h w) f c -> (b f) c h w", h=3, w=2)
    assert torch.allclose(module(frames(), F), frames() + expected, atol=1e-5)


@pytest.mark.parametrize("kind", [TemporalConv, TemporalAttention, SpaceTimeAttention])
@pytest.mark.parametrize("wrong", [5, 0])
def test_frame_counts_that_do_not_divide_the_batch_are_refused(kind: type[nn.Module], wrong: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"12 frames.*clips of {wrong}"):
        layer(kind)(frames(), wrong)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="choose a head_dim that divides 100"):
        TemporalAttention(100, head_dim=33)
