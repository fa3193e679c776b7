from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from vidgen.diffusion import Diffusion
from vidgen.errors import InvalidArgumentError
from vidgen.strategies.glober import cra
from vidgen.strategies.glober.discriminator import PairDiscriminator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def diffusion(prediction_type: str = "epsilon") -> Diffusion:
    """Stable Diffusion's schedule."""
    return Diffusion(
        DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            clip_sample=False,
        )
    )


def marked(*values: float) -> torch.Tensor:
    """One video's two frames, each a constant."""
    return torch.tensor(values, dtype=torch.float32)[None, None, :, None, None].expand(1, 1, 2, 2, 2)


REAL, SYNTHETIC = marked(1, 2), marked(-1, -2)  # x_i, x_j; xh_i, xh_j


def shown(pairs: torch.Tensor) -> list[tuple[float, float]]:
    return [tuple(pair[0, 0, :, 0, 0].tolist()) for pair in pairs]


def test_pairs_are_those_of_the_paper() -> None:
    real, fake = cra.discriminator_pairs(REAL, SYNTHETIC)
    assert shown(real) == [(1, 2)]  # <x_i, x_j>
    # <x_i, xh_j>, <xh_i, x_j>, <xh_i, xh_j>, <x_j, x_i>, <xh_j, xh_i>
    assert shown(fake) == [(1, -2), (-1, 2), (-1, -2), (2, 1), (-2, -1)]
    # <xh_i, xh_j>, <xh_i, x_j>, <x_i, xh_j>
    assert shown(cra.generator_pairs(REAL, SYNTHETIC)) == [(-1, -2), (-1, 2), (1, -2)]
    # Its second principle: what the decoder passes off as real, the discriminator is told to be fake.
    assert set(cra.GENERATOR_REAL) < set(cra.DISCRIMINATOR_FAKE)


@pytest.mark.parametrize("num_frames", [2, 3, 5])
def test_every_two_distinct_frames_are_as_likely(num_frames: int) -> None:
    steps = num_frames * (num_frames - 1)
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    drawn = cra.draw_frames(torch.cartesian_prod(grid, grid), num_frames)
    assert (drawn[:, 0] < drawn[:, 1]).all()
    assert drawn.min() == 0
    assert drawn.max() == num_frames - 1
    pairs, counts = drawn.unique(dim=0, return_counts=True)
    assert len(pairs) == steps // 2
    assert (counts == counts[0]).all()


def test_drawing_keeps_to_the_frames_at_the_ends_of_the_interval() -> None:
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    drawn = cra.draw_frames(torch.cartesian_prod(ends, ends), 16)
    assert drawn.tolist() == [[0, 1], [0, 15], [0, 15], [14, 15]]
    rounded = cra.draw_frames(torch.ones(1, 2), 16)  # what float32 may make of the largest number below 1
    assert rounded.tolist() == [[14, 15]]
    with pytest.raises(InvalidArgumentError, match="two distinct frames"):
        cra.draw_frames(torch.zeros(1, 2), 1)


REAL_LOGITS = torch.tensor([[0.5, -3.0]])
FAKE_LOGITS = torch.tensor([[0.0, -2.0], [1.0, 0.5], [-0.5, 4.0], [-7.0, 0.0], [2.0, -1.0]])


def test_losses_in_closed_form() -> None:
    hinge, log, made = 0.0, 0.0, {"hinge": 0.0, "log": 0.0}
    for video in range(2):
        d = [
            1 / (1 + math.exp(-logit))
            for logit in (*REAL_LOGITS[:, video].tolist(), *FAKE_LOGITS[:, video].tolist())
        ]
        log += (math.log(1 - d[0]) + sum(math.log(x) for x in d[1:])) / 2
        hinge += max(0.0, 1 - REAL_LOGITS[0, video].item()) / 2
        hinge += sum(max(0.0, 1 + logit) for logit in FAKE_LOGITS[:, video].tolist()) / 2
        made["log"] += sum(math.log(1 - x) for x in d[1:4]) / 2
        made["hinge"] += -sum(FAKE_LOGITS[:3, video].tolist()) / 2
    assert cra.discriminator_loss(REAL_LOGITS, FAKE_LOGITS).item() == pytest.approx(hinge, rel=1e-6)
    assert cra.discriminator_loss(REAL_LOGITS, FAKE_LOGITS, "log").item() == pytest.approx(log, rel=1e-6)
    assert cra.generator_loss(FAKE_LOGITS[:3]).item() == pytest.approx(made["hinge"], rel=1e-6)
    assert cra.generator_loss(FAKE_LOGITS[:3], "log").item() == pytest.approx(made["log"], rel=1e-6)
    with pytest.raises(InvalidArgumentError, match="'hinge' or 'log'"):
        cra.generator_loss(FAKE_LOGITS, "wasserstein")


@pytest.mark.parametrize("form", ["hinge", "log"])
@torch.enable_grad()
def test_losses_pull_the_logits_the_right_way(form: cra.Form) -> None:
    real, fake, made = (torch.zeros(n, 2, requires_grad=True) for n in (1, 5, 3))
    cra.discriminator_loss(real, fake, form).backward()
    cra.generator_loss(made, form).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    assert (made.grad < 0).all()


def test_printed_form_is_unbounded_and_hinge_is_not() -> None:
    real, fake = torch.full((1, 1), 1e4), torch.full((5, 1), -1e4)  # told apart by far
    assert cra.discriminator_loss(real, fake).item() == 0
    assert cra.discriminator_loss(real, fake, "log").item() == pytest.approx(-6e4)
    assert cra.generator_loss(fake[:3].half(), "log").isfinite()


