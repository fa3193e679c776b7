"""The whole way on one's own clips: a codec, an image model in its latents, a video model that starts there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import vidgen
from vidgen.codecs import load_codec
from vidgen.conditioning import vocabulary
from vidgen.frame_codec import recipes as codecs
from vidgen.recipe import Recipe
from vidgen.strategies.ldm import recipes as images
from vidgen.strategies.vdm import recipes as videos
from vidgen.training import Trainer
from vidgen.video import Video

CAPTIONS = ("a grey cat", "a grey dog runs")


def clips(folder):
    """Two videos of 8 frames, as a camera might have made them, with captions beside them."""
    folder.mkdir()
    for seed, caption in enumerate(CAPTIONS):
        frames = np.random.default_rng(seed).integers(0, 255, (8, 16, 16, 3), np.uint8)
        Video(frames, 8.0).save(folder / f"{seed}.mp4")
        (folder / f"{seed}.txt").write_text(caption)
    return folder


def small(recipe: Recipe, data, steps=2, **model) -> Recipe:
    """The recipe in everything but sizes."""
    return replace(
        recipe,
        model=replace(recipe.model, **model),
        data=recipe.data.changed(path=str(data), size=16, clip_length=min(recipe.data.clip_length, 4)),
        training=replace(recipe.training, steps=steps, batch_size=2, micro_batch_size=None, warmup_steps=0),
    )


def test_from_a_codec_to_an_image_model_to_a_video_model(tmp_path):
    data = clips(tmp_path / "clips")
    places = {name: tmp_path / name for name in ("codec", "image", "video")}
    networks = {"widths": (8, 16), "attention_levels": (1,), "head_dim": 8, "text_width": 16}

    def train(name, recipe):
        return Trainer(recipe, places[name], progress=False, device="cpu").run()

    train("codec", small(codecs.medium(), data, block_out_channels=(8, 8, 8)))
    train("image", small(images.medium(), data, codec=str(places["codec"]), **networks))
    start = vidgen.load(places["image"], device="cpu").strategy
    (data / "1.txt").write_text("a grey zebra")  # a word that the image model never saw
    recipe = small(videos.medium(), data, steps=1, pretrained=str(places["image"]), head_dim=8, context=1)
    train("video", replace(recipe, training=replace(recipe.training, learning_rate=1e-12, ema_decay=None)))

    strategy = vidgen.load(places["video"], device="cpu").strategy
    assert strategy.text_encoder.words == vocabulary([*CAPTIONS, "zebra"])
    clip = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    latents = load_codec(places["codec"]).encode(clip)
    assert latents.shape == (1, 4, 4, 4, 4)
    assert torch.equal(strategy.codec.encode(clip), latents)  # one codec, handed from model to model
    assert strategy.scheduler.config.prediction_type == start.scheduler.config.prediction_type
    given = start.modules["unet"].state_dict()
    for name, weight in strategy.modules["unet"].state_dict().items():
        old = given[name]
        torch.testing.assert_close(weight[:, : old.shape[1]] if name == "conv_in.weight" else weight, old)
    frames = vidgen.load(places["video"], device="cpu")("a zebra", num_frames=4, num_inference_steps=1, seed=0)
    assert np.isfinite(frames.frames).all()
