from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.nn import flop_counter
from vidgen.strategies.glober.video_encoder import Posterior, VideoEncoder, _SlotAttention, keyframes

B, C, K, SIZE = 2, 3, 3, 8
INDICES = torch.tensor([0.0, 0.25, 0.75])


def fresh(**changes: object) -> VideoEncoder:
    torch.manual_seed(0)
    sizes = {"sample_size": SIZE, "widths": (8, 16), "blocks_per_level": 1, "head_dim": 4}
    return VideoEncoder(C, **(sizes | {"global_channels": 5, "norm_groups": 4} | changes)).eval()


def trained(**changes: object) -> VideoEncoder:
    """With weights all over it, as after training."""
    encoder = fresh(**changes)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(seed: int = 0) -> torch.Tensor:
    return noise(B, C, K, SIZE, SIZE, seed=seed)


def test_keyframes() -> None:
    assert keyframes(16, 4) == (0, 5, 10, 15)  # GLOBER section 4.1
    assert keyframes(16, 16) == tuple(range(16))
    assert keyframes(128, 4) == (0, 42, 85, 127)
    assert keyframes(16, 1) == (8,)
    assert all(len(set(keyframes(13, count))) == count for count in range(1, 14))


@pytest.mark.parametrize(("frames", "count"), [(4, 0), (4, 5), (0, 1)])
def test_impossible_keyframes_are_refused(frames: int, count: int) -> None:
    with pytest.raises(InvalidArgumentError, match="ask for 1 to"):
        keyframes(frames, count)


def test_keyframes_of_other_lengths_are_nearest_to_those_of_training() -> None:
    assert keyframes(32, 4, trained=16) == (0, 10, 20, 30)  # the same instants of a clip at twice the rate
    assert keyframes(24, 4, trained=16) == (0, 8, 15, 23)  # 0, 7.5, 15, 22.5
    assert keyframes(8, 4, trained=16) == (0, 3, 5, 7)  # 7.5 is no frame
    assert keyframes(5, 4, trained=16) == (0, 2, 3, 4)
    assert keyframes(4, 4, trained=16) == (0, 1, 2, 3)
    assert keyframes(16, 4, trained=16) == keyframes(16, 4)
    for frames in range(4, 70):
        chosen = keyframes(frames, 4, trained=16)
        assert len(set(chosen)) == 4
        assert list(chosen) == sorted(chosen)
        assert chosen[0] >= 0
        assert chosen[-1] < frames
    with pytest.raises(InvalidArgumentError, match="ask for 1 to 3"):
        keyframes(3, 4, trained=16)


def test_posterior_samples_and_diverges_by_the_book() -> None:
    mean, logvar, drawn = noise(B, 5, 4, 4), noise(B, 5, 4, 4, seed=1), noise(B, 5, 4, 4, seed=2)
    posterior = Posterior(mean, logvar)
    assert torch.allclose(posterior.sample(drawn), mean + torch.exp(logvar / 2) * drawn)
    normal = torch.distributions.Normal(mean.double(), torch.exp(logvar.double() / 2))
    standard = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    expected = torch.distributions.kl_divergence(normal, standard).sum() / B
    assert torch.allclose(posterior.kl().double(), expected)
    assert Posterior(torch.zeros_like(mean), torch.zeros_like(mean)).kl() == 0
    assert Posterior(mean.half(), logvar.half()).kl().dtype == torch.float32


@torch.no_grad()
def test_fresh_encoder_has_the_std_it_was_told() -> None:
    encoder = fresh()
    posterior = encoder(latents(), INDICES)
    assert tuple(posterior.mean.shape) == (B, *encoder.global_shape) == (B, 5, 4, 4)
    assert torch.equal(posterior.std, torch.ones_like(posterior.mean))
    assert torch.allclose(fresh(initial_std=0.25)(latents(), INDICES).std, torch.tensor(0.25))
    assert 0.8 < torch.cat([fresh(sample_size=32).slot.flatten()]).std() < 1.2  # e_v ~ N(0, 1)


@pytest.mark.parametrize("made", [fresh, trained])
@torch.no_grad()
def test_every_keyframe_counts_and_videos_do_not_mix(made: Callable[[], VideoEncoder]) -> None:
    encoder = made()
    mean = encoder(latents(), INDICES).mean
    for k in range(K):
        other = latents()
        other[0, :, k] += noise(C, SIZE, SIZE, seed=3)
        changed = (encoder(other, INDICES).mean - mean).abs().amax(dim=(1, 2, 3))
        assert changed[0] > 1e-4
        assert changed[1] == 0