def test_losses_are_means_over_videos() -> None:
    for form in ("hinge", "log"):
        whole = cra.discriminator_loss(REAL_LOGITS, FAKE_LOGITS, form)
        parts = [cra.discriminator_loss(REAL_LOGITS[:, [i]], FAKE_LOGITS[:, [i]], form) for i in range(2)]
        assert whole.item() == pytest.approx(sum(p.item() for p in parts) / 2, rel=1e-6)
        weights = torch.tensor([[1.0, 0.0]]).expand(3, 2)
        gated = cra.generator_loss(FAKE_LOGITS[:3], form, weights)
        assert gated.item() == pytest.approx(cra.generator_loss(FAKE_LOGITS[:3, :1], form).item() / 2, rel=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_clean_estimate_leads_back_for_every_frame_at_its_own_time(prediction_type: str) -> None:
    process, t = diffusion(prediction_type), torch.tensor([[10, 500], [999, 700]])
    clean, eps = noise(2, 3, 2, 4, 4), noise(2, 3, 2, 4, 4, seed=1)
    x_t = process.noised(clean, eps, t)
    estimate = process.clean_estimate(process.target(clean, eps, t), x_t, t)
    assert torch.allclose(estimate, clean, atol=2e-5)


def test_printed_coefficient_does_not_lead_back() -> None:
    """Eq. 5 and 9 with 1 - abar: of another variance than eq. 4, and not what the schedule noises to."""
    process, t = diffusion(), torch.tensor([[500]])
    clean, eps = noise(1, 3, 1, 4, 4), noise(1, 3, 1, 4, 4, seed=1)
    abar = process.scheduler.alphas_cumprod[500].item()
    x_t = process.noised(clean, eps, t)
    printed = (x_t - (1 - abar) * eps) / math.sqrt(abar)  # eq. 9 as it stands
    corrected = (x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
    assert torch.allclose(corrected, clean, atol=1e-5)
    assert (printed - clean).abs().max() > 0.1


def test_gate_closes_where_noise_drowns_the_estimate() -> None:
    process = diffusion()
    abar = process.scheduler.alphas_cumprod.double()
    factor = ((1 - abar) / abar).sqrt()
    assert factor[999].item() == pytest.approx(14.6, abs=0.05)
    t = torch.arange(1000).reshape(4, 250)
    for limit in (0.5, 1.0, 5.0):
        assert torch.equal(cra.timestep_gate(process, t, limit).flatten() > 0, factor <= limit)
    assert cra.timestep_gate(process, t, None).all()
    assert cra.timestep_gate(process, t, 15.0).all()


def test_pairs_weigh_what_their_synthesised_frames_do() -> None:
    gates = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    assert cra.pair_weights(gates, cra.DISCRIMINATOR_REAL).tolist() == [[1, 1]]
    expected = [[0, 1], [1, 0.5], [0, 0.5], [1, 1], [0, 0.5]]
    assert cra.pair_weights(gates, cra.DISCRIMINATOR_FAKE).tolist() == expected
    assert cra.pair_weights(gates, cra.GENERATOR_REAL).tolist() == [[0, 0.5], [1, 0.5], [0, 1]]


def discriminator() -> PairDiscriminator:
    torch.manual_seed(0)
    return PairDiscriminator(3, 4, 8, (1, 2), full_levels=(1,), head_dim=4)


@pytest.mark.parametrize("form", ["hinge", "log"])
@torch.enable_grad()
def test_gradients_reach_the_decoder_through_the_one_and_not_through_the_other(form: cra.Form) -> None:
    judged, process, t = discriminator(), diffusion(), torch.tensor([[100, 300], [50, 400]])
    clean = noise(2, 3, 2, 4, 4)
    network = nn.Conv3d(3, 3, 1)  # in place of the frame decoder
    x_t = process.noised(clean, noise(2, 3, 2, 4, 4, seed=1), t)
    synthetic = process.clean_estimate(network(x_t), x_t, t)
    real_pairs, fake_pairs = cra.discriminator_pairs(clean, synthetic)
    assert not real_pairs.requires_grad
    assert not fake_pairs.requires_grad
    loss = cra.discriminator_loss(cra.judge(judged, real_pairs), cra.judge(judged, fake_pairs), form)
    loss.backward()
    assert network.weight.grad is None
    assert all(p.grad is not None for p in judged.parameters())
    cra.generator_loss(cra.judge(judged, cra.generator_pairs(clean, synthetic)), form).backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs().min() > 0


@torch.enable_grad()
def test_gated_frames_get_no_gradient() -> None:
    judged, clean = discriminator(), noise(2, 3, 2, 4, 4)
    synthetic = noise(2, 3, 2, 4, 4, seed=1).requires_grad_()
    gates = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    logits = cra.judge(judged, cra.generator_pairs(clean, synthetic))
    cra.generator_loss(logits, weights=cra.pair_weights(gates, cra.GENERATOR_REAL)).backward()
    assert synthetic.grad is not None
    assert (synthetic.grad.abs().sum((1, 3, 4)) > 0).tolist() == [[True, False], [True, True]]


def test_judged_pairs_keep_their_places() -> None:
    pairs = noise(5, 2, 3, 2, 4, 4)
    judged = discriminator().eval()
    with torch.no_grad():
        logits = cra.judge(judged, pairs)
        assert torch.allclose(logits[3], judged(pairs[3]), atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="differ in shape"):
        cra.generator_pairs(noise(2, 3, 2, 4, 4), noise(2, 3, 2, 4, 8))
