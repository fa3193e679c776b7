"""GLOBER's discriminator in training: what it is shown, latents or pixels, and whom its judgement reaches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from tiny_glober import batch_of, noise, step_of
from tiny_glober import build as build_tiny

from vidgen.recipe import TrainingConfig
from vidgen.training.running import begin_stage

B, F = 3, 8
CONFIG = TrainingConfig(batch_size=B, warmup_steps=0)
CLIPS = noise(B, 3, F, 8, 8, seed=4).clamp(-1, 1)


def build(**changes):
    return build_tiny(**{"prediction_type": "epsilon", "sample_frames": F, "kl_weight": 0.0, **changes})


def frames_of(step, sample):
    """The two frames of a clip, from the step's keys."""
    one, other = step.uniforms(sample, "frames", 2).float().tolist()
    first, second = int(one * F), int(other * (F - 1))
    return sorted((first, second + (second >= first)))


@pytest.fixture
def pixel(tmp_path):
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=8,
        scaling_factor=0.7,
    ).save_pretrained(tmp_path / "vae")
    return build(codec=str(tmp_path), judge="pixel")


@pytest.fixture(params=["latent", "pixel"])
def either(request):
    """A GLOBER whose discriminator sees latents, and one whose discriminator sees pixels."""
    return build() if request.param == "latent" else request.getfixturevalue("pixel")


def test_pixels_are_needed_where_they_are_judged(pixel):
    assert pixel.stages()[0].needs_pixels
    assert not pixel.stages()[1].needs_pixels
    pixel.config = replace(pixel.config, cra_weight=0.0)
    assert not pixel.stages()[0].needs_pixels
    assert not any(stage.needs_pixels for stage in build().stages())


def test_gradients_reach_the_decoder_and_the_codec_stays(either):
    stage = either.stages()[0]
    running = begin_stage(either, stage, CONFIG, torch.device("cpu"))
    before = {key: x.clone() for key, x in either.codec.state_dict().items()}
    learns = {name: either.parameters_of(name) for name in ("unet", "video_encoder", "branch", "index")}
    step, gradients = step_of(stage), []
    for weight in (0.1, 1.1):  # their difference is the adversary's
        stage.config = replace(either.config, cra_weight=weight)
        first = next(stage.losses(batch_of(clip=CLIPS), step))
        every = [p for own in learns.values() for p in own]
        found = torch.autograd.grad(first.value, every, allow_unused=True)
        gradients.append({id(p): g for p, g in zip(every, found, strict=True)})
    for name, own in learns.items():
        apart = [gradients[1][id(p)] - gradients[0][id(p)] for p in own if gradients[0][id(p)] is not None]
        assert max(float(g.abs().max()) for g in apart) > 1e-5, name
        assert all(g.isfinite().all() for g in apart)
    # A step of both optimisers leaves the codec as it was.
    for loss in stage.losses(batch_of(clip=CLIPS), step):
        loss.value.backward()
        old = either.parameters_of("unet")[0].detach().clone()
        running.optimizers[loss.optimizer].step()
        assert torch.equal(old, either.parameters_of("unet")[0]) == (loss.optimizer == "discriminator")
        assert all(p.grad is None for p in either.parameters_of("codec"))
    assert all(torch.equal(x, before[key]) for key, x in either.codec.state_dict().items())


def test_pixels_of_the_pair_and_of_its_decoded_estimate_are_shown(pixel):
    stage, seen = pixel.stages()[0], []
    pixel.modules["discriminator"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    outputs = []
    pixel.frames_level.decoder.register_forward_hook(lambda _, x, out: outputs.append((x, out)))
    step = step_of(stage)
    with torch.no_grad():
        list(stage.losses(batch_of(clip=CLIPS), step))
        pairs = seen[1].unflatten(0, (6, B))  # the discriminator's own, of which the first are the real ones
        real = torch.stack([CLIPS[i][:, frames_of(step, i)] for i in range(B)])
        assert torch.equal(pairs[0], real)
        ((x_t, t, *_), prediction) = outputs[0]
        a = pixel.scheduler.alphas_cumprod[t][:, None, :, None, None]
        estimate = ((x_t - (1 - a).sqrt() * prediction) / a.sqrt()).transpose(1, 2).flatten(0, 1)
        decoded = pixel.codec.decode_frames(estimate).unflatten(0, (B, 2)).transpose(1, 2)
        assert decoded.abs().max() > 1  # not clamped: what leaves the range has a gradient too
        torch.testing.assert_close(pairs[3], decoded, rtol=0, atol=1e-3)
