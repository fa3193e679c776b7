"""The image model: diffusers' own pipeline draws the same image, frames know nothing of each other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from toy import levels_of
from vidgen import checkpoint
from vidgen.codecs import ImageCodec
from vidgen.conditioning import Conditioning, VocabularyEncoder
from vidgen.errors import InvalidArgumentError, PlanError
from vidgen.plans import Plan, autoregressive, chunks, keyframes
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.request import Canvas, Request
from vidgen.sampling import Sampler, load
from vidgen.strategies.ldm import LDM, LDMConfig
from vidgen.strategies.vdm import VDM, VDMConfig
from vidgen.testing import check_strategy
from vidgen.training import Trainer
from vidgen.video.dataset import DataConfig, open_dataset

CONFIG = LDMConfig(
    sample_frames=1,
    sample_size=(16, 16),
    words=("circle", "red"),
    max_words=4,
    widths=(16, 32),
    head_dim=16,
    text_width=16,
    text_layers=1,
    guidance_scale=3.0,
    num_inference_steps=3,
    beta_schedule="scaled_linear",
    num_train_timesteps=600,
)
"""Its noise process is not the default one."""

LATENT = {"output_type": "latent", "num_inference_steps": 2}


def vae(channels=4, seed=0):
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        scaling_factor=0.7,
    )


def trained(strategy, *components):
    """As if trained: no layer is zero."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in strategy.parameters_of(*components):
            p.add_(0.03 * torch.randn(p.shape, generator=noise))
    return strategy


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of an image model in the latents of a VAE."""
    root = tmp_path_factory.mktemp("ldm")
    vae().save_pretrained(root / "vae")
    built = checkpoint.build(LDM, replace(CONFIG, codec=str(root)), seed=1)
    folder = checkpoint.save_strategy(trained(built, "unet", "text_encoder"), root / "model")
    (root / "vae").rename(root / "gone")  # a checkpoint needs nothing but itself
    return folder


@pytest.fixture(scope="module")
def image_model(saved):
    return quiet(load(saved, device="cpu"))


def quiet(sampler):
    sampler.set_progress_bar_config(disable=True)
    return sampler


def start_noise(frames):
    return torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_a_pipeline_of_diffusers_draws_the_same_image(saved, image_model):
    # Nothing may be missing, unknown or newly drawn: diffusers would say so in a warning only.
    parts, report = {}, []
    for name, folder, kind in (("vae", "codec", AutoencoderKL), ("unet", "unet", UNet2DConditionModel)):
        parts[name], info = kind.from_pretrained(saved, subfolder=folder, output_loading_info=True)
        report += [problem for problems in info.values() for problem in problems]
    assert report == []
    pipe = StableDiffusionPipeline(
        **parts,
        scheduler=DDIMScheduler.from_pretrained(saved, subfolder="scheduler"),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    encode = image_model.strategy.text_encoder.encode
    drawn = {}
    for scale, negative in ((3.0, ""), (3.0, "circle"), (1.0, "")):
        theirs = pipe(
            prompt_embeds=encode(["red circle"]),
            negative_prompt_embeds=encode([negative]),
            latents=start_noise(1)[:, :, 0],
            num_inference_steps=4,
            guidance_scale=scale,
            output_type="np",
        ).images
        ours = image_model(
            "red circle",
            negative_prompt=negative,
            latents=start_noise(1),
            num_inference_steps=4,
            guidance_scale=scale,
        ).frames
        np.testing.assert_allclose(ours[0], theirs, rtol=0, atol=2e-5)  # of pixels from 0 to 1
        drawn[scale, negative] = ours[0, 0]
    assert drawn[3.0, ""].std() > 0.05
    assert np.abs(drawn[3.0, ""] - drawn[3.0, "circle"]).max() > 1e-3
    assert np.abs(drawn[3.0, ""] - drawn[1.0, ""]).max() > 1e-3


def test_every_frame_is_an_image_of_its_own(image_model):
    whole = image_model("red", seed=0, num_frames=4, **LATENT).frames
    for frame in range(4):
        alone = image_model("red", seed=0, num_frames=4, frames=[frame], **LATENT).frames
        torch.testing.assert_close(alone[:, :, 0], whole[:, :, frame], rtol=0, atol=1e-5)
        if frame:
            assert (whole[:, :, frame] - whole[:, :, 0]).abs().max() > 0.1
    shorter = image_model("red", seed=0, num_frames=1, **LATENT).frames
    torch.testing.assert_close(shorter, whole[:, :, :1], rtol=0, atol=1e-5)
    # Not even the noise of another frame, a prompt of its own or a picture in its place reaches a frame.
    noise = start_noise(4)
    before = image_model("red", latents=noise, num_frames=4, **LATENT).frames
    noise[:, :, 1] += 1
    after = image_model({0: "red", 2: "circle"}, latents=noise, num_frames=4, pins={3: _WHITE}, **LATENT).frames
    apart = (after - before).abs().amax(dim=(0, 1, 3, 4))
    assert apart[0] < 1e-5
    assert (apart[1:] > 1e-3).all()


_WHITE = np.full((16, 16, 3), 255, np.uint8)


def test_frames_do_not_depend_on_the_batch_or_the_order_of_calls(image_model):
    arguments = {"seed": 3, "num_frames": 5, "num_videos_per_prompt": 2, **LATENT}
    alone = image_model(["red", "circle"], batch_size=1, **arguments).frames
    for size in (3, 20):
        together = image_model(["red", "circle"], batch_size=size, **arguments).frames
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    plan = chunks(5, 1)
    assert image_model.strategy.plan(5) == plan
    backwards = Plan(tuple(reversed(plan.calls)), plan.levels)
    turned = image_model(["red", "circle"], plan=backwards, **arguments).frames
    torch.testing.assert_close(turned, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("plan", [chunks(6, 2), autoregressive(6, 2, 1), keyframes(6, 4)])
def test_plans_that_tie_frames_together_are_refused(image_model, plan):
    with pytest.raises(PlanError, match="ldm was trained on clips of 1"):
        image_model("red", num_frames=6, plan=plan)


def inflated(saved, **changes):
    """A fresh vdm that starts from the checkpoint."""
    config = VDMConfig(
        **{"pretrained": str(saved), "head_dim": 16, "context": 2, "sample_size": (16, 16), **changes}
    )
    return checkpoint.build(VDM, VDM.prepare(config, open_dataset(CLIPS)), seed=7)


CLIPS = DataConfig.of("shapes", clip_length=4, size=16, videos=4)


@pytest.fixture(scope="module")
def understood(saved, tmp_path_factory):
    """The checkpoint under a vocabulary that has the words of the shapes data."""
    model = checkpoint.load_strategy(saved, device="cpu")
    words = sorted({word for text in open_dataset(CLIPS).texts() for word in text.lower().split()} | {"zebra"})
    torch.manual_seed(2)
    encoder = VocabularyEncoder(words, width=16, layers=1, heads=2, max_words=11).eval()
    full = LDM(model.config, {**model.modules, "text_encoder": encoder}, model.scheduler)
    return checkpoint.save_strategy(full, tmp_path_factory.mktemp("understood") / "model")


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_video_model_takes_everything_from_the_image_model(understood):
    image, video = checkpoint.load_strategy(understood, device="cpu"), inflated(understood)
    assert isinstance(video.codec, ImageCodec)
    assert same_weights(video.codec, image.codec)
    assert same_weights(video.text_encoder, image.text_encoder)
    assert "zebra" in video.config.words  # the model's words, of which the data may say only some
    assert (video.config.words, video.config.max_words) == (tuple(image.text_encoder.config.words), 11)
    ours, own = video.levels["video"], image.levels["video"]
    assert ours.guidance_scale == VDMConfig().guidance_scale
    assert torch.equal(ours.diffusion.scheduler.alphas_cumprod, own.diffusion.scheduler.alphas_cumprod)
    assert ours.diffusion.prediction_type == own.diffusion.prediction_type == "v_prediction"
    theirs = VDMConfig().num_train_timesteps, VDMConfig().beta_schedule
    assert (ours.diffusion.num_train_timesteps, video.scheduler.config.beta_schedule) != theirs
    # The UNet reads one channel more, the mark of given frames, and nothing of it yet.
    own, wide = (model.modules["unet"].state_dict() for model in (image, video))
    assert own.keys() == wide.keys()
    assert torch.equal(wide["conv_in.weight"][:, :4], own["conv_in.weight"])
    assert not wide["conv_in.weight"][:, 4:].any()
    assert all(torch.equal(own[key], wide[key]) for key in own if key != "conv_in.weight")
    # What learns is all but the codec.
    assert set(video.stages()[0].components) == {"unet", "temporal", "text_encoder"}


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_fresh_video_model_is_the_image_model_frame_by_frame(understood, scale):
    prompt, x, t = "a green circle moves left", start_noise(4), torch.tensor([350])
    answers, videos = [], []
    for model in (checkpoint.load_strategy(understood, device="cpu"), inflated(understood)):
        level, levels = model.levels["video"], levels_of(model, guidance_scale=scale)
        request, per_call = Request(prompt, "", 0, 4, 16, 16, 8.0, levels, model.Options()), []
        for call in model.plan(4).calls:  # four calls of the image model, one of the video model
            cond = level.condition(call, Canvas(), request)
            per_call.append(level.denoise(x[:, :, list(call.frames)], t, cond))
        answers.append(torch.cat(per_call, dim=2))
        sampled = quiet(Sampler(model))(
            prompt, guidance_scale=scale, num_frames=4, seed=0, num_inference_steps=3
        )
        videos.append(sampled.frames)
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    np.testing.assert_allclose(*videos, rtol=0, atol=1e-4)
    assert answers[0].std() > 0.1
    assert np.abs(videos[0][:, 0] - videos[0][:, 3]).max() > 1e-2


def test_an_image_model_starts_from_another(understood):
    """Without a mark of given frames the UNet stays as it is."""
    config = LDM.prepare(LDMConfig(pretrained=str(understood), sample_size=(16, 16)), open_dataset(CLIPS))
    image, again = checkpoint.load_strategy(understood, device="cpu"), checkpoint.build(LDM, config)
    for name in ("unet", "codec", "text_encoder"):
        assert same_weights(again.modules[name], image.modules[name])


def test_parts_that_do_not_fit_are_refused(saved, tmp_path):
    def bare(source, **changes):  # before any data is seen, whose words would be refused first
        checkpoint.build(VDM, VDMConfig(pretrained=str(source), sample_size=(16, 16), **changes))

    vae(channels=3).save_pretrained(tmp_path / "other" / "vae")
    with pytest.raises(
        InvalidArgumentError, match=r"reads 4 channels; the codec's latents have 3\. Choose a codec"
    ):
        bare(saved, codec=str(tmp_path / "other"))
    with pytest.raises(InvalidArgumentError, match="reads 4 channels"):
        checkpoint.build(LDM, replace(CONFIG, pretrained=str(saved), codec=str(tmp_path / "other")))
    # A folder whose text encoder was never trained with its UNet.
    model = checkpoint.load_strategy(saved, device="cpu")
    model.modules["unet"].save_pretrained(tmp_path / "mixed" / "unet")
    VocabularyEncoder(["a"], width=8, layers=1).save_pretrained(tmp_path / "mixed" / "text_encoder")
    vae().save_pretrained(tmp_path / "mixed" / "vae")
    with pytest.raises(InvalidArgumentError, match=r"reads tokens of width 16; those of .* have 8\."):
        bare(tmp_path / "mixed")
    (tmp_path / "mixed" / "unet" / "config.json").unlink()
    with pytest.raises(InvalidArgumentError, match="no 2D UNet in"):
        bare(tmp_path / "mixed")


def test_prediction_of_clips_is_that_of_their_frames(image_model):
    """Training may show clips; every frame is asked for at its clip's time, with its clip's prompt."""
    strategy = image_model.strategy
    x = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([50, 400])
    with torch.no_grad():
        cond = _tokens(strategy, ["red", "circle"])
        clips = strategy.predict(x, t, cond)
        for clip in range(2):
            one = _tokens(strategy, [("red", "circle")[clip]])
            for frame in range(3):
                alone = strategy.predict(x[clip : clip + 1, :, frame : frame + 1], t[clip : clip + 1], one)
                torch.testing.assert_close(clips[clip, :, frame], alone[0, :, 0], rtol=0, atol=1e-5)
        nothing = strategy.predict(x, t, replace(cond, tokens=None))
        zeros = strategy.predict(x, t, replace(cond, tokens=torch.zeros(2, 1, 16)))
    assert torch.equal(nothing, zeros)
    assert (nothing - clips).abs().max() > 1e-4


def _tokens(strategy, texts):
    return Conditioning(strategy.text_encoder.encode(texts))


PIXELS = LDMConfig(
    sample_frames=1,
    sample_size=(16, 16),
    patch=4,
    widths=(16,),
    attention_levels=(0,),
    head_dim=8,
    text_width=8,
    text_layers=1,
)


def test_training_lowers_the_loss_and_makes_a_model_to_start_from(tmp_path):
    recipe = Recipe(
        "ldm",
        replace(PIXELS, prediction_type="sample"),
        DataConfig.of("shapes", clip_length=1, size=16, videos=16),
        TrainingConfig(steps=40, batch_size=8, learning_rate=5e-3, warmup_steps=5, log_every=10, ema_decay=0.9),
    )
    folder = Trainer(recipe, tmp_path / "run", progress=False, device="cpu").run() / "model"
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert sum(losses[-2:]) / 2 < 0.7 * losses[0]
    image = load(folder, device="cpu").strategy
    assert image.config.sample_frames == image.defaults.num_frames == 1
    assert {"red", "circle"} <= set(image.config.words)
    video = inflated(folder, patch=4)
    assert same_weights(video.text_encoder, image.text_encoder)


def test_the_image_model_keeps_every_promise():
    report = check_strategy(LDM, PIXELS)
    assert not report.failed
    assert not report.skipped
    assert report["prompts are understood or refused"].detail == "unknown words are refused"
