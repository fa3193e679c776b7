from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from einops import rearrange, repeat
from torch import nn

from vidgen.conditioning import Conditioning
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.nn import attention_backend, build_unet, flop_counter
from vidgen.nn.residuals import StageResiduals, stage_sites
from vidgen.strategies.glober.branch import GlobalBranch, Residuals
from vidgen.strategies.glober.decoder import FrameDecoder

B, C, F, SIZE, DIM, GLOBAL = 2, 4, 3, 8, 12, 5


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image_unet(
    widths: tuple[int, ...] = (8, 16), levels: tuple[int, ...] = (1,), **more: Any
) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(
        C, C, SIZE, widths, attention_levels=levels, cross_attention_dim=6, head_dim=8, **more
    ).eval()


def decoder(unet: UNet2DConditionModel | None = None, *, trained: bool = False, **branch: Any) -> FrameDecoder:
    unet = image_unet() if unet is None else unet
    torch.manual_seed(1)
    made = FrameDecoder(unet, GlobalBranch.beside(unet, GLOBAL, DIM, **branch)).eval()
    if trained:
        with torch.no_grad():
            for stage in made.branch.stages.values():
                nn.init.normal_(stage.leave.weight, std=0.3)
                nn.init.normal_(stage.leave.bias, std=0.3)
    return made


X, V, INDEX = noise(B, C, F, SIZE, SIZE), noise(B, GLOBAL, 4, 4, seed=1), noise(B, F, DIM, seed=2)
TOKENS = noise(B, 4, 6, seed=3)
TIMES = torch.tensor([[3, 700, 20], [999, 0, 500]])


def image_by_image(unet: UNet2DConditionModel, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """The image UNet, untouched, on the frames as a batch of pictures."""
    f = x.shape[2]
    prompts = repeat(TOKENS, "b n d -> (b f) n d", f=f)
    output = unet(rearrange(x, "b c f h w -> (b f) c h w"), times.flatten(), prompts).sample
    return rearrange(output, "(b f) c h w -> b c f h w", f=f)


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"widths": (16,), "levels": ()},
    {"widths": (8, 16, 24), "levels": (0, 2), "layers_per_block": 2},
    {"widths": (8, 16), "levels": (0, 1), "pooled_text": True},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", ["cross", "concat"])
@torch.no_grad()
def test_fresh_decoder_is_the_image_unet_bit_by_bit(layout: dict[str, Any], text: str) -> None:
    alone = image_unet(**layout)
    assert torch.equal(
        decoder(image_unet(**layout), text=text)(X, TIMES, TOKENS, v=V, index=INDEX),
        image_by_image(alone, X, TIMES),
    )


@torch.no_grad()
def test_fresh_decoder_is_a_unet_of_stable_diffusions_layout_bit_by_bit() -> None:
    torch.manual_seed(0)  # SD-v1's stages and heads, each 40 times narrower
    unet = UNet2DConditionModel(
        8, block_out_channels=(8, 16, 32, 32), norm_num_groups=4, cross_attention_dim=6
    ).eval()
    assert torch.equal(
        decoder(copy.deepcopy(unet))(X, TIMES, TOKENS, v=V, index=INDEX), image_by_image(unet, X, TIMES)
    )


@torch.no_grad()
def test_unet_keeps_its_state_dict_and_gets_its_plain_self_back() -> None:
    alone, made = image_unet(), decoder(trained=True)
    mine, theirs = made.unet.state_dict(), alone.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    plain = image_by_image(alone, X, TIMES)
    assert torch.equal(image_by_image(made.unet, X, TIMES), plain)  # outside of the decoder, hooks add nothing
    assert not torch.allclose(made(X, TIMES, TOKENS, v=V, index=INDEX), plain, atol=1e-2)
    assert torch.equal(image_by_image(made.detach(), X, TIMES), plain)
    assert not any(module._forward_hooks for module in made.unet.modules())
    with pytest.raises(InvalidArgumentError, match="detached"):
        made(X, TIMES, TOKENS, v=V, index=INDEX)


@torch.no_grad()
def test_the_index_scales_what_v_says_and_shifts_it() -> None:
    block = next(iter(decoder(trained=True).branch.stages.values())).blocks[0]
    width = block.conv.in_channels
    hidden, index = torch.randn(3, width, 4, 4), torch.randn(3, INDEX.shape[-1])
    block.conv.weight.zero_()  # what is left is the scaled and shifted input
    block.conv.bias.zero_()
    scale, shift = block.index(index)[:, :, None, None].chunk(2, dim=1)
    expected = hidden + scale * hidden + shift
    torch.testing.assert_close(block(hidden, index, (4, 4)), expected, rtol=0, atol=1e-5)
    assert (scale.std(0) > 1e-3).all()


