"""GLOBER's named recipes: the paper's sizes and settings, described without weights."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from vidgen import config as configs
from vidgen import info, plugins
from vidgen.strategies.glober import GLOBERConfig
from vidgen.strategies.glober.index import index_scale
from vidgen.strategies.glober.recipes import sky_128_frames

PAPERS = ("ucf101_256", "ucf101_128", "sky_256", "taichi_128", "webvid_256", "sky_128_frames")
SMALL = [
    "text=words",
    "text_model=null",
    "text_pretrained=null",
    "widths=[32,32,32,32]",
    "layers_per_block=1",
    "heads=4",
    "generator_depth=1",
    "discriminator_width=32",
]
"""What makes the paper's networks quick to build, and changes nothing of how they fit each other."""


@cache
def described(recipe, *assignments):
    return info.describe("glober", recipe, assignments=assignments)


def millions(recipe, component):
    return described(recipe)["components"][component]["parameters"] / 1e6


def test_the_papers_networks_have_as_many_parameters():
    found = {name: millions("ucf101_256", name) for name in described("ucf101_256")["components"]}
    paper = {"video_encoder": 28.4, "unet": 859.5, "generator": 674.5, "discriminator": 40.2, "codec": 83.65}
    for name, count in paper.items():
        assert found[name] == pytest.approx(count, rel=0.02), name
    assert found["unet"] == pytest.approx(859.52, abs=0.01)  # Stable Diffusion's own
    assert described("ucf101_256")["plan"] == {
        "frames": 16,
        "calls": 2,
        "waves": 2,
        "critical_path": 2,
        "peak_frames": 17,
    }


def test_costs_are_those_of_one_unguided_evaluation():
    # UNet: 180 GFLOP a frame, 16 of them; generator: 312 GFLOP once. The mean of two calls, in multiply-adds.
    assert described("ucf101_256")["gmacs_per_call"] == pytest.approx((16 * 180 + 312) / 4, rel=0.01)
    plain = described("tiny", "videos=8", "global_guidance_scale=1.0", "guidance_scale=1.0")
    assert described("tiny", "videos=8")["gmacs_per_call"] == plain["gmacs_per_call"]


def test_the_smaller_generator():
    with torch.device("meta"):
        generator = load("sky_256").model.build_generator(768)
    assert generator.num_parameters() / 1e6 == pytest.approx(382.0, rel=0.02)
    with torch.device("meta"):
        assert load("taichi_128").model.build_generator(768).num_parameters() == generator.num_parameters()


def load(name):
    return plugins.load_recipe("glober", name)


@pytest.mark.parametrize("name", PAPERS)
def test_v_has_4096_numbers_for_any_length(name):
    config = load(name).model
    with torch.device("meta"):
        codec = config.build_codec()
        encoder = config.build_video_encoder(codec)
    assert encoder.global_shape == (16, 16, 16)
    assert math.prod(encoder.global_shape) == 4096
    assert codec.latent_shape(*config.sample_size)[1:] == (32, 32)
    latents = {frames: math.prod(codec.latent_shape(*config.sample_size)) * frames for frames in (16, 128)}
    assert min(latents.values()) >= 3 * 4096 * 4


@pytest.mark.parametrize("name", PAPERS[1:])
def test_every_paper_recipe_resolves(name):
    found = described(name, *SMALL)
    assert found["recipe"] == f"glober/{name}"
    frames = 128 if name == "sky_128_frames" else 16
    calls = 1 + (4 if frames == 128 else 1)  # 4 x 32
    assert (found["plan"]["frames"], found["plan"]["calls"]) == (frames, calls)
    assert found["gmacs_per_call"] > 1
    assert configs.from_dict(GLOBERConfig, configs.to_dict(load(name).model)) == load(name).model


@pytest.mark.parametrize("name", ["tiny", "shapes/glober"])
def test_small_recipes_resolve(name):
    found = described(name, "videos=8")
    assert found["plan"]["frames"] == 16
    assert sum(part["parameters"] for part in found["components"].values()) < 12e6  # 24 MB in half precision


def test_settings_of_the_paper():
    """Section 4.1 and table 11."""
    rates = {"ucf101_256": 1e-5, "sky_256": 1e-4, "taichi_128": 5e-5}
    guidance = {"ucf101_256": 6.0, "sky_256": 3.0, "taichi_128": 3.0}
    steps = {"ucf101_256": 80_000, "sky_256": 40_000, "taichi_128": 40_000}
    for name in rates:
        recipe = load(name)
        model, training = recipe.model, recipe.training
        assert training.learning_rate == rates[name]
        assert training.steps == steps[name]
        assert training.batch_size == 8 * training.micro_batch_size  # 8 GPUs
        assert (model.guidance_scale, model.global_guidance_scale) == (guidance[name], 9.0)
        assert model.num_inference_steps == 50
        assert (model.kl_weight, model.cra_weight, model.keyframes) == (1e-6, 0.1, 4)
        assert (model.prediction_type, model.posterior, model.cra_form) == ("epsilon", "kl", "hinge")
        assert model.drop_text > 0  # guidance needs it
        assert recipe.data.clip_length == model.sample_frames == 16
        assert model.sample_size == (recipe.data.size, recipe.data.size)
        second = recipe.training_of("generator")
        assert second.steps == {80_000: 200_000, 40_000: 100_000}[training.steps]
        assert (second.batch_size, second.micro_batch_size) == (256, 32)
        assert second.learning_rate == training.learning_rate
        assert recipe.training_of("autoencoder") == training
    assert load("ucf101_256").training.micro_batch_size == 40


def test_long_videos_have_their_own_scale_of_indices():
    config = sky_128_frames().model
    assert (config.sample_frames, config.window, config.keyframes) == (128, 32, 16)
    with torch.device("meta"):
        assert config.build_index().config.scale == index_scale(128)
        assert config.build_video_encoder(config.build_codec()).config.scale == index_scale(128)
