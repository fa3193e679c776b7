"""What denoising strategies share: the loss as it always was, settings from data, the usual conditions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from toy import levels_of
from vidgen import checkpoint
from vidgen import config as configs
from vidgen.conditioning import Conditioning
from vidgen.denoising import (
    ClipConfig,
    DenoisingLevel,
    DenoisingStage,
    DenoisingStrategy,
    GivenFrames,
    mark_given,
    sample_known,
)
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.noise import Decomposed, NoiseKey, Progressive
from vidgen.plans import Level, Plan, all_at_once, autoregressive, chunks, keyframes
from vidgen.request import Canvas, Request
from vidgen.sampling import Sampler
from vidgen.strategies.vdm import VDM, VDMConfig
from vidgen.trainable import TrainingStep
from vidgen.training.batches import micro_batches
from vidgen.video.dataset import DataConfig, collate, open_dataset

DATA = open_dataset(DataConfig.of("shapes", clip_length=6, size=16, videos=4))
BATCH = collate([DATA[i] for i in range(4)])


class Net(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, channels: int = 12, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels + 1, channels, 3, padding=1)
        self.time = nn.Linear(width + 1, channels)
        self.seen: list[tuple[torch.Tensor, torch.Tensor, Conditioning]] = []

    def forward(self, x_t, t, cond):
        self.seen.append((x_t, t, cond))
        told = self.time(torch.cat([cond.tokens.mean(1), (t[:, None] / 1000).to(cond.tokens)], 1))
        return self.conv(mark_given(x_t, cond)) + told[:, :, None, None, None]


@dataclass(frozen=True)
class SmallConfig(ClipConfig):
    width: int = 8
    patch: int = 2
    prior: Progressive = Progressive(0.5)  # noqa: RUF009


class Small(DenoisingStrategy):
    name = "small"
    Config = SmallConfig
    component_types = DenoisingStrategy.component_types | {"network": (Net,)}

    @classmethod
    def create(cls, config):
        codec, text = config.build_codec(), config.build_text_encoder(config.width)
        modules = {"codec": codec, "text_encoder": text, "network": Net(codec.channels, config.width)}
        return cls(config, modules, config.build_scheduler())

    def plan(self, num_frames):
        return all_at_once(num_frames)

    def predict(self, x_t, t, cond):
        return self.modules["network"](x_t, t, cond)


def small(**changes):
    return checkpoint.build(Small, Small.prepare(SmallConfig(**changes), DATA))


class Shown(DenoisingStage):
    """Learns from a part of each clip, some frames of which are given."""

    def __init__(self, *arguments, given=None, frames=slice(None), weight=None, numbers=None, **options):
        super().__init__(*arguments, **options)
        self.given, self.frames, self.weight, self.numbers = given, frames, weight, numbers

    def example(self, batch, step):
        found = super().example(batch, step)
        clean = found.clean[:, :, self.frames]
        given = self.given.draw(step, *clean.shape[:3:2]) if isinstance(self.given, GivenFrames) else self.given
        return replace(found, clean=clean, given=given, weight=self.weight, frames=self.numbers)


def step_of(stage, index=0):
    return TrainingStep(seed=5, stage=stage.name, index=index, samples=(0, 1, 2, 3))


def old_vdm_loss(strategy, batch, step):
    """The baseline's loss as it was written before there was a stage to share, word for word."""
    config, level = strategy.config, strategy.levels["video"]
    clean = strategy.latents(batch)
    t = level.diffusion.sample_timesteps(step.uniform("timestep")).to(clean.device)
    noise = step.noise(level.prior, clean)
    uniform = torch.stack([step.uniforms(i, "known", clean.shape[2] + 2) for i in range(len(batch))])
    known = sample_known(uniform, clean.shape[2], config.mask_past, config.mask_random).to(clean.device)
    drops = (step.uniform("drop") < config.drop_text).tolist()
    texts = ["" if drop else text for text, drop in zip(batch.captions, drops, strict=True)]
    x_t = level.diffusion.noised(clean, noise, t)
    prediction = strategy.network(x_t, t, strategy.text_encoder.encode(texts), known, clean)
    error = (prediction.float() - level.diffusion.target(clean, noise, t)) ** 2
    if config.snr_gamma is not None:
        error = error * level.diffusion.min_snr_weight(t, clean, config.snr_gamma)
    weight = (~known)[:, None, :, None, None].float().expand_as(error)
    dims = (1, 2, 3, 4)
    return ((error * weight).sum(dims) / weight.sum(dims)).mean()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "mask_past": 0.5,
            "mask_random": 0.5,
            "drop_text": 0.5,
            "snr_gamma": 5.0,
            "prior": Decomposed(lam=0.4),
        },
        {"mask_past": 0.0, "mask_random": 0.0, "prediction_type": "sample", "drop_text": 1.0},
    ],
)
def test_the_baselines_loss_and_gradient_are_the_same_bits_as_before(changes):
    config = VDMConfig(patch=4, widths=(16,), attention_levels=(0,), head_dim=8, text_width=8, context=2)
    strategy = checkpoint.build(VDM, VDM.prepare(replace(config, sample_frames=6, **changes), DATA))
    with torch.no_grad():  # as if trained: no layer is zero
        for parameter in strategy.parameters_of("unet", "temporal", "text_encoder"):
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    (stage,) = strategy.stages()
    assert (stage.name, stage.components) == ("denoiser", ("unet", "temporal", "text_encoder"))
    for index in range(2):
        (loss,) = stage.losses(BATCH, step_of(stage, index))
        wanted = old_vdm_loss(strategy, BATCH, step_of(stage, index))
        assert torch.equal(loss.value, wanted)
        parameters = strategy.parameters_of(*stage.components)
        found, before = (torch.autograd.grad(value, parameters) for value in (loss.value, wanted))
        assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))