@torch.no_grad()
def test_cached_residuals_are_those_of_every_step_bit_by_bit() -> None:
    made = decoder(trained=True)
    cached = made.features(V, INDEX, (SIZE, SIZE))
    before = {site: tensor.clone() for site, tensor in cached.tensors.items()}
    for t in (0, 500, TIMES):
        assert torch.equal(made(X, t, TOKENS, cached), made(X, t, TOKENS, v=V, index=INDEX))
    assert all(torch.equal(cached.tensors[site], tensor) for site, tensor in before.items())


@torch.no_grad()
def test_branch_sees_neither_time_nor_noise_and_is_asked_once() -> None:
    made, calls = decoder(trained=True), []
    for stage in made.branch.stages.values():
        stage.register_forward_hook(lambda module, args, output: calls.append(output))
    for x, t in ((X, 3), (noise(*X.shape, seed=9), 900)):
        made(x, t, TOKENS, v=V, index=INDEX)
    half = len(calls) // 2
    assert half == len(stage_sites(made.unet))
    assert all(torch.equal(one, other) for one, other in zip(calls[:half], calls[half:], strict=True))
    cached = made.features(V, INDEX)
    calls.clear()
    made(X, 3, TOKENS, cached)
    assert calls == []


@pytest.mark.parametrize("kept", [[1], [2, 0], [0, 1, 2, 1]])
@torch.no_grad()
def test_frames_are_independent(kept: list[int]) -> None:
    made = decoder(trained=True)
    whole = made(X, TIMES, TOKENS, v=V, index=INDEX)
    some = made(X[:, :, kept], TIMES[:, kept], TOKENS, v=V, index=INDEX[:, kept])
    assert torch.allclose(some, whole[:, :, kept], atol=1e-5)
    cached = made.features(V, INDEX).frames(kept)
    assert torch.allclose(made(X[:, :, kept], TIMES[:, kept], TOKENS, cached), whole[:, :, kept], atol=1e-5)


@torch.enable_grad()
def test_no_frame_and_no_video_reaches_another() -> None:
    made = decoder(trained=True)
    x, v, index = (tensor.clone().requires_grad_() for tensor in (X, V, INDEX))
    made(x, TIMES, TOKENS, v=v, index=index)[0, :, 1].square().sum().backward()
    assert x.grad is not None
    assert v.grad is not None
    assert index.grad is not None
    reached = x.grad.abs().sum((1, 3, 4)) > 0
    assert reached.tolist() == [[False, True, False], [False, False, False]]
    assert (index.grad.abs().sum(2) > 0).tolist() == reached.tolist()
    assert (v.grad.abs().sum((1, 2, 3)) > 0).tolist() == [True, False]


@torch.no_grad()
def test_every_stage_is_added_to_once_and_a_down_stage_in_its_skip_too() -> None:
    unet, seen = image_unet((8, 16, 16), (1,)), {}
    sites = stage_sites(unet)
    assert list(sites) == [
        *(f"down_blocks.{i}" for i in range(3)),
        "mid_block",
        *(f"up_blocks.{i}" for i in range(3)),
    ]
    hooks = StageResiduals(unet, sites)
    for site in sites:  # registered after: they see what the stage hands on
        unet.get_submodule(site).register_forward_hook(lambda m, a, out, site=site: seen.update({site: out}))
    sample, prompts = X[:, :, 0, :7, :6], TOKENS  # odd sides
    unet(sample, 5, prompts)
    plain, added = (
        dict(seen),
        {s: noise(B, k.channels, *k.size(7, 6), seed=i) for i, (s, k) in enumerate(sites.items())},
    )
    with hooks.given({"down_blocks.0": added["down_blocks.0"]}):
        unet(sample, 5, prompts)
    first, skips = seen["down_blocks.0"]
    assert torch.equal(first, plain["down_blocks.0"][0] + added["down_blocks.0"])
    assert skips[-1] is first
    assert torch.equal(skips[0], plain["down_blocks.0"][1][0])
    for site in sites:  # each alone: what comes before it is unchanged
        with hooks.given({site: added[site]}):
            unet(sample, 5, prompts)
        was, now = ((out if torch.is_tensor(out) else out[0]) for out in (plain[site], seen[site]))
        assert torch.equal(now, was + added[site]), site
    with pytest.raises(UnknownNameError), hooks.given({"conv_in": sample}):
        pass
    with (
        pytest.raises(InvalidArgumentError, match="as many frames"),
        hooks.given({"mid_block": added["mid_block"][:1]}),
    ):
        unet(sample, 5, prompts)


