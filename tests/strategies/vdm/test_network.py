from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from einops import rearrange, repeat

from vidgen.errors import InvalidArgumentError
from vidgen.nn import TemporalLayers, build_unet, widen_unet
from vidgen.strategies.vdm.network import VideoUNet

B, C, F, SIZE = 2, 3, 5, 8


def image_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(C, C, SIZE, (8, 16), cross_attention_dim=6, head_dim=8).eval()


def video_unet() -> VideoUNet:
    unet = widen_unet(image_unet(), 1)
    torch.manual_seed(1)
    return VideoUNet(unet).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latents(seed: int = 0, f: int = F) -> torch.Tensor:
    return noise(B, C, f, SIZE, SIZE, seed=seed)


TOKENS = noise(B, 4, 6, seed=9)
TIMES = torch.tensor([3, 700])


def per_frame(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The 2D network on each frame alone; ``t`` is ``b f``."""
    frames, tokens = (
        rearrange(x, "b c f h w -> (b f) c h w"),
        repeat(TOKENS, "b n d -> b f n d", f=x.shape[2]),
    )
    output = image_unet()(frames, t.flatten(), tokens.flatten(0, 1)).sample
    return rearrange(output, "(b f) c h w -> b c f h w", b=len(x))


@torch.enable_grad()
def one_step(network: VideoUNet) -> VideoUNet:
    """One optimiser step towards something that depends on the neighbouring frame."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    target = latents().roll(1, dims=2)
    (network(latents(), TIMES, TOKENS) - target).square().mean().backward()
    optimiser.step()
    return network.eval()


@pytest.mark.parametrize("f", [1, 2, 5])
@torch.no_grad()
def test_fresh_network_is_the_2d_network_on_each_frame(f: int) -> None:
    x = latents(f=f)
    times = TIMES[:, None].expand(B, f)
    assert torch.allclose(video_unet()(x, TIMES, TOKENS), per_frame(x, times), atol=1e-5)


@torch.no_grad()
def test_given_frames_do_not_touch_the_others_at_first() -> None:
    known = torch.tensor([[True, False, False, True, False], [False] * 5])
    given = video_unet()(latents(), TIMES, TOKENS, known, latents(seed=1))
    expected = per_frame(latents(), TIMES[:, None].expand(B, F))
    unknown = ~known[:, None, :, None, None].expand_as(given)
    assert torch.allclose(given[unknown], expected[unknown], atol=1e-5)


@torch.no_grad()
def test_given_frames_enter_clean_at_time_zero_and_marked() -> None:
    network, seen = video_unet(), {}

    def look(_: object, args: tuple[torch.Tensor, ...]) -> None:
        seen["sample"], seen["times"] = args[0].unflatten(0, (B, F)), args[1].unflatten(0, (B, F))

    network.unet.register_forward_pre_hook(look)
    known = torch.tensor([[True, False, False, True, False], [False, False, True, True, True]])
    x_t, clean = latents(), latents(seed=1)
    network(x_t, TIMES, TOKENS, known, clean)
    sample, by_frame = seen["sample"], rearrange(clean, "b c f h w -> b f c h w")
    assert torch.equal(sample[:, :, :C][known], by_frame[known])
    assert torch.equal(sample[:, :, :C][~known], rearrange(x_t, "b c f h w -> b f c h w")[~known])
    assert torch.equal(sample[:, :, C], known[..., None, None].expand(B, F, SIZE, SIZE).float())
    assert torch.equal(seen["times"], torch.where(known, 0, TIMES[:, None]))


@torch.no_grad()
def test_noise_at_given_frames_never_enters() -> None:
    network = one_step(video_unet())
    known = torch.tensor([[True, True, False, False, False]] * B)
    noisier = latents()
    noisier[:, :, :2] = latents(seed=5)[:, :, :2]
    one = network(latents(), TIMES, TOKENS, known, latents(seed=1))
    assert torch.equal(one, network(noisier, TIMES, TOKENS, known, latents(seed=1)))
    assert not torch.allclose(one, network(latents(), TIMES, TOKENS, known, latents(seed=2)))


@torch.no_grad()
def test_times_may_be_scalar_per_video_or_per_frame() -> None:
    network, x = video_unet(), latents()
    scalar = network(x, 7, TOKENS)
    for same in (torch.tensor(7), torch.full((B,), 7), torch.full((B, F), 7), 7.0):
        assert torch.equal(network(x, same, TOKENS), scalar)
    times = torch.arange(B * F).reshape(B, F) * 50
    assert torch.allclose(network(x, times, TOKENS), per_frame(x, times), atol=1e-5)


@torch.no_grad()
def test_no_tokens_are_one_zero_token() -> None:
    network = video_unet()
    zeros = network(latents(), TIMES, torch.zeros(B, 1, 6))
    assert torch.equal(network(latents(), TIMES), zeros)
    assert not torch.allclose(network(latents(), TIMES, TOKENS), zeros, atol=1e-4)


def test_one_step_makes_time_matter() -> None:
    network, x = one_step(video_unet()), latents()
    moved = [n for n, p in network.temporal.named_parameters() if p.grad is not None and p.grad.any()]
    assert len([n for n in moved if "conv_out" in n]) == 2 * len(network.temporal.convs)
    assert len([n for n in moved if "to_out" in n]) == 2 * len(network.temporal.attentions)
    other = x.clone()
    other[:, :, 4] += 1
    with torch.no_grad():
        before, after = network(x, TIMES, TOKENS), network(other, TIMES, TOKENS)
        backwards = network(x.flip(2), TIMES, TOKENS).flip(2)
    reach = (before - after).abs().amax(dim=(0, 1, 3, 4))
    assert (reach > 1e-4).all()  # frame 4 is seen by every frame
    assert not torch.allclose(before, backwards, atol=1e-3)  # the order of frames counts


def test_videos_of_a_batch_do_not_see_each_other() -> None:
    network = one_step(video_unet())
    with torch.no_grad():
        both = network(latents(), TIMES, TOKENS)
        alone = network(latents()[1:], TIMES[1:], TOKENS[1:])
    assert torch.allclose(both[1:], alone, atol=1e-5)


@pytest.mark.parametrize("part", ["whole", "unet", "temporal"])
def test_checkpointing_changes_no_gradient(part: str) -> None:
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        network = one_step(video_unet()).train()
        network.zero_grad()
        if checkpointed:
            owner = {"whole": network, "unet": network.unet, "temporal": network.temporal}[part]
            owner.enable_gradient_checkpointing()
        network(latents(), TIMES, TOKENS).square().mean().backward()
        return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, recomputed[name], atol=1e-6), name


