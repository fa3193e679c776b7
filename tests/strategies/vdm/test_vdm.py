"""The baseline: equal to its 2D network at first, steered by given frames, able to learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from einops import rearrange
from tiny_vdm import CONFIG, build, sampler

from toy import levels_of
from vidgen import checkpoint
from vidgen.denoising import GivenFrames, sample_known
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.nn import build_unet
from vidgen.noise import Decomposed, NoiseKey
from vidgen.plans import Plan, all_at_once, autoregressive, chunks, keyframes, rooted
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.request import Canvas, Request
from vidgen.trainable import TrainingStep
from vidgen.training import Trainer
from vidgen.training.batches import micro_batches
from vidgen.video.dataset import DataConfig, collate, open_dataset


def test_at_initialisation_every_frame_is_the_image_networks():
    strategy = build(trained=False)
    x = torch.randn(2, 12, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 900])
    tokens = strategy.text_encoder.encode(["red", "circle"])
    with torch.no_grad():
        video = strategy.network(x, t, tokens)
        unet = strategy.network.detach()
        frames = rearrange(torch.cat([x, torch.zeros_like(x[:, :1])], 1), "b c f h w -> (b f) c h w")
        image = unet(frames, t.repeat_interleave(6), tokens.repeat_interleave(6, 0)).sample
    torch.testing.assert_close(video, rearrange(image, "(b f) c h w -> b c f h w", f=6), rtol=0, atol=1e-5)


def test_pretrained_image_model_is_the_start(tmp_path):
    torch.manual_seed(0)
    image = build_unet(12, 12, 8, widths=(16, 32), cross_attention_dim=24, head_dim=16)
    image.save_pretrained(tmp_path / "unet")
    strategy = build(trained=False, pretrained=str(tmp_path))
    x = torch.randn(1, 12, 6, 8, 8)
    tokens = strategy.text_encoder.encode(["red"])
    assert tokens.shape[-1] == 24  # the text encoder fits the image model
    with torch.no_grad():
        video = strategy.network(x, 300, tokens)
        frames = image(x[0].transpose(0, 1), 300, tokens.expand(6, -1, -1)).sample
    torch.testing.assert_close(video[0].transpose(0, 1), frames, rtol=0, atol=1e-5)
    saved = checkpoint.save_strategy(strategy, tmp_path / "saved")
    (tmp_path / "unet" / "config.json").unlink()  # a checkpoint needs nothing but itself
    assert isinstance(checkpoint.load_strategy(saved).modules["unet"], UNet2DConditionModel)
    with pytest.raises(InvalidArgumentError, match="there is no such folder, and no bundled model"):
        build(pretrained=str(tmp_path / "nowhere"))


def test_plan_is_all_at_once_then_an_autoregressive_window():
    strategy = build()
    assert strategy.plan(6) == all_at_once(6)
    assert strategy.plan(20) == autoregressive(20, 6, 2)
    assert strategy.plan(20).num_calls == 1 + -(-(20 - 6) // (6 - 2))


def test_plans_that_do_not_fit_are_refused_by_the_first_bad_call():
    strategy = build()
    strategy.check_plan(chunks(20, 6))
    with pytest.raises(PlanError, match="call 'video/0-7' covers 8 frames; vdm was trained on clips of 6"):
        strategy.check_plan(chunks(20, 8))
    plan: Plan = keyframes(20, 6)
    with pytest.raises(PlanError, match=f"call '{plan.calls[0].id}'.*trained on frames at spacing 1"):
        sampler(strategy)("red", num_frames=20, plan=plan)


@pytest.mark.parametrize("given", ["clean", "replacement"])
def test_windows_share_their_frames_and_past_steers_the_future(given):
    make = sampler(build())
    arguments = {"num_frames": 10, "num_inference_steps": 3, "output_type": "latent", "given": given}
    video = make("red circle", seed=0, **arguments).frames
    first = make("red circle", seed=0, **{**arguments, "num_frames": 6}).frames
    torch.testing.assert_close(video[:, :, :6], first, rtol=0, atol=1e-5)  # the past is kept as it is
    pin = np.full((16, 16, 3), 255, np.uint8)
    pinned = make("red circle", seed=0, pins={5: pin}, **arguments).frames
    assert (pinned[:, :, 6:] - video[:, :, 6:]).abs().max() > 1e-3
    other = make("red circle", seed=0, **{**arguments, "given": "clean" if given != "clean" else "replacement"})
    assert (other.frames[:, :, 6:] - video[:, :, 6:]).abs().max() > 1e-3


def test_clean_conditions_need_training_for_them():
    strategy = build(mask_past=0.0, mask_random=0.0)
    request = Request("red", "", 0, 10, 16, 16, 8.0, levels_of(strategy), strategy.Options(given="clean"))
    level = strategy.levels["video"]
    call = strategy.plan(10).calls[1]
    canvas = Canvas({slot: torch.zeros(12, 8, 8) for slot in call.given})
    with pytest.raises(InvalidArgumentError, match="train with mask_past"):
        level.condition(call, canvas, request)
    assert level.condition(call, canvas, replace(request, options=strategy.Options())).replace


def test_condition_holds_the_given_frames_and_the_text_of_the_new_ones():
    strategy = build()
    call = strategy.plan(10).calls[1]  # frames 4..9, of which 4 and 5 are given
    canvas = Canvas({slot: torch.full((12, 8, 8), float(slot[1])) for slot in call.given})
    levels, options = levels_of(strategy, guidance_scale=3.0), strategy.Options()
    request = Request({0: "red", 6: "circle"}, "", 0, 10, 16, 16, 8.0, levels, options)
    with torch.no_grad():
        cond = strategy.levels["video"].condition(call, canvas, request)
        expected = strategy.text_encoder.encode(["circle", ""])
    assert cond.known.tolist() == [[True, True, False, False, False, False]]
    assert cond.clean[0, 0, :, 0, 0].tolist() == [4, 5, 0, 0, 0, 0]
    torch.testing.assert_close(torch.cat([cond.tokens, cond.negative_tokens]), expected)


def test_guidance_mixes_the_two_predictions():
    strategy = build()
    plan = strategy.plan(6)
    level, levels = strategy.levels["video"], levels_of(strategy, guidance_scale=4.0)
    request = Request("red", "", 0, 6, 16, 16, 8.0, levels, strategy.Options())
    x, t = torch.randn(1, 12, 6, 8, 8), torch.tensor([400])
    with torch.no_grad():
        cond = level.condition(plan.calls[0], Canvas(), request)
        guided = level.denoise(x, t, cond)
        red, empty = (strategy.network(x, t, strategy.text_encoder.encode([s])) for s in ("red", ""))
    torch.testing.assert_close(guided, empty + 4 * (red - empty), rtol=1e-4, atol=1e-5)


def test_negative_prompt_and_guidance_scale_reach_the_result():
    make = sampler(build())
    arguments = {"seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    videos = [
        make("red", guidance_scale=scale, negative_prompt=negative, **arguments).frames
        for scale, negative in ((3.0, ""), (3.0, "circle"), (5.0, ""), (1.0, ""), (1.0, "circle"))
    ]
    assert all((videos[0] - other).abs().max() > 1e-4 for other in videos[1:4])
    torch.testing.assert_close(videos[3], videos[4])


def test_min_snr_changes_the_weight_of_the_loss():
    dataset = open_dataset(DataConfig.of("shapes", clip_length=6, size=16, videos=4))
    batch = collate([dataset[i] for i in range(3)])
    losses = []
    for gamma in (None, 1e9, 0.5):
        (stage,) = build(prediction_type="sample", snr_gamma=gamma, mask_past=0.0, drop_text=1.0).stages()
        step = TrainingStep(seed=5, stage=stage.name, index=2, samples=(0, 1, 2))
        (loss,) = stage.losses(batch, step)
        losses.append(float(loss.value.detach()))
    assert len(set(losses)) == 3
    assert losses[2] < 0.5 * losses[0] + 1e-6  # min(SNR, 0.5) is at most 0.5


def test_masks_have_the_shares_they_should():
    uniform = torch.rand(20000, 8, generator=torch.Generator().manual_seed(0))
    known = sample_known(uniform, 6, past=0.4, random=0.2)
    count = known.sum(1)
    assert abs((count > 0).float().mean() - 0.6) < 0.02
    assert count.max() == 5  # never all: something is left to learn
    prefix = (known == (torch.arange(6) < count[:, None])).all(1) & (count > 0)
    assert prefix.float().mean() > 0.39
    lengths = torch.bincount(count[uniform[:, 0] < 0.4], minlength=6)[1:].float()
    assert (lengths / lengths.sum() - 0.2).abs().max() < 0.02
    scattered = known[(uniform[:, 0] >= 0.4) & (uniform[:, 0] < 0.6)].float().mean(0)
    assert (scattered - scattered.mean()).abs().max() < 0.03  # every frame alike
    assert not sample_known(uniform[:, :3], 1, 1.0, 0.0).any()


def test_single_frames_are_the_first_or_any():
    uniform = torch.rand(20000, 8, generator=torch.Generator().manual_seed(0))
    known = sample_known(uniform, 6, past=0.2, random=0.1, single=0.5)
    kind = uniform[:, 0]
    single = known[(kind >= 0.3) & (kind < 0.8)]
    assert (single.sum(1) == 1).all()
    assert not known[kind >= 0.8].any()
    share = single.float().mean(0)
    assert abs(share[0] - (0.5 + 0.5 / 6)) < 0.02
    assert (share[1:] - 0.5 / 6).abs().max() < 0.02
    assert torch.equal(known[kind < 0.3], sample_known(uniform, 6, past=0.2, random=0.1)[kind < 0.3])


def test_loss_is_on_new_frames_only_and_noise_is_the_priors():
    strategy = build(prior=Decomposed(lam=0.9), mask_past=1.0, mask_random=0.0, drop_text=1.0)
    (stage,) = strategy.stages()
    dataset = open_dataset(DataConfig.of("shapes", clip_length=6, size=16, videos=4))
    batch = collate([dataset[i] for i in range(3)])
    step = TrainingStep(seed=5, stage=stage.name, index=2, samples=(0, 1, 2))
    seen = {}

    def spy(module, arguments, output):
        seen.update(zip(("x_t", "t", "tokens", "known", "clean"), arguments, strict=True), out=output)

    strategy.network.register_forward_hook(spy)
    (loss,) = stage.losses(batch, step)
    clean = strategy.latents(batch)
    hidden = (seen["clean"] == 0).all(dim=1)
    assert torch.equal(hidden.all(dim=(2, 3)), ~seen["known"])  # what is not given is not told
    level = strategy.levels["video"]
    k = level.diffusion.coefficients(seen["t"], clean)
    noise = (seen["x_t"] - k.signal * clean) / k.noise
    keys = [NoiseKey(5, f"noise-2-{i}", "train/denoiser") for i in range(3)]
    torch.testing.assert_close(
        noise, level.prior.sample_batch(range(6), (12, 8, 8), keys), rtol=1e-3, atol=1e-2
    )
    error = (seen["out"] - level.diffusion.target(clean, noise, seen["t"])) ** 2
    clips = [error[i, :, ~seen["known"][i]].mean() for i in range(3)]
    torch.testing.assert_close(loss.value, torch.stack(clips).mean(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(seen["tokens"], strategy.text_encoder.encode([""] * 3))
    (again,) = stage.losses(batch, step)
    assert torch.equal(again.value, loss.value)  # nothing ambient
    (other,) = stage.losses(batch, replace(step, index=3))
    assert not torch.equal(other.value, loss.value)


def test_pins_and_batches_do_not_change_each_other():
    """Calls with and without given frames are never put in one batch."""
    make, pin = sampler(build()), np.full((16, 16, 3), 255, np.uint8)
    arguments = {"num_frames": 12, "plan": chunks(12, 6), "pins": {0: pin}, "num_inference_steps": 2}
    alone = [make("red", seed=seed, batch_size=1, output_type="latent", **arguments).frames for seed in (0, 1)]
    for size in (2, 3, 9):
        both = make("red", num_videos_per_prompt=2, seed=0, batch_size=size, output_type="latent", **arguments)
        torch.testing.assert_close(both.frames, torch.cat(alone), rtol=0, atol=1e-4)


def test_gradient_does_not_depend_on_how_the_batch_is_cut():
    dataset = open_dataset(DataConfig.of("shapes", clip_length=6, size=16, videos=4))
    batch = collate([dataset[i] for i in range(4)])
    gradients = []
    for size in (4, 1):
        strategy = build(mask_past=0.9, mask_random=0.1, drop_text=1.0)
        (stage,) = strategy.stages()
        for piece, micro in micro_batches(batch, size):
            step = TrainingStep(5, stage.name, 2, tuple(range(4))[piece])
            (loss,) = stage.losses(micro, step)
            (loss.value * len(micro) / 4).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in strategy.parameters_of("unet", "temporal")]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_clips_begin_with_a_picture_until_first_frame_steps():
    strategy = build(mask_past=1.0, mask_random=0.0, first_frame_steps=3, drop_text=1.0)
    (stage,) = strategy.stages()
    dataset = open_dataset(DataConfig.of("shapes", clip_length=6, size=16, videos=4))
    batch = collate([dataset[i] for i in range(4)])
    for index in (0, 2):
        example = stage.example(batch, TrainingStep(5, stage.name, index, (0, 1, 2, 3)))
        assert torch.equal(example.clean, strategy.latents(batch))
        assert example.given.tolist() == [[True, *[False] * 5]] * 4
    step = TrainingStep(5, stage.name, 3, (0, 1, 2, 3))
    assert torch.equal(stage.example(batch, step).given, GivenFrames(1.0, 0.0).draw(step, 4, 6))
    assert not build(mask_past=0.0, mask_random=0.0).config.takes_frames
    assert build(mask_past=0.0, mask_random=0.0, first_frame_steps=1).config.takes_frames


def test_levels_that_it_does_not_know_are_refused():
    with pytest.raises(PlanError, match=r"is of level 'global'; vdm has a model for 'video' only"):
        build().check_plan(rooted(chunks(12, 6), "global"))


def test_pretrained_process_is_kept(tmp_path):
    torch.manual_seed(0)
    build_unet(12, 12, 8, widths=(16, 32), head_dim=16).save_pretrained(tmp_path / "unet")
    DDIMScheduler(prediction_type="epsilon", beta_schedule="scaled_linear", beta_end=0.012).save_pretrained(
        tmp_path / "scheduler"
    )
    strategy = build(trained=False, pretrained=str(tmp_path))
    config = strategy.scheduler.config
    assert (config.prediction_type, config.beta_schedule, config.beta_end) == (
        "epsilon",
        "scaled_linear",
        0.012,
    )
    assert not config.clip_sample


def test_training_lowers_the_loss_and_takes_words_and_statistics_from_the_data(tmp_path):

    recipe = Recipe(
        "vdm",
        replace(CONFIG, words=(), pixel_mean=None, pixel_std=None),
        DataConfig.of("shapes", clip_length=6, size=16, videos=8),
        TrainingConfig(steps=60, batch_size=4, learning_rate=5e-3, warmup_steps=5, log_every=10, ema_decay=0.9),
    )
    trainer = Trainer(recipe, tmp_path, progress=False, device="cpu")
    trainer.run()
    config = trainer.strategy.config
    assert config.sample_size == (16, 16)
    captions = open_dataset(recipe.data).texts()
    assert set(config.words) == {word for text in captions for word in text.split()}
    pixels = torch.cat([clip.clip.flatten() for clip in open_dataset(recipe.data)])
    assert abs(config.pixel_mean - float(pixels.mean())) < 1e-4
    assert abs(config.pixel_std - float(pixels.std())) < 1e-3
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert sum(losses[-3:]) / 3 < 0.87 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_past": 0.9, "mask_random": 0.2}, "together at most 1"),
        ({"drop_text": -0.1}, "expected a share"),
        ({"first_frame_steps": -1}, "expected 0 or more"),
        ({"context": 6}, "expected 1 to 5"),
        ({"context": 0}, "expected 1 to 5"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        replace(CONFIG, **changes)


def test_model_without_prompts_is_not_guided():
    strategy = build(words=())
    assert strategy.levels["video"].guidance_scale == 1.0
    assert sampler(strategy)("", seed=0, num_inference_steps=2).frames.shape == (1, 6, 16, 16, 3)
    with pytest.raises(InvalidArgumentError, match="never learnt"):
        sampler(strategy)("red", num_inference_steps=2)