def test_loss_is_the_mean_over_each_clips_frames_that_are_not_given():
    strategy = small(drop_text=0.0)
    known = torch.zeros(4, 6, dtype=torch.bool)
    known[0, :5] = known[1, 2] = True
    stage, level = Shown(strategy, ["network"], given=known), strategy.levels["video"]
    (loss,) = stage.losses(BATCH, step_of(stage))
    (x_t, t, cond) = strategy.modules["network"].seen[-1]
    clean, k = strategy.latents(BATCH), level.diffusion.coefficients(t, x_t)
    keys = [NoiseKey(5, f"noise-0-{i}", "train/denoiser") for i in range(4)]
    noise = level.prior.sample_batch(range(6), (12, 8, 8), keys)
    torch.testing.assert_close(x_t, k.signal * clean + k.noise * noise)
    assert torch.equal(cond.known, known)
    for clip in range(4):  # only what is given is shown
        for frame in range(6):
            shown = cond.clean[clip, :, frame]
            assert torch.equal(shown, clean[clip, :, frame] if known[clip, frame] else torch.zeros_like(shown))
    error = (strategy.predict(x_t, t, cond) - level.diffusion.target(clean, noise, t)) ** 2
    clips = [error[i, :, ~known[i]].mean() for i in range(4)]
    torch.testing.assert_close(loss.value, torch.stack(clips).mean())
    torch.testing.assert_close(cond.tokens, strategy.text_encoder.encode(BATCH.captions))


def test_noise_bias_moves_the_timesteps():
    strategy, step = small(), TrainingStep(0, "denoiser", 0, (0, 1, 2, 3))
    for bias in (0.0, 2.0):
        (_,) = DenoisingStage(strategy, ["network"], noise_bias=bias).losses(BATCH, step)
    times = [t for _, t, _ in strategy.modules["network"].seen]
    expected = strategy.levels["video"].diffusion.sample_timesteps(step.uniform("timestep"), 2.0)
    assert torch.equal(times[1], expected)
    assert (times[1] > times[0]).all()


def test_times_may_be_drawn_for_every_frame_and_weights_given():
    class PerFrame(Shown):
        def timesteps(self, example, step):
            return torch.arange(24).reshape(4, 6) * 40

    strategy = small(drop_text=0.0)
    level = strategy.levels["video"]
    level.predict = lambda x_t, t, cond: torch.zeros_like(x_t)
    weight = torch.tensor([[1.0, 0, 0, 0, 0, 0]] * 3 + [[0.0] * 5 + [2.0]])
    numbers = torch.tensor([[5, 4, 3, 2, 1, 0]] * 4)
    stage = PerFrame(strategy, ["network"], weight=weight, numbers=numbers)
    found = stage.denoised(stage.example(BATCH, step_of(stage)), step_of(stage))
    t, clean = torch.arange(24).reshape(4, 6) * 40, strategy.latents(BATCH)
    assert torch.equal(found.t, t)
    keys = [NoiseKey(5, f"noise-0-{i}", "train/denoiser") for i in range(4)]
    noise = level.prior.sample_batch(range(6), (12, 8, 8), keys).flip(2)  # by its own number, not by its place
    target = level.diffusion.target(clean, noise, t)
    expected = (target**2 * weight[:, None, :, None, None]).mean((1, 2, 3, 4)).mean()
    torch.testing.assert_close(found.loss, expected)