@torch.no_grad()
def test_every_stage_of_the_branch_reaches_the_prediction() -> None:
    made = decoder(trained=True)
    cached = made.features(V, INDEX)
    whole = made(X, 5, TOKENS, cached)
    for site in cached.tensors:
        without = Residuals({**cached.tensors, site: torch.zeros_like(cached.tensors[site])})
        assert not torch.allclose(made(X, 5, TOKENS, without), whole, atol=1e-3), site


@torch.no_grad()
def test_a_copy_stands_alone() -> None:
    made = decoder(trained=True)
    cached = made.features(V, INDEX)
    twin, bare = copy.deepcopy(made), copy.deepcopy(made.unet)
    assert torch.equal(twin(X, 5, TOKENS, cached), made(X, 5, TOKENS, cached))
    with made.hooks.given(cached.flat()):  # what one is given, its copies are not; copied inside, neither
        plain = image_by_image(image_unet(), X, TIMES)
        for other in (twin.unet, bare, copy.deepcopy(made.unet)):
            assert torch.equal(image_by_image(other, X, TIMES), plain)
    for parameter in twin.parameters():
        parameter.zero_()
    assert made(X, 5, TOKENS, cached).abs().sum() > 0


def test_branch_and_unet_are_saved_each_by_itself(tmp_path: Path) -> None:
    made = decoder(trained=True, text="concat", max_width=10, layers=2)
    made.branch.save_pretrained(tmp_path / "branch")
    made.unet.save_pretrained(tmp_path / "unet")
    branch = GlobalBranch.from_pretrained(tmp_path / "branch")
    again = FrameDecoder(UNet2DConditionModel.from_pretrained(tmp_path / "unet"), branch).eval()
    assert [n for n, _ in branch.named_parameters()] == [n for n, _ in made.branch.named_parameters()]
    with torch.no_grad():
        one, other = (d(X, TIMES, TOKENS, v=V, index=INDEX) for d in (made, again))
    assert torch.equal(one, other)


@torch.no_grad()
def test_residuals_travel_as_extras_of_the_conditions() -> None:
    made = decoder(trained=True)
    cached = made.features(V, INDEX)
    joined = Conditioning.collate([Conditioning(TOKENS, extras=cached.to_extras())] * 2)
    again = Residuals.from_extras(joined.extras)
    assert again is not None
    assert Residuals.from_extras({"other": V}) is None
    doubled = made(torch.cat([X, X]), 5, joined.tokens, again)
    assert torch.allclose(doubled[B:], made(X, 5, TOKENS, cached), atol=1e-5)


@torch.no_grad()
def test_text_reaches_the_branch_only_where_it_is_concatenated() -> None:
    other = TOKENS.flip(1) * 2  # another prompt
    cross, concat = decoder(trained=True), decoder(trained=True, text="concat")
    assert not cross.branch.reads_text
    assert concat.branch.reads_text
    assert concat.branch.config.text_sites == (
        "down_blocks.1",
        "mid_block",
        "up_blocks.0",
    )  # where the UNet attends
    one, two = (concat.features(V, INDEX, None, tokens).tensors for tokens in (TOKENS, other))
    assert {site for site in one if not torch.equal(one[site], two[site])} == set(
        concat.branch.config.text_sites
    )
    shuffled = concat.features(V, INDEX, None, TOKENS[:, [2, 0, 3, 1]]).tensors
    assert all(
        torch.allclose(shuffled[site], one[site], atol=1e-5) for site in one
    )  # attention: a set of tokens
    one, two = (cross.features(V, INDEX, None, tokens).tensors for tokens in (TOKENS, other))
    assert all(torch.equal(one[site], two[site]) for site in one)
    with pytest.raises(InvalidArgumentError, match="no tokens"):
        concat.branch.features(V, INDEX)
    with pytest.raises(InvalidArgumentError, match="without text"):
        cross.branch.features(V, INDEX, None, TOKENS)


@torch.no_grad()
def test_index_meets_the_global_feature_place_by_place_before_it_is_averaged() -> None:
    """What is where in ``v`` counts in a coarse stage too, even where its averages say nothing."""
    stage = decoder(trained=True).branch.stages["mid_block"]
    assert isinstance(stage.blocks, nn.ModuleList)
    features = 3 * noise(1, 16, 4, 4)
    features[..., 1::2, :] = -features[..., ::2, :]  # mean zero over every 2 x 2 square
    there, absent = (stage.blocks[0](x, INDEX[0, :1], (2, 2)) for x in (features, 0 * features))
    assert (there - absent).abs().max() > 0.05


