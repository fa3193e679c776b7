"""Published VAE layouts without weights: right in size, and never trained on."""

from __future__ import annotations

import pytest
import torch

from vidgen.codecs import ImageCodec, is_layout, load_codec
from vidgen.codecs.layouts import LAYOUTS
from vidgen.denoising import ClipConfig
from vidgen.errors import InvalidArgumentError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "parameters", "pixels", "latent"),
    [("kl-f8", 83_653_863, (256, 192), (4, 32, 24)), ("kl-f4", 55_312_063, (128, 64), (3, 32, 16))],
)
def test_layouts_have_the_published_sizes(name, parameters, pixels, latent):
    with torch.device("meta"):
        codec = load_codec(f"layout:{name}")
    assert isinstance(codec, ImageCodec)
    assert not codec.vae.training
    assert sum(p.numel() for p in codec.parameters()) == parameters
    assert codec.latent_shape(*pixels) == latent
    clip = torch.empty(1, 3, 2, *pixels, device="meta")
    assert codec.encode(clip).shape == (1, latent[0], 2, *latent[1:])
    assert {"kl-f8": 0.18215, "kl-f4": 1.0}[name] == pytest.approx(1 / codec.std[0])


def test_unknown_layouts_are_named():
    with pytest.raises(UnknownNameError, match=r"VAE layout.*kl-f9.*Did you mean 'kl-f8'"):
        load_codec("layout:kl-f9")
    assert set(LAYOUTS) == {"kl-f8", "kl-f4"}


def test_what_is_a_layout():
    assert is_layout("layout:kl-f8")
    assert is_layout("layout:anything")
    assert not is_layout("kl-f8")
    assert not is_layout("folder/layout:kl-f8")
    assert not is_layout(None)


def test_nothing_is_trained_in_latents_of_no_meaning():
    with pytest.raises(InvalidArgumentError, match=r"'layout:kl-f8', an untrained VAE.*--set codec=PATH"):
        ClipConfig(codec="layout:kl-f8").check_trainable()
    ClipConfig(codec="shapes/codec").check_trainable()
    ClipConfig().check_trainable()


@pytest.mark.parametrize("name", ["glober", "vdm"])
def test_strategies_refuse_to_train_there(name):
    from vidgen import plugins

    kind = plugins.load(plugins.STRATEGIES, name)
    small = {"widths": (8, 16), "head_dim": 8, "patch": 4, "sample_size": (16, 16), "text_width": 8}
    strategy = kind.create(kind.Config(**small))
    assert strategy.stages()
    strategy.config = kind.Config(**small, codec="layout:kl-f8")
    with pytest.raises(InvalidArgumentError, match="--set codec=PATH"):
        strategy.stages()