def test_noise_of_another_stream_is_another():
    step, prior, like = TrainingStep(0, "denoiser", 0, (0, 1)), Progressive(0.5), torch.zeros(2, 3, 4, 2, 2)
    assert torch.equal(step.noise(prior, like), step.noise(prior, like, torch.arange(4).expand(2, -1)))
    assert not torch.equal(step.noise(prior, like), step.noise(prior, like, stream="other"))


def test_batch_may_be_cut_anywhere():
    strategy = small(drop_text=0.5, snr_gamma=5.0)
    stage = Shown(strategy, ["network"], given=GivenFrames(0.6, 0.3), drop_text=0.5, snr_gamma=5.0)
    (whole,) = stage.losses(BATCH, step_of(stage))
    parts = 0.0
    for piece, micro in micro_batches(BATCH, 3):
        (loss,) = stage.losses(micro, replace(step_of(stage), samples=(0, 1, 2, 3)[piece]))
        parts += float(loss.value.detach()) * len(micro) / 4
    assert parts == pytest.approx(float(whole.value.detach()), rel=1e-5)


def test_an_example_may_be_a_part_of_the_clip_and_prompts_are_dropped():
    strategy = small()
    stage = Shown(strategy, ["network"], frames=slice(3, None), drop_text=1.0)
    list(stage.losses(BATCH, step_of(stage)))
    x_t, _, cond = strategy.modules["network"].seen[-1]
    assert x_t.shape[2] == 3
    assert cond.known is None
    torch.testing.assert_close(cond.tokens, strategy.text_encoder.encode([""] * 4))


def test_min_snr_and_kept_latents():
    strategy = small(prediction_type="sample", drop_text=0.0)
    losses = []
    for gamma in (None, 1e-3):
        stage = DenoisingStage(strategy, ["network"], snr_gamma=gamma)
        (loss,) = stage.losses(BATCH, step_of(stage))
        losses.append(float(loss.value.detach()))
    assert 0 < losses[1] <= 1e-3 * losses[0] * (1 + 1e-5)  # min(SNR, 0.001) is 0.001 nearly everywhere
    kept = replace(BATCH, clip=BATCH.clip[:, :, :0], latents=strategy.latents(BATCH))
    assert not stage.needs_pixels
    (again,) = stage.losses(kept, step_of(stage))
    assert float(again.value.detach()) == losses[1]


def test_stages_may_differ_by_name():
    strategy = small()
    stage = DenoisingStage(strategy, ["network"], name="coarse")
    (group,) = stage.optimizers()
    (loss,) = stage.losses(BATCH, step_of(stage))
    assert group.name == loss.optimizer == "coarse"
    assert [id(p) for p in group.parameters] == [id(p) for p in strategy.modules["network"].parameters()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"components": ["network", "unet"]},
            r"train \['unet'\]; expected some of .* text_encoder, network",
        ),
        ({"components": []}, "train nothing"),
        ({"components": ["network"], "drop_text": 1.5}, "drop_text is 1.5"),
    ],
)
def test_bad_stages(arguments, message):
    strategy = small()
    with pytest.raises(InvalidArgumentError, match=message):
        DenoisingStage(strategy, **arguments)


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (0.7, 0.4)])
def test_bad_shares_of_given_frames(shares):
    with pytest.raises(InvalidArgumentError, match="together at most 1"):
        GivenFrames(*shares)


def test_given_frames_are_drawn_by_the_steps_key():
    step = TrainingStep(5, "denoiser", 3, (0, 1, 2, 3))
    known = GivenFrames(0.5, 0.5).draw(step, 4, 6)
    uniform = torch.stack([step.uniforms(i, "known", 8) for i in range(4)])
    assert torch.equal(known, sample_known(uniform, 6, 0.5, 0.5))
    assert known.any(1).all()
    assert not known.all(1).any()


def test_mark_given_shows_clean_frames_and_says_which():
    x, clean = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    known = torch.tensor([[True, False, False, True], [False] * 4])
    cond = Conditioning(known=known, clean=clean)
    marked = mark_given(x, cond)
    assert torch.equal(marked[0, :3, [0, 3]], clean[0, :, [0, 3]])
    assert torch.equal(marked[0, :3, 1:3], x[0, :, 1:3])
    assert torch.equal(marked[1, :3], x[1])
    assert torch.equal(marked[:, 3, :, 0, 0], known.float())
    for plain in (Conditioning(), replace(cond, replace=True)):  # the solver replaces frames by itself
        assert torch.equal(mark_given(x, plain), torch.cat([x, torch.zeros_like(x[:, :1])], 1))


