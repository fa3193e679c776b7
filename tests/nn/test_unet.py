"""Fresh 2D UNets: Stable Diffusion's layout in any size, which diffusers saves, loads and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from vidgen.errors import InvalidArgumentError
from vidgen.nn import build_unet
from vidgen.nn.unet import check_takes_time_and_tokens, norm_groups, times_per_frame, token_width


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": ()},
        {"attention_levels": (2,)},
        {"attention_levels": (-1,)},
        {"widths": (8, 12), "head_dim": 8},
        {"widths": (8, 12), "heads": 8},
    ],
)
def test_layouts_that_do_not_exist_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match="give at least one width"):
        build_unet(4, 4, 8, **{"widths": (8, 16), "head_dim": 8} | wrong)


def test_layout_puts_attention_where_asked() -> None:
    unet = build_unet(4, 3, 8, (16, 32, 64), 2, (0, 2), cross_attention_dim=6, head_dim=16)
    attended = [hasattr(block, "attentions") for block in unet.down_blocks]
    assert attended == [True, False, True]
    assert [hasattr(block, "attentions") for block in unet.up_blocks] == [True, False, True]
    assert hasattr(unet.mid_block, "attentions")
    heads = [unet.down_blocks[i].attentions[0].transformer_blocks[0].attn1.heads for i in (0, 2)]
    assert heads == [1, 4]
    assert [len(block.resnets) for block in unet.down_blocks] == [2, 2, 2]
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.in_features == 6
    assert (unet.conv_in.in_channels, unet.conv_out.out_channels) == (4, 3)
    assert unet.config.sample_size == 8


@pytest.mark.parametrize(
    ("widths", "groups"),
    [((16, 32), 4), ((48, 80), 8), ((320, 640), 32), ((128,), 32), ((6, 9), 1), ((2, 4), 1), ((36, 60), 6)],
)
def test_normalisation_has_groups_that_divide_all_widths(widths: tuple[int, ...], groups: int) -> None:
    """At most Stable Diffusion's 32, and four channels or more in each of the narrowest level."""
    with torch.device("meta"):
        unet = build_unet(4, 4, 8, widths, attention_levels=(), head_dim=1)
    assert {m.num_groups for m in unet.modules() if isinstance(m, torch.nn.GroupNorm)} == {groups}
    assert norm_groups(widths) == groups


@pytest.mark.parametrize("pooled", [True, False])
@torch.no_grad()
def test_pooled_text_reaches_the_network_without_cross_attention(pooled: bool) -> None:
    torch.manual_seed(0)
    unet = build_unet(3, 3, 8, widths=(16, 32), cross_attention_dim=24, head_dim=16, pooled_text=pooled).eval()
    for name, parameter in unet.named_parameters():
        if ".attn2.to_out" in name:
            parameter.zero_()
    x, tokens = torch.randn(1, 3, 8, 8), torch.randn(2, 5, 24)
    one, other = (unet(x, 300, tokens[i : i + 1]).sample for i in range(2))
    assert one.shape == (1, 3, 8, 8)
    assert ((one - other).abs().max() > 1e-3) == pooled


@pytest.mark.parametrize("pooled", [True, False])
@torch.no_grad()
def test_diffusers_loads_what_it_saves(pooled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = build_unet(4, 3, 8, (16, 32), cross_attention_dim=20, head_dim=8, pooled_text=pooled).eval()
    unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path, use_safetensors=True)
    x, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 20)
    weights = unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in loaded.state_dict().items())
    # Not to the bit: where memory lies decides how a kernel sums.
    torch.testing.assert_close(loaded(x, 7, tokens).sample, unet(x, 7, tokens).sample)


def test_stable_diffusions_own_layout_is_one_of_them() -> None:
    """Version 1's UNet: as many weights, under the same names."""
    with torch.device("meta"):
        ours = build_unet(4, 4, 64, (320, 640, 1280, 1280), 2, (0, 1, 2), cross_attention_dim=768, head_dim=40)
        theirs = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    shapes = [{name: tuple(p.shape) for name, p in unet.named_parameters()} for unet in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_heads_of_every_level_instead_of_their_width() -> None:
    """As Stable Diffusion 1 has 8, whatever the width of a level."""
    with torch.device("meta"):
        unet = build_unet(4, 4, 8, (16, 32, 64), attention_levels=(0, 1, 2), head_dim=3, heads=8)
        theirs = UNet2DConditionModel(
            8, block_out_channels=(16, 32, 32, 32), norm_num_groups=4, attention_head_dim=8
        )
    blocks = [*unet.down_blocks, *unet.up_blocks, unet.mid_block]
    found = {a.transformer_blocks[0].attn1.heads for block in blocks for a in block.attentions}
    assert found == {8}
    assert theirs.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 8  # diffusers' own reading


@torch.no_grad()
def test_heads_do_not_change_the_weights_but_the_result() -> None:
    nets = []
    for kind in ({"heads": 4}, {"head_dim": 8}, {"head_dim": 16}):
        torch.manual_seed(0)
        nets.append(build_unet(4, 4, 8, (32,), attention_levels=(0,), cross_attention_dim=6, **kind).eval())
    x, tokens = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 6)
    outs = [net(x, 300, tokens).sample for net in nets]
    assert torch.equal(outs[0], outs[1])  # 4 heads of 32 channels are 8 wide
    assert (outs[0] - outs[2]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (7, [[7, 7, 7], [7, 7, 7]]),
        (torch.tensor([3, 5]), [[3, 3, 3], [5, 5, 5]]),
        (torch.tensor([[3], [5]]), [[3, 3, 3], [5, 5, 5]]),
        (torch.tensor([[1, 2, 3], [4, 5, 6]]), [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_times_are_told_to_every_frame(t: torch.Tensor | int, expected: list[list[int]]) -> None:
    assert times_per_frame(t, 2, 3, torch.device("cpu")).tolist() == expected


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (1, 2, 3)])
def test_times_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"do not fit 2 videos of 3 frames.*per frame \(b, f\)"):
        times_per_frame(torch.zeros(shape), 2, 3, torch.device("cpu"))


def test_unets_that_need_more_than_time_and_tokens_are_refused() -> None:
    with torch.device("meta"):
        plain = build_unet(4, 4, 8, (16,), attention_levels=(0,), cross_attention_dim=6, pooled_text=True)
        labelled = UNet2DConditionModel(
            8, block_out_channels=(16, 32, 32, 32), norm_num_groups=4, num_class_embeds=3
        )
        wide = UNet2DConditionModel(
            8, block_out_channels=(16, 32, 32, 32), norm_num_groups=4, encoder_hid_dim=9, cross_attention_dim=6
        )
    check_takes_time_and_tokens(plain)
    with pytest.raises(InvalidArgumentError, match=r"more than time and tokens.*num_class_embeds"):
        check_takes_time_and_tokens(labelled)
    assert (token_width(plain), token_width(wide)) == (6, 9)
