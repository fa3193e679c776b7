from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from kernels import Kernels
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn import AttentionProcessor, Inflation, TemporalLayers, attention_backend, use_attend

D = 32  # the fewest channels of a spatial norm
TOKENS, IMAGE, CONTEXT = (2, 6, D), (2, D, 2, 3), (2, 4, 8)

MODULES: dict[str, tuple[dict[str, Any], tuple[int, ...], bool]] = {
    "self": ({}, TOKENS, False),
    "bias": ({"bias": True, "out_bias": False}, TOKENS, False),
    "cross": ({"cross_attention_dim": 8}, TOKENS, True),
    "normed context": ({"cross_attention_dim": 8, "cross_attention_norm": "layer_norm"}, TOKENS, True),
    "normed heads": ({"qk_norm": "rms_norm"}, TOKENS, False),
    "autoencoder": (
        {"norm_num_groups": 4, "residual_connection": True, "bias": True, "upcast_softmax": True},
        IMAGE,
        False,
    ),
    "rescaled": ({"rescale_output_factor": 2.0, "residual_connection": True}, TOKENS, False),
    "image and context": ({"cross_attention_dim": 8}, IMAGE, True),
    "spatial norm": ({"spatial_norm_dim": 8}, IMAGE, False),
}


def call(unet: UNet2DConditionModel, mask: Tensor | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 3, 8, generator=rng)
    sample = torch.randn(4, 4, 8, 8, generator=rng)
    return unet(sample, 7, tokens, encoder_attention_mask=mask).sample


def attentions(module: nn.Module) -> list[Attention]:
    return [child for child in module.modules() if isinstance(child, Attention)]


def outcome(module: Attention, processor: object, case: str, mask: Tensor | None = None) -> list[Tensor]:
    """Output and gradients of inputs and parameters."""
    _, shape, crosses = MODULES[case]
    rng = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=rng).requires_grad_()]
    if crosses:
        inputs.append(torch.randn(CONTEXT, generator=rng).requires_grad_())
    named = {"temb": torch.ones(2, 8, 2, 3)} if module.spatial_norm is not None else {}
    module.set_processor(processor)
    output = module(*inputs, attention_mask=mask, **named)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    wanted = [*inputs, *module.parameters()]
    return [output, *torch.autograd.grad((output * weights).sum(), wanted)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", MODULES)
def test_a_module_is_as_with_diffusers_processor(case: str, masked: bool) -> None:
    options, _, crosses = MODULES[case]
    torch.manual_seed(0)
    module = Attention(D, heads=4, dim_head=8, **options)
    mask = torch.zeros(2, 1, 4 if crosses else 6) if masked else None
    if mask is not None:
        mask[0, :, 2:], mask[1, :, 0] = -1e4, -0.5
    expected = outcome(module, AttnProcessor2_0(), case, mask)
    given = outcome(module, AttentionProcessor(), case, mask)
    assert len(expected) == len(given) > 4
    for one, other in zip(expected, given, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_a_module_without_scaling_keeps_its_scale() -> None:
    torch.manual_seed(0)
    module = Attention(D, heads=4, dim_head=8, scale_qk=False)
    assert type(module.processor) is AttnProcessor  # what diffusers gives such a module
    for one, other in zip(
        outcome(module, AttnProcessor(), "self"), outcome(module, AttentionProcessor(), "self"), strict=True
    ):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_attention_of_a_unet_goes_through_attend(unet: UNet2DConditionModel) -> None:
    mask = torch.tensor([[1, 1, 0]] * 4)
    plain, masked = call(unet), call(unet, mask)
    use_attend(unet)
    assert torch.equal(call(unet), plain)
    assert torch.equal(call(unet, mask), masked)
    for name, flash in (("math", 0), ("flash", len(attentions(unet)))):
        with attention_backend(name), Kernels() as kernels:
            torch.testing.assert_close(call(unet), plain, rtol=1e-4, atol=1e-5)
        assert kernels.flash == flash


@torch.no_grad()
def test_an_inflated_unet_has_one_entry_point_in_space_and_time(unet: UNet2DConditionModel) -> None:
    temporal = TemporalLayers.beside(unet).eval()
    inflation = Inflation(unet, temporal)
    layers = len(attentions(unet)) + len(temporal.attentions)
    assert len(temporal.attentions) > 0
    for name, flash in (("math", 0), ("flash", layers)):
        with attention_backend(name), inflation.clips_of(2), Kernels() as kernels:
            call(unet)
        assert kernels.flash == flash
    inflation.detach()
    assert {type(module.processor) for module in attentions(unet)} == {AttnProcessor2_0}


@torch.no_grad()
def test_an_autoencoder_is_as_before() -> None:
    torch.manual_seed(0)
    codec = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
    ).eval()
    pixels = torch.randn(2, 3, 8, 8)
    plain = codec(pixels).sample
    use_attend(codec)
    with attention_backend("math"), Kernels() as kernels:
        torch.testing.assert_close(codec(pixels).sample, plain, rtol=1e-4, atol=1e-5)
    assert kernels.flash == 0
    with attention_backend("flash"), Kernels() as kernels:
        codec(pixels)
    assert kernels.flash == len(attentions(codec)) == 2


def test_checkpoints_are_plain_diffusers(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    keys = list(unet.state_dict())
    plain = call(unet)
    use_attend(unet)
    assert list(unet.state_dict()) == keys
    unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, use_safetensors=True)
    torch.testing.assert_close(call(loaded), plain, rtol=1e-4, atol=1e-5)


def test_processors_given_on_purpose_stay(unet: UNet2DConditionModel) -> None:
    special, sliced = attentions(unet)[1], SlicedAttnProcessor(1)
    special.set_processor(sliced)
    handle = use_attend(unet)
    assert special.processor is sliced
    assert [unet.get_submodule(path) for path in handle.untouched] == [special]
    again = use_attend(unet)  # changes nothing
    again.remove()
    assert sum(type(m.processor) is AttentionProcessor for m in attentions(unet)) == len(attentions(unet)) - 1
    given_later = attentions(unet)[0]
    given_later.set_processor(AttnProcessor())
    handle.remove()
    kinds = [type(module.processor) for module in attentions(unet)]
    assert kinds == [AttnProcessor, SlicedAttnProcessor, *[AttnProcessor2_0] * (len(kinds) - 2)]


def test_diffusers_switch_of_the_process_is_refused(unet: UNet2DConditionModel) -> None:
    use_attend(unet)
    before = attention_dispatch._AttentionBackendRegistry._active_backend
    with pytest.raises(
        InvalidArgumentError, match=r"set_attention_backend\('_native_math'\).*attention_backend"
    ):
        unet.set_attention_backend("_native_math")
    assert attention_dispatch._AttentionBackendRegistry._active_backend is before
    unet.reset_attention_backend()