def test_settings_come_from_the_data_and_survive_json():
    config = SmallConfig(words=(), sample_fps=3.0).fitted(DATA)
    assert (config.sample_frames, config.sample_size, config.sample_fps) == (6, (16, 16), 8.0)
    assert set(config.words) == {word for text in DATA.texts() for word in text.split()}
    assert config.max_words == max(len(text.split()) for text in DATA.texts())
    pixels = torch.cat([sample.clip.flatten() for sample in DATA])
    assert config.pixel_mean == pytest.approx(float(pixels.mean()), abs=1e-4)
    assert config.pixel_std == pytest.approx(float(pixels.std()), abs=1e-3)
    kept = SmallConfig(words=("cat",), max_words=3, pixel_mean=0.1, pixel_std=0.2).fitted(DATA)
    assert (kept.words, kept.max_words, kept.pixel_mean, kept.pixel_std) == (("cat",), 3, 0.1, 0.2)
    plain = json.loads(json.dumps(configs.to_dict(config)))
    assert plain["prior"] == {"kind": "progressive", "a": 0.5}
    assert configs.from_dict(SmallConfig, plain) == config


def test_settings_build_what_they_describe():
    config = SmallConfig(words=("cat", "dog"), max_words=2, pixel_mean=0.25, pixel_std=2.0)
    config = replace(config, prediction_type="epsilon", beta_schedule="linear", num_train_timesteps=77)
    clip = torch.rand(1, 3, 2, 4, 4)
    folded = replace(config, patch=2).build_codec().encode(clip)
    assert folded.shape == (1, 12, 2, 2, 2)
    torch.testing.assert_close(folded.mean(), (clip.mean() - 0.25) / 2)
    encoder = config.build_text_encoder(8, layers=3)
    assert (encoder.encode(["cat dog"]).shape, encoder.config.layers) == ((1, 3, 8), 3)
    scheduler = config.build_scheduler()
    assert isinstance(scheduler, DDIMScheduler)
    c = scheduler.config
    assert (c.prediction_type, c.beta_schedule, c.num_train_timesteps) == ("epsilon", "linear", 77)
    assert (c.clip_sample, c.timestep_spacing) == (False, "trailing")


def test_defaults_and_plans_that_fit():
    strategy = small(guidance_scale=2.5, num_inference_steps=7)
    d = strategy.defaults
    assert (d.num_frames, d.height, d.width, d.fps) == (6, 16, 16, 8.0)
    level = strategy.levels["video"]
    assert (level.guidance_scale, level.num_inference_steps) == (2.5, 7)
    assert level.prior == Progressive(0.5)
    strategy.check_plan(chunks(20, 6))
    with pytest.raises(PlanError, match="covers 7 frames; small was trained on clips of 6"):
        strategy.check_plan(chunks(20, 7))
    with pytest.raises(PlanError, match="spacing"):
        strategy.check_plan(keyframes(20, 6))
    strategy = small(window=4)
    with pytest.raises(PlanError, match="clips of 4"):
        strategy.check_plan(chunks(20, 6))
    strategy.stride = None
    strategy.check_plan(keyframes(7, 4))


def test_plans_that_give_what_the_network_cannot_read_are_refused():
    first, second = chunks(12, 6).calls
    levels = (Level("state", 2, 1, state=True), *chunks(12, 6).levels)
    context = Plan((first, replace(second, given=(("video", 5),))), levels)
    with pytest.raises(PlanError, match="given frame 5, which is not among its frames; small"):
        small().check_plan(context)
    leaving = replace(first, emits=(*first.emits, ("state", 0)))
    with pytest.raises(PlanError, match="given level 'state'; small knows frames of the video"):
        small().check_plan(Plan((leaving, replace(second, given=(("state", 0),))), levels))


