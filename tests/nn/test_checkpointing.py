from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from kernels import Kernels
from torch import Tensor, nn

from vidgen.nn import Inflation, TemporalAttention, TemporalLayers, attention_backend, checkpoint

F = 3


def frames() -> Tensor:
    return torch.randn(2 * F, 8, 3, 2, generator=torch.Generator().manual_seed(0))


def temporal_layers() -> TemporalLayers:
    torch.manual_seed(0)
    layers = TemporalLayers({}, {"here": 8}, head_dim=4)
    for parameter in layers.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layers


def gradients(module: nn.Module, output: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), list(module.parameters())))


@pytest.mark.parametrize(("name", "flash"), [("math", 0), ("flash", 2)])
def test_recomputation_keeps_the_backend_of_the_forward_pass(name: str, flash: int) -> None:
    layers = temporal_layers()
    layer = layers.attentions["here"]
    expected = gradients(layer, layer(frames(), F))
    layers.enable_gradient_checkpointing()
    with Kernels() as kernels:
        with attention_backend(name):
            output = layer(frames(), F)
        assert kernels.flash == flash // 2
        given = gradients(layer, output)  # outside the context
    assert kernels.flash == flash  # once more, in the backward pass
    for one, other in zip(expected, given, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_checkpointing_is_off_until_asked_for_and_after() -> None:
    layers = temporal_layers()
    layer = layers.attentions["here"]
    assert isinstance(layer, TemporalAttention)
    for switch, runs in (
        (lambda: None, 1),
        (layers.enable_gradient_checkpointing, 2),
        (layers.disable_gradient_checkpointing, 1),
    ):
        switch()
        with Kernels() as kernels, attention_backend("flash"):
            gradients(layer, layer(frames(), F))
        assert kernels.flash == runs


def test_keyword_arguments_and_other_functions() -> None:
    calls: list[int] = []

    def double(x: Tensor, *, times: int) -> Tensor:
        calls.append(times)
        return (x.sin() * times).cos()

    x = torch.linspace(-1, 1, 5).requires_grad_()
    (given,) = torch.autograd.grad(checkpoint(double, x, times=3).sum(), x)
    (expected,) = torch.autograd.grad((x.sin() * 3).cos().sum(), x)
    assert torch.equal(given, expected)
    assert calls == [3, 3]


def test_a_whole_inflated_unet_recomputes_with_one_backend() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    temporal = TemporalLayers.beside(unet)
    inflation = Inflation(unet, temporal)
    unet.enable_gradient_checkpointing(checkpoint)
    temporal.enable_gradient_checkpointing()
    sample = torch.randn(2 * F, 4, 8, 8)
    with Kernels() as kernels:
        with attention_backend("math"), inflation.clips_of(F):
            output = unet(sample, 7, torch.ones(2 * F, 2, 8)).sample
        products = kernels.seen["bmm"]
        output.square().sum().backward()
    assert kernels.flash == 0
    assert kernels.seen["bmm"] > products