def test_checkpointing_recomputes_and_can_be_switched_off() -> None:
    network = video_unet().train()
    conv = network.temporal.convs["down_blocks_0_resnets_0"]
    attention = network.temporal.attentions["mid_block_attentions_0"]
    runs: list[str] = []
    conv.norm.register_forward_hook(lambda *_: runs.append("conv"))
    attention.norm.register_forward_hook(lambda *_: runs.append("attention"))
    for switch, times in (
        (network.enable_gradient_checkpointing, 2),
        (network.disable_gradient_checkpointing, 1),
    ):
        switch()
        runs.clear()
        network(latents(), TIMES, TOKENS).sum().backward()
        assert sorted(runs) == ["attention"] * times + ["conv"] * times


@torch.no_grad()
def test_detached_network_is_a_plain_unet() -> None:
    network = one_step(video_unet())
    frames = torch.cat([noise(F, C, SIZE, SIZE), torch.zeros(F, 1, SIZE, SIZE)], dim=1)
    plain = UNet2DConditionModel.from_config(network.unet.config).eval()
    plain.load_state_dict(network.unet.state_dict())
    tokens = TOKENS[:1].expand(F, -1, -1)
    unet = network.detach()
    assert torch.equal(unet(frames, 7, tokens).sample, plain(frames, 7, tokens).sample)
    with pytest.raises(InvalidArgumentError, match="detached"):
        network(latents(), TIMES, TOKENS)


@torch.no_grad()
def test_components_bring_the_network_back(tmp_path: Path) -> None:
    network = one_step(video_unet())
    network.unet.save_pretrained(tmp_path / "unet")
    network.temporal.save_pretrained(tmp_path / "temporal")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", use_safetensors=True)
    temporal = TemporalLayers.from_pretrained(tmp_path / "temporal", use_safetensors=True)
    loaded = VideoUNet(unet, temporal).eval()
    given, expected = (n(latents(), TIMES, TOKENS) for n in (loaded, network))
    assert torch.allclose(given, expected, atol=1e-5)


def test_meta_device_counts_parameters_without_memory() -> None:
    with torch.device("meta"):
        network = VideoUNet(widen_unet(build_unet(4, 4, 64, (320, 640, 1280), 2, (0, 1, 2)), 1))
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert sum(p.numel() for p in network.temporal.parameters()) > 1e8


COMPILED = """
import torch
from vidgen.nn import build_unet, widen_unet
from vidgen.strategies.vdm.network import VideoUNet
network = VideoUNet(widen_unet(build_unet(3, 3, 8, (8, 16), head_dim=8), 1)).eval()
torch.nn.init.normal_(network.temporal.convs["mid_block_resnets_0"].conv_out.weight)
compiled = torch.compile(network, backend="eager", fullgraph=True)
with torch.no_grad():
    for f in (5, 2):
        x = torch.randn(2, 3, f, 8, 8)
        torch.testing.assert_close(compiled(x, 7), network(x, 7))
"""


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@torch.no_grad()
def test_odd_sizes_work() -> None:
    x = noise(1, C, 2, 7, 5)
    assert video_unet()(x, 7, TOKENS[:1]).isfinite().all()


def test_unet_without_the_mark_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"latents with 3 channels.*for 2.*widen_unet"):
        VideoUNet(image_unet())(latents(), TIMES, TOKENS)


def test_known_needs_clean() -> None:
    with pytest.raises(InvalidArgumentError, match="together"):
        video_unet()(latents(), TIMES, TOKENS, known=torch.ones(B, F, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(3,), (B, F + 1), (1, 1, 1)])
def test_times_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="one per frame"):
        video_unet()(latents(), torch.zeros(shape), TOKENS)


def test_unets_that_need_more_are_refused() -> None:
    unet = image_unet()
    unet.register_to_config(num_class_embeds=3)
    with pytest.raises(InvalidArgumentError, match="num_class_embeds"):
        VideoUNet(unet)
