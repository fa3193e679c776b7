"""The baseline in the latents of VAEs, told classes or embeddings instead of words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from tiny_vdm import CONFIG as TINY
from tiny_vdm import build
from tiny_vdm import sampler as sampler_of

from vidgen import checkpoint
from vidgen.errors import InvalidArgumentError
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.sampling import Sampler, load
from vidgen.strategies.vdm import VDM
from vidgen.trainable import TrainingStep
from vidgen.training import Trainer
from vidgen.video.dataset import DataConfig, collate, open_dataset

CONFIG = replace(TINY, words=("a", "circle", "red"), max_words=12)


def fresh() -> Sampler:
    """A model whose every layer says something."""
    return sampler_of(build(words=CONFIG.words, max_words=CONFIG.max_words))


def vae_folder(folder, kind):
    """A tiny VAE of diffusers' layout with random weights."""
    torch.manual_seed(1)
    if kind == "image":
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
    else:
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    vae.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["image", "video"])
def test_trains_and_samples_in_the_latents_of_a_vae(kind, tmp_path):
    frames = {"image": 6, "video": 9}[kind]
    folder = str(vae_folder(tmp_path / "vae", kind))
    config = replace(CONFIG, words=(), codec=folder, context=1, num_inference_steps=2)
    recipe = Recipe(
        "vdm",
        config,
        DataConfig.of("shapes", clip_length=frames, size=16, videos=4),
        TrainingConfig(steps=2, batch_size=2, ema_decay=None),
    )
    trainer = Trainer(recipe, tmp_path / "run", progress=False, device="cpu")
    vae = {n: p.clone() for n, p in trainer.strategy.codec.state_dict().items() if torch.is_tensor(p)}
    trainer.run()
    (tmp_path / "vae").rename(tmp_path / "gone")  # a checkpoint needs nothing but itself
    sampler = load(tmp_path / "run")
    sampler.set_progress_bar_config(disable=True)
    codec = sampler.strategy.codec
    assert all(torch.equal(p, codec.state_dict()[n]) for n, p in vae.items())
    assert sampler.strategy.window == codec.latent_frames(frames) == {"image": 6, "video": 3}[kind]
    longer = {"image": 11, "video": 17}[kind]
    whole = sampler("a green circle", num_frames=longer, seed=0)
    assert whole.frames.shape == (1, longer, 16, 16, 3)
    latents = sampler("a green circle", num_frames=longer, seed=0, output_type="latent").frames
    decoded = (codec.decode(latents)[0].permute(1, 2, 3, 0) + 1) / 2
    np.testing.assert_allclose(whole.frames[0], decoded.detach().numpy(), atol=1e-5)
    part = sampler("a green circle", num_frames=longer, seed=0, frames=range(6, 9))
    np.testing.assert_allclose(part.frames[0], whole.frames[0, 6:9], atol=1e-4)
    given = sampler("a green circle", num_frames=longer, seed=0, image=np.zeros((16, 16, 3), np.uint8))
    assert np.abs(given.frames[0, 0] - whole.frames[0, 0]).max() > 1e-3
    if kind == "video":
        with pytest.raises(InvalidArgumentError, match="13"):
            sampler("a green circle", num_frames=16)


def test_class_labels_are_prompts(tmp_path):
    data = DataConfig.of("shapes", clip_length=6, size=16, videos=4)
    recipe = Recipe(
        "vdm", replace(CONFIG, text="classes", words=()), data, TrainingConfig(steps=2, batch_size=4)
    )
    trainer = Trainer(recipe, tmp_path, progress=False, device="cpu")
    strategy = trainer.strategy
    classes = open_dataset(data).classes
    assert strategy.config.classes == tuple(classes)
    trainer.run()
    (stage,) = strategy.stages()
    seen = []
    strategy.network.register_forward_hook(lambda m, arguments, out: seen.append(arguments[2]))
    batch = collate([open_dataset(data)[i] for i in range(4)])
    stage.drop_text = 0.0
    next(stage.losses(batch, TrainingStep(0, stage.name, 0, (0, 1, 2, 3))))
    torch.testing.assert_close(seen[0], strategy.text_encoder.encode([classes[i] for i in batch.labels]))
    stage.drop_text = 1.0  # for guidance the null class is learnt
    next(stage.losses(batch, TrainingStep(0, stage.name, 0, (0, 1, 2, 3))))
    torch.testing.assert_close(seen[1], strategy.text_encoder.encode([""] * 4))
    wrong = replace(CONFIG, text="classes", classes=tuple(reversed(classes)))
    with pytest.raises(InvalidArgumentError, match="those of the data are"):
        VDM.prepare(wrong, open_dataset(data))
    sampler = load(tmp_path)
    sampler.set_progress_bar_config(disable=True)
    assert sampler.strategy.levels["video"].guidance_scale == CONFIG.guidance_scale
    arguments = {"seed": 0, "output_type": "latent", "num_inference_steps": 2}
    by_name = sampler(classes[1], **arguments).frames
    assert torch.equal(by_name, sampler(1, **arguments).frames)
    assert not torch.equal(by_name, sampler(2, **arguments).frames)
    with pytest.raises(InvalidArgumentError, match=classes[0]):
        sampler("no such class", **arguments)