@torch.no_grad()
def test_order_shows_in_v_before_training() -> None:
    """As loudly as what is shown: what v hardly says, the decoder never learns to listen to."""
    torch.manual_seed(0)
    encoder = VideoEncoder(C, SIZE, (16, 32), 1, 8, 5, norm_groups=8)
    clips, places = noise(16, C, 4, SIZE, SIZE), torch.tensor([0, 5, 10, 15]) / 16
    v, backwards = encoder(clips, places).mean, encoder(clips.flip(2), places).mean
    assert ((v - backwards) ** 2).mean() > 0.5 * ((v - v.roll(1, 0)) ** 2).mean()


@torch.no_grad()
def test_v_has_mean_0_and_variance_1() -> None:
    encoder, batch = fresh().train(), noise(16, C, K, SIZE, SIZE)
    mean = encoder(batch, INDICES).mean
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(mean.var((0, 2, 3), correction=0), torch.ones(5), rtol=1e-2, atol=0)
    # Later by running averages: of one video alone, and the same in any company.
    for _ in range(500):
        encoder(batch, INDICES)
    encoder.eval()
    torch.testing.assert_close(encoder(batch, INDICES).mean, mean, rtol=0, atol=0.05)
    torch.testing.assert_close(
        encoder(batch[:1], INDICES).mean, encoder(batch, INDICES).mean[:1], rtol=0, atol=1e-5
    )


def test_a_single_number_per_channel_can_be_trained_on() -> None:
    """A batch of one video whose v is one pixel has no variance of its own."""
    encoder = fresh(sample_size=2).train()
    encoder(noise(1, C, K, 2, 2), INDICES).mean.square().sum().backward()
    assert torch.equal(encoder.unit.running_var, torch.ones(5))
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_order_and_places_in_time_are_seen() -> None:
    encoder = trained()
    mean = encoder(latents(), INDICES).mean
    assert not torch.allclose(encoder(latents().flip(2), INDICES).mean, mean, atol=1e-3)
    uneven = torch.tensor([0.0, 0.5, 0.75])
    assert not torch.allclose(encoder(latents(), uneven).mean, mean, atol=1e-3)
    # A keyframe goes with its index, wherever it lies; and each video may have indices of its own.
    assert torch.allclose(encoder(latents().flip(2), INDICES.flip(0)).mean, mean, atol=1e-5)
    both = encoder(latents(), torch.stack([INDICES, uneven])).mean
    assert torch.allclose(both[0], mean[0], atol=1e-5)
    assert torch.allclose(both[1], encoder(latents(), uneven).mean[1], atol=1e-5)


@torch.no_grad()
def test_contents_are_turned_and_places_are_told_besides() -> None:
    """By the first alone slots without content could not be told apart, by the second order is summed away."""
    attention = _SlotAttention(8, 2, 16.0)
    seen: list[torch.Tensor] = []
    attention.attention.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    places = torch.tensor([[0.0, 1.0, 3.0]])
    attention(torch.zeros(3, 8, 1, 1), places)
    shifts = seen[-1]
    assert (shifts[0].diff(dim=0).abs().amax(1) > 0.1).all()
    frame = noise(1, 8, 1, 1)
    attention(frame.expand(3, 8, 1, 1), places)
    turned = (seen[-1] - shifts)[0]
    content = torch.nn.functional.layer_norm(frame.flatten(), (8,))
    angles = places[0, :, None] * 8.0 ** -torch.linspace(0, 1, 4)  # the slowest 8 = 16 / 2 times slower
    pairs = torch.complex(content[:4], content[4:]) * torch.polar(torch.ones(3, 4), angles)
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], dim=1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_attention_along_time_stays_at_its_pixel() -> None:
    """Without convolutions of a neighbourhood, and without space, a pixel reaches its own pixel of v only."""
    encoder = trained(widths=(8,))
    for name, parameter in encoder.named_parameters():
        if ".space." in name or ".residual." in name:
            parameter.zero_()
        elif parameter.ndim == 4:
            parameter *= torch.eye(3)[1][:, None] * torch.eye(3)[1]  # the centre of each kernel
    encoder.head[1] = torch.nn.Identity()  # its statistics are the frame's
    other = latents()
    other[:, :, 1, 2, 5] += noise(C, seed=3)
    changed = (encoder(other, INDICES).mean - encoder(latents(), INDICES).mean).abs().amax(dim=(0, 1)) > 1e-6
    assert changed.nonzero().tolist() == [[2, 5]]


