"""Saving and loading the codecs around diffusers' VAEs; their values are tested with each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vaes import clip, kl, tiny, wan22

from vidgen.codecs import ImageCodec, VaeCodec, VideoCodec
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from vidgen.weights import WEIGHTS, weight_hash

CODECS = {
    "kl": lambda **options: ImageCodec(kl(), **options),
    "tiny": lambda **options: ImageCodec(tiny(), **options),
    "wan": lambda **options: VideoCodec(wan22(), **options),
}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CODECS)
def test_a_saved_codec_loads_the_same_and_with_diffusers_own_class(name: str, tmp_path: Path) -> None:
    codec: VaeCodec = CODECS[name](mean=0.1, std=0.3, slicing=True)
    folder, video = tmp_path / "model" / "codec", clip(1, 5, 24, 24)
    codec.save_pretrained(folder)
    assert {f.name for f in folder.iterdir()} == {"codec.json", "config.json", WEIGHTS}
    loaded = type(codec).from_pretrained(tmp_path / "model", subfolder="codec")
    assert weight_hash(loaded) == weight_hash(codec)
    assert torch.equal(loaded.encode(video), codec.encode(video))
    own = type(codec.vae).from_pretrained(tmp_path / "model", subfolder="codec", use_safetensors=True)
    assert weight_hash(own) == weight_hash(codec.vae)
    loaded.save_pretrained(folder)  # over what is there
    assert {f.name for f in folder.iterdir()} == {"codec.json", "config.json", WEIGHTS}
    assert json.loads((folder / "codec.json").read_text()) == {
        "format": 1,
        "mean": [0.1] * codec.channels,
        "std": [0.3] * codec.channels,
        "tile": None,
        "slicing": True,
    }


def test_tiles_are_saved(tmp_path: Path) -> None:
    codec, video = ImageCodec(kl(), tile=16), clip(1, 1, 40, 24)
    codec.save_pretrained(tmp_path)
    loaded = ImageCodec.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(video), codec.encode(video))
    assert not torch.allclose(loaded.encode(video), ImageCodec(kl()).encode(video), atol=1e-3)


def test_a_plain_folder_takes_the_vae_s_own_scaling(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    loaded = ImageCodec.from_pretrained(str(tmp_path))
    assert (loaded.mean, loaded.std) == ((0.2,) * 3, (2.5,) * 3)
    assert torch.equal(loaded.encode(clip()), ImageCodec(kl()).encode(clip()))
    assert not loaded.vae.training


def test_pickles_are_neither_written_nor_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="safetensors only"):
        ImageCodec(kl()).save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": 2}, "format 2; this vidgen reads format 1"),
        ({"mean": [0.0], "std": [1.0]}, "format None"),
        ({"format": 1, "mean": [0.0, 1.0], "std": [1.0]}, "cannot be loaded.*one for each of the 3"),
        ({"format": 1, "tile": "wide"}, "cannot be loaded"),
        ({"format": 1, "magic": 3}, "cannot be loaded.*magic"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    (tmp_path / "codec.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        ImageCodec.from_pretrained(tmp_path)


def test_a_vae_of_another_class_is_refused(tmp_path: Path) -> None:
    kl().save_pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match=r"'AutoencoderKL'.*Known: .*AutoencoderKLWan"):
        VideoCodec.from_pretrained(tmp_path)