def test_prompt_embeddings_stand_for_prompts():
    sampler = fresh()
    strategy = sampler.strategy
    arguments = {"seed": 0, "output_type": "latent", "num_inference_steps": 2, "guidance_scale": 3.0}
    encode = strategy.text_encoder.encode
    with torch.no_grad():
        embeds, negative = encode(["red circle", "circle"]), encode(["red"])
    by_text = sampler(["red circle", "circle"], negative_prompt="red", **arguments).frames
    made = sampler(prompt_embeds=embeds, negative_prompt_embeds=negative, **arguments).frames
    torch.testing.assert_close(made, by_text, rtol=0, atol=1e-5)
    pairs = {**arguments, "guidance_scale": 1.0, "num_videos_per_prompt": 2}
    twice = sampler(prompt_embeds=embeds, **pairs).frames
    by_hand = sampler(["red circle", "circle"], **pairs).frames
    torch.testing.assert_close(twice, by_hand, rtol=0, atol=1e-5)
    # Without negative embeddings the empty prompt stands in.
    plain = sampler(prompt_embeds=embeds[:1], **arguments).frames
    torch.testing.assert_close(plain, sampler("red circle", **arguments).frames, rtol=0, atol=1e-5)
    assert (plain - by_text[:1]).abs().max() > 1e-4
    width = strategy.text_encoder.width
    for bad, message in (
        ({"prompt_embeds": embeds, "prompt": "red"}, "either texts or embeddings"),
        ({"negative_prompt_embeds": negative}, "go with prompt_embeds"),
        ({"prompt_embeds": embeds[..., :3]}, rf"expected \(b, n, {width}\)"),
        ({"prompt_embeds": embeds[:, :2]}, "same number of tokens"),
        ({"prompt_embeds": embeds, "negative_prompt_embeds": encode(["red"] * 3)}, "one negative or one for"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            sampler(**bad, **arguments)


def test_unknown_words_of_any_frame_are_refused_before_the_first_call():
    sampler = fresh()
    sampler.strategy.levels["video"].condition = None  # nothing may be asked for
    with pytest.raises(InvalidArgumentError, match=r"'cirkle'.*did you mean 'circle'"):
        sampler({0: "red circle", 500: "cirkle"}, num_frames=600)


def test_half_precision_takes_embeddings_and_guides():
    sampler = fresh().to(dtype=torch.bfloat16)
    arguments = {"seed": 0, "output_type": "latent", "num_inference_steps": 2, "guidance_scale": 3.0}
    with torch.no_grad():
        embeds = sampler.strategy.text_encoder.encode(["red circle"])
    made = sampler(prompt_embeds=embeds.float(), **arguments).frames
    # What is encoded beside another text rounds a little differently.
    torch.testing.assert_close(made, sampler("red circle", **arguments).frames, rtol=0, atol=0.1)


def test_an_image_model_makes_videos_frame_by_frame():
    strategy = checkpoint.build(VDM, replace(CONFIG, sample_frames=1, context=1))
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    three = sampler("red", num_frames=3, seed=0, num_inference_steps=2, output_type="latent").frames
    first = sampler("red", num_frames=1, seed=0, num_inference_steps=2, output_type="latent").frames
    torch.testing.assert_close(three[:, :, :1], first, rtol=0, atol=1e-5)
    assert (three[:, :, 1] - three[:, :, 0]).abs().max() > 0.1
