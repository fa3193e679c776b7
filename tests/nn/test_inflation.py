from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from vidgen.errors import InvalidArgumentError
from vidgen.nn import Inflation, TemporalLayers, widen_input, widen_unet

F = 3


def call(unet: UNet2DConditionModel, channels: int = 4, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    sample = torch.randn(2 * F, channels, 8, 8, generator=rng)
    return unet(sample, 7, torch.ones(2 * F, 2, 8)).sample


def perturb(module: nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)


@pytest.mark.parametrize("bias", [True, False])
def test_widened_convolution_ignores_its_new_channels(bias: bool) -> None:
    conv = nn.Conv2d(3, 5, (3, 1), stride=(2, 1), padding=(1, 0), bias=bias, dtype=torch.float64)
    wide = widen_input(conv, 2)
    x, new = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 2, 8, 8).double()
    assert torch.allclose(wide(torch.cat([x, new], dim=1)), conv(x), atol=1e-12)
    wide(torch.cat([x, new], dim=1)).sum().backward()
    assert wide.weight.grad[:, 3:].any()  # the new weights can learn
    assert conv.weight.grad is None  # the given convolution is left alone


def test_grouped_convolutions_and_negative_widths_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="2 group"):
        widen_input(nn.Conv2d(4, 4, 3, groups=2), 1)
    with pytest.raises(InvalidArgumentError, match="by -1"):
        widen_input(nn.Conv2d(4, 4, 3), -1)


def test_widened_unet_is_the_old_one_on_the_old_channels(unet: UNet2DConditionModel) -> None:
    wide = widen_unet(unet, 2)
    rng = torch.Generator().manual_seed(0)
    sample, new = (torch.randn(2, c, 8, 8, generator=rng) for c in (4, 2))
    tokens = torch.ones(2, 2, 8)
    with torch.no_grad():
        expected = unet(sample, 7, tokens).sample
        given = wide(torch.cat([sample, new], dim=1), 7, tokens).sample
    assert torch.allclose(given, expected, atol=1e-5)
    assert (wide.config.in_channels, unet.config.in_channels) == (6, 4)
    assert not wide.training
    before = unet.conv_out.weight.clone()
    perturb(wide)  # shares no storage with the old one
    assert torch.equal(unet.conv_out.weight, before)


def test_widening_draws_no_random_number(unet: UNet2DConditionModel) -> None:
    state = torch.get_rng_state()
    widen_unet(unet, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_follow_every_block(unet: UNet2DConditionModel) -> None:
    blocks = {
        "down_blocks.0.resnets.0": 8,
        "down_blocks.1.resnets.0": 16,
        "up_blocks.0.resnets.0": 16,
        "up_blocks.0.resnets.1": 16,
        "up_blocks.1.resnets.0": 8,
        "up_blocks.1.resnets.1": 8,
        "mid_block.resnets.0": 16,
        "mid_block.resnets.1": 16,
    }
    transformers = {
        "down_blocks.1.attentions.0": 16,
        "up_blocks.0.attentions.0": 16,
        "up_blocks.0.attentions.1": 16,
        "mid_block.attentions.0": 16,
    }
    config = TemporalLayers.beside(unet).config
    assert dict(config.conv_sites) == blocks
    alone = {site: c for site, c in blocks.items() if c == 8}  # stages without a transformer
    assert dict(config.attention_sites) == transformers | alone
    config = TemporalLayers.beside(unet, attend="as the image network").config
    assert dict(config.attention_sites) == transformers
    assert not TemporalLayers.beside(unet, attend="never").attentions


def test_joint_attention_follows_the_middle_block_alone(unet: UNet2DConditionModel) -> None:
    assert not TemporalLayers.beside(unet).joint
    joint = TemporalLayers.beside(unet, joint_middle=True)
    assert dict(joint.config.joint_sites) == {"mid_block.attentions.0": 16}
    assert set(dict(joint.at_sites())) >= {"mid_block.attentions.0"}


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True])
def test_inflated_unet_is_the_plain_one_until_trained(unet: UNet2DConditionModel, joint: bool) -> None:
    plain, keys = call(unet), list(unet.state_dict())
    temporal = TemporalLayers.beside(unet, joint_middle=joint).eval()
    inflation = Inflation(unet, temporal)
    assert list(unet.state_dict()) == keys
    with inflation.clips_of(F):
        assert torch.equal(call(unet), plain)
    perturb(temporal)
    with inflation.clips_of(F):
        assert (call(unet) - plain).abs().max() > 1e-3


@torch.no_grad()
def test_every_layer_is_in_use(unet: UNet2DConditionModel) -> None:
    temporal = TemporalLayers.beside(unet, joint_middle=True).eval()
    inflation, used = Inflation(unet, temporal), []
    for site, layer in temporal.at_sites():
        layer.register_forward_hook(lambda layer, *_, site=site: used.append((site, type(layer))))
    with inflation.clips_of(F):
        call(unet)
    assert len(used) == len(set(used)) == 8 + 7 + 1


@torch.no_grad()
def test_call_without_a_frame_count_is_the_plain_networks(unet: UNet2DConditionModel) -> None:
    plain, temporal = call(unet), TemporalLayers.beside(unet).eval()
    inflation = Inflation(unet, temporal)
    perturb(temporal)
    with inflation.clips_of(F):
        assert not torch.equal(call(unet), plain)
    assert torch.equal(call(unet), plain)


@torch.no_grad()
def test_detached_unet_is_the_plain_one(unet: UNet2DConditionModel) -> None:
    plain, temporal = call(unet), TemporalLayers.beside(unet)
    inflation = Inflation(unet, temporal)
    perturb(temporal)
    inflation.detach()
    with inflation.clips_of(F):
        assert torch.equal(call(unet), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    assert not inflation.attached


@torch.no_grad()
def test_a_copy_has_layers_of_its_own(unet: UNet2DConditionModel) -> None:
    temporal = TemporalLayers.beside(unet).eval()
    inflation = Inflation(unet, temporal)
    other_unet, other_temporal, other = copy.deepcopy((unet, temporal, inflation))
    plain = call(unet)
    perturb(other_temporal)
    with inflation.clips_of(F):
        assert torch.equal(call(unet), plain)
    with other.clips_of(F):
        assert not torch.equal(call(other_unet), plain)


def test_layers_of_another_network_are_refused(unet: UNet2DConditionModel) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'down_blocks.9'.*no such module"):
        Inflation(unet, TemporalLayers({"down_blocks.9": 8}, {}, norm_groups=4))
    with pytest.raises(InvalidArgumentError, match=r"with 16 channels.*8 channels there"):
        Inflation(unet, TemporalLayers({"down_blocks.0.resnets.0": 16}, {}, norm_groups=4))


def test_both_components_save_and_load_alone(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    temporal = TemporalLayers.beside(unet, joint_middle=True)
    inflation = Inflation(unet, temporal)
    perturb(temporal)
    unet.save_pretrained(tmp_path / "unet")
    temporal.save_pretrained(tmp_path / "temporal")
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet", use_safetensors=True)
    layers = TemporalLayers.from_pretrained(tmp_path / "temporal", use_safetensors=True)
    for saved, loaded in ((unet, plain), (temporal, layers)):
        assert list(saved.state_dict()) == list(loaded.state_dict())
        for name, tensor in saved.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])
    with torch.no_grad():
        assert torch.allclose(call(plain), call(unet), atol=1e-5)
        with inflation.clips_of(F):
            expected = call(unet)
        with Inflation(plain, layers).clips_of(F):
            assert torch.allclose(call(plain), expected, atol=1e-5)