@pytest.mark.parametrize("text", ["cross", "concat"])
@torch.enable_grad()
def test_gradients_reach_all_and_are_the_same_when_recomputed(text: str) -> None:
    plain, frugal = decoder(trained=True, text=text), decoder(trained=True, text=text)
    frugal.enable_gradient_checkpointing()
    for made in (plain, frugal):
        v = V.clone().requires_grad_()
        with attention_backend("math"):
            loss = made.train()(X, TIMES, TOKENS, v=v, index=INDEX).square().mean()
        loss.backward()
        assert v.grad is not None
        assert v.grad.abs().sum() > 0
    for (name, one), (_, other) in zip(plain.named_parameters(), frugal.named_parameters(), strict=True):
        assert one.grad is not None, name
        assert one.grad.abs().sum() > 0, name
        assert torch.allclose(one.grad, other.grad, atol=1e-6), name
    frugal.disable_gradient_checkpointing()
    assert not any(getattr(m, "gradient_checkpointing", False) for m in frugal.modules())


@torch.enable_grad()
def test_zero_convolutions_learn_at_once_and_the_rest_after_them() -> None:
    made = decoder()
    made(X, TIMES, TOKENS, v=V, index=INDEX).square().mean().backward()
    for name, parameter in made.branch.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().sum() > 0) == (".leave." in name), name


def test_arguments_that_contradict_each_other_are_refused() -> None:
    made = decoder()
    cached = made.features(V, INDEX)
    with pytest.raises(InvalidArgumentError, match="none of them"):
        made(X, 5, TOKENS)
    with pytest.raises(InvalidArgumentError, match="residuals, v"):
        made(X, 5, TOKENS, cached, v=V)
    with pytest.raises(InvalidArgumentError, match="as many frames"):
        made(X[:, :, :2], 5, TOKENS, cached)
    with pytest.raises(InvalidArgumentError, match="timesteps"):
        made(X, torch.zeros(B, F + 1), TOKENS, cached)
    with pytest.raises(InvalidArgumentError, match="3 channels"):
        made(X[:, :3], 5, TOKENS, cached)
    with pytest.raises(InvalidArgumentError, match="index vectors"):
        made.features(V, INDEX[..., 1:])
    with pytest.raises(InvalidArgumentError, match="another network"):
        FrameDecoder(image_unet((8, 24)), made.branch)
    with pytest.raises(InvalidArgumentError, match="'down', 'middle' and 'up'"):
        GlobalBranch.beside(made.unet, parts=("mid",))
    with pytest.raises(InvalidArgumentError, match="class_embed_type"):
        FrameDecoder(
            UNet2DConditionModel(
                8,
                block_out_channels=(8, 8),
                norm_num_groups=4,
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
                cross_attention_dim=6,
                class_embed_type="timestep",
            ),
            made.branch,
        )


@torch.no_grad()
def test_branch_can_reach_fewer_stages_and_other_sizes() -> None:
    unet = image_unet()
    down = GlobalBranch.beside(unet, GLOBAL, DIM, parts=("down",), reduction=4)
    assert set(down.config.sites) == {"down_blocks.0", "down_blocks.1"}
    shapes = {site: tuple(t.shape) for site, t in down.features(V, INDEX).tensors.items()}
    assert shapes == {"down_blocks.0": (B, F, 8, 8, 8), "down_blocks.1": (B, F, 16, 8, 8)}
    made = decoder()
    wide = noise(1, C, 1, 6, 10)
    assert made(wide, 5, TOKENS[:1], v=noise(1, GLOBAL, 3, 5), index=INDEX[:1, :1]).shape == wide.shape


def sd_v1() -> UNet2DConditionModel:
    """Stable Diffusion 1's configuration, without weights; ``attention_head_dim`` is its 8 heads."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=32,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
        )


@torch.no_grad()
def test_counts_at_the_papers_size() -> None:
    unet = sd_v1()
    assert unet.num_parameters() == pytest.approx(859.5e6, rel=0.02)
    made = FrameDecoder(unet, GlobalBranch.beside(unet))
    x, tokens = torch.empty(1, 4, 1, 32, 32, device="meta"), torch.empty(1, 77, 768, device="meta")
    v, index = torch.empty(1, 16, 16, 16, device="meta"), torch.empty(1, 1, 1280, device="meta")
    with flop_counter() as branch:
        cached = made.features(v, index)
    with flop_counter() as step:
        made(x, torch.zeros(1, device="meta"), tokens, cached)
    assert step.get_total_flops() == pytest.approx(180e9, rel=0.02)  # one frame in one solver step
    # Saved at every later step; the branch of the released code has other stages, and 9 GFLOP.
    assert branch.get_total_flops() == pytest.approx(24.2e9, rel=0.02)


def test_multiply_adds_are_those_of_the_layers() -> None:
    branch = decoder().branch
    count = 0
    for channels, halvings in branch.config.sites.values():
        area = (SIZE // 2**halvings) ** 2
        count += 9 * GLOBAL * channels * 16 + 2 * DIM * channels + 9 * channels**2 * area + channels**2 * area
    assert branch.multiply_adds((4, 4)) == count