def test_gradients_reach_everything() -> None:
    encoder = trained().train()
    encoder(latents(), INDICES).sample(noise(B, 5, 4, 4)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the keys moves all scores of a query alike: softmax does not see it.
        assert "to_k.bias" in name or parameter.grad.abs().max() > 1e-6, name


def test_log_variance_is_clamped() -> None:
    encoder = fresh()
    torch.nn.init.constant_(encoder.to_logvar.bias, 50.0)
    assert encoder(latents(), INDICES).logvar.unique().tolist() == [20.0]
    torch.nn.init.constant_(encoder.to_logvar.bias, -50.0)
    assert encoder(latents(), INDICES).logvar.unique().tolist() == [-30.0]


@torch.no_grad()
def test_saved_is_loaded(tmp_path: Path) -> None:
    encoder = trained(sample_size=(4, 8), scale=7.0)
    encoder.save_pretrained(tmp_path)
    loaded = VideoEncoder.from_pretrained(tmp_path, use_safetensors=True).eval()
    given = noise(B, C, K, 4, 8)
    assert encoder.global_shape == loaded.global_shape == (5, 2, 4)
    assert torch.equal(loaded(given, INDICES).mean, encoder(given, INDICES).mean)
    assert torch.equal(loaded(given, INDICES).logvar, encoder(given, INDICES).logvar)


def test_checkpointing_recomputes_and_changes_no_gradient() -> None:
    def gradients(checkpointed: bool) -> tuple[list[torch.Tensor | None], int]:
        encoder, runs = trained().train(), []
        if checkpointed:
            encoder.enable_gradient_checkpointing()
        encoder.stages[0].time.norm.register_forward_hook(lambda *_: runs.append(1))
        encoder(latents(), INDICES).mean.square().sum().backward()
        return [p.grad for p in encoder.parameters()], len(runs)

    (plain, once), (recomputed, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2)
    for one, other in zip(plain, recomputed, strict=True):
        assert one is other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "within"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype, within: float, tmp_path: Path) -> None:
    encoder = trained()
    encoder.unit.running_mean.copy_(torch.linspace(-1, 1, 5))
    encoder.unit.running_var.copy_(torch.linspace(0.3, 2, 5))
    exact = encoder(latents(), INDICES).mean
    posterior = encoder.to(dtype)(latents().to(dtype), INDICES)
    assert posterior.mean.dtype == dtype
    assert posterior.kl().isfinite()
    assert (posterior.mean.float() - exact).square().mean().sqrt() < within
    encoder.save_pretrained(tmp_path)  # as bundled models are saved, and loaded to float32
    again = VideoEncoder.from_pretrained(tmp_path, torch_dtype=torch.float32, use_safetensors=True).eval()
    assert (again(latents(), INDICES).mean - exact).square().mean().sqrt() < within / 2


def gigaflops(encoder: VideoEncoder, count: int) -> float:
    with torch.device("meta"), flop_counter() as counter:
        encoder(torch.zeros(1, 4, count, 32, 32), torch.zeros(count))
    return counter.get_total_flops() / 1e9


def test_paper_size() -> None:
    """28.4M parameters; the compute of one with output convolutions on every slot."""
    with torch.device("meta"):
        encoder = VideoEncoder()
    assert encoder.global_shape == (16, 16, 16)  # 4096 numbers, however long the video
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(28.4e6, rel=0.02)
    head = 2 * 256 * 9 * (640 * 416 + 416 * 32) / 1e9
    for count, known, ours in ((1, 51.5, 50.3), (4, 128.9, 123.8), (16, 439.1, 418.7)):
        measured = gigaflops(encoder, count)
        assert measured == pytest.approx(ours, rel=2e-3)
        assert measured + count * head == pytest.approx(known, rel=2e-3)


@pytest.mark.parametrize(
    ("shape", "indices"),
    [
        ((B, C + 1, K, SIZE, SIZE), INDICES),
        ((B, C, K, SIZE, SIZE + 2), INDICES),
        ((B, C, 0, SIZE, SIZE), torch.zeros(0)),
    ],
)
def test_latents_of_another_shape_are_refused(shape: tuple[int, ...], indices: torch.Tensor) -> None:
    with pytest.raises(InvalidArgumentError, match="do not fit a video encoder"):
        fresh()(torch.zeros(shape), indices)


@pytest.mark.parametrize("indices", [torch.zeros(K + 1), torch.zeros(B + 1, K), torch.arange(K)])
def test_indices_that_do_not_fit_are_refused(indices: torch.Tensor) -> None:
    with pytest.raises(InvalidArgumentError, match="do not fit 2 videos of 3 keyframes"):
        fresh()(latents(), indices)


@pytest.mark.parametrize(
    "changes",
    [
        {"widths": ()},
        {"widths": (8, 18)},
        {"widths": (9,), "head_dim": 9, "norm_groups": 3},
        {"head_dim": 3},
        {"sample_size": 7},
        {"blocks_per_level": 0},
        {"head_width": 6},
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match="is not possible"):
        fresh(**changes)


@pytest.mark.parametrize("std", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_deviations_are_refused(std: float) -> None:
    with pytest.raises(InvalidArgumentError, match="above 0"):
        fresh(initial_std=std)