def test_condition_has_the_prompt_of_the_first_new_frame_and_what_is_given():
    strategy = small()
    call = autoregressive(10, 6, 2).calls[1]  # frames 4..9, of which 4 and 5 are given
    canvas = Canvas({slot: torch.full((12, 8, 8), float(slot[1])) for slot in call.given})
    first, second = strategy.config.words[:2]
    level = strategy.levels["video"]
    request = Request({0: first, 6: second}, "", 0, 10, 16, 16, 8.0, levels_of(strategy, guidance_scale=4.0))
    with torch.no_grad():
        cond = level.condition(call, canvas, request)
        texts = strategy.text_encoder.encode([second, ""])
    torch.testing.assert_close(torch.cat([cond.tokens, cond.negative_tokens]), texts)
    assert cond.known.tolist() == [[True, True, False, False, False, False]]
    assert cond.clean[0, 0, :, 0, 0].tolist() == [4, 5, 0, 0, 0, 0]
    x, t = torch.randn(1, 12, 6, 8, 8), torch.tensor([400])
    with torch.no_grad():
        guided = level.denoise(x, t, cond)
        one, none = (strategy.predict(x, t, branch) for branch in (cond.positive(), cond.negative()))
    torch.testing.assert_close(guided, none + 4 * (one - none))


def test_without_prompts_nothing_is_guided_and_frozen_encoders_do_not_learn():
    class Silent(Small):
        component_types = {k: v for k, v in Small.component_types.items() if k != "text_encoder"}  # noqa: RUF012

    strategy = small()
    (stage,) = strategy.stages()
    assert stage.components == ("text_encoder", "network")
    strategy.modules["text_encoder"].frozen = True
    (stage,) = strategy.stages()
    assert stage.components == ("network",)
    modules = {name: module for name, module in strategy.modules.items() if name != "text_encoder"}
    silent = Silent(strategy.config, modules, strategy.scheduler)
    level = silent.levels["video"]
    assert level.guidance_scale == 1.0
    request = Request("", "", 0, 6, 16, 16, 8.0, levels_of(silent, guidance_scale=3.0))
    assert level.condition(silent.plan(6).calls[0], Canvas(), request).batch is None
    (stage,) = silent.stages()
    assert stage.example(BATCH, step_of(stage)).conditioning.tokens is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_may_be_cast_while_the_solver_stays_in_float32(dtype):
    strategy = small()
    level, call = strategy.levels["video"], strategy.plan(6).calls[0]
    request = Request("", "", 0, 6, 16, 16, 8.0, levels_of(strategy, guidance_scale=2.0))
    x, t = torch.randn(1, 12, 6, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with torch.no_grad():
        cond = level.condition(call, Canvas(), request)
        exact = level.denoise(x, t, cond)
        strategy.to(dtype=dtype)
        assert level.dtype == dtype
        cast = level.denoise(x, t, cond)
    assert strategy.modules["network"].seen[-1][0].dtype == dtype
    assert cast.dtype == torch.float32
    assert 0 < (cast - exact).abs().max() < 0.1 * exact.abs().max()


def test_tokens_of_every_frame_and_of_levels_at_another_rate():
    class PerFrame(DenoisingLevel):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, tokens_per_frame=True, frame_stride=2, **settings)

    class Scripted(Small):
        level_class = PerFrame

    strategy = checkpoint.build(Scripted, Scripted.prepare(SmallConfig(), DATA))
    first, second = strategy.config.words[:2]
    request = Request({0: first, 6: second}, first, 0, 12, 16, 16, 8.0, levels_of(strategy))
    asked, encode = [], strategy.text_encoder.encode
    strategy.text_encoder.encode = lambda texts: asked.extend(texts) or encode(texts)
    level, calls = strategy.levels["video"], chunks(6, 6).calls
    with torch.no_grad():
        cond = level.condition(calls[0], Canvas(), request)
        again = level.condition(calls[0], Canvas(), request)
        one, other = encode([first]), encode([second])
    words, features = one.shape[1:]
    assert cond.tokens.shape == cond.negative_tokens.shape == (1, 6, words, features)
    for frame in range(6):  # frame i of the level is frame 2 i of the video
        torch.testing.assert_close(cond.tokens[:, frame], one if frame < 3 else other)
        torch.testing.assert_close(cond.negative_tokens[:, frame], one)
    assert torch.equal(again.tokens, cond.tokens)
    assert sorted(asked) == sorted([first, second])  # each text once, however often it is told


def test_texts_are_encoded_once_in_a_generation():
    strategy = small()
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    first, second = strategy.config.words[:2]
    asked, encode = [], strategy.text_encoder.encode
    strategy.text_encoder.encode = lambda texts: asked.extend(texts) or encode(texts)
    sampler([first, second], num_frames=18, plan=chunks(18, 6), num_inference_steps=2, seed=0)
    assert sorted(asked) == sorted(["", first, second])
