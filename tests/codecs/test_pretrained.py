from __future__ import annotations

import pickle
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from tiny_vaes import clip, kl, qwen, tiny, wan

from vidgen.codecs import ImageCodec, PixelCodec, VideoCodec, load_codec, pretrained
from vidgen.errors import CheckpointError, UnknownNameError
from vidgen.weights import WEIGHTS


@pytest.mark.parametrize(
    ("make", "kind"), [(kl, ImageCodec), (tiny, ImageCodec), (wan, VideoCodec), (qwen, VideoCodec)]
)
def test_the_configuration_picks_the_codec(make: Any, kind: type, tmp_path: Path) -> None:
    vae, video = make(), clip(1, 5, 24, 24)
    vae.save_pretrained(tmp_path / "vae")
    for source in (tmp_path / "vae", str(tmp_path)):  # the VAE's folder, and a pipeline's
        codec = load_codec(source)
        assert type(codec) is kind
        with torch.no_grad():
            assert torch.equal(codec.encode(video), kind(vae).encode(video))


def test_a_part_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    ImageCodec(kl(), mean=0.0, std=3.0).save_pretrained(tmp_path / "codec")
    PixelCodec(patch=2, std=0.25).save_pretrained(tmp_path / "pixels")
    codec = load_codec(tmp_path, subfolder="codec")
    assert isinstance(codec, ImageCodec)
    assert codec.std == (3.0,) * 3
    assert torch.equal(load_codec(tmp_path, "pixels").encode(clip()), PixelCodec(2, std=0.25).encode(clip()))


def test_other_vaes_are_refused_by_name(tmp_path: Path) -> None:
    AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",),
        up_block_types=("CogVideoXUpBlock3D",),
        block_out_channels=(8,),
        norm_num_groups=2,
    ).save_config(tmp_path)
    with pytest.raises(UnknownNameError, match=r"'AutoencoderKLCogVideoX'.*Known: AutoencoderKL, .*Wan, Auto"):
        load_codec(tmp_path)


def test_nothing_there_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*missing, and it is no hub id"):
        load_codec(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="no hub id"):
        load_codec("./somewhere")
    (tmp_path / "unet").mkdir()
    looked = r"no config\.json or vae/config\.json or codec/config\.json \(found: unet\)"
    with pytest.raises(CheckpointError, match=looked):
        load_codec(tmp_path)
    with pytest.raises(CheckpointError, match=r"no codec/config\.json"):
        load_codec(tmp_path, subfolder="codec")


def test_the_meta_device_reads_no_weights(tmp_path: Path) -> None:
    for name, make in {"image": kl, "video": wan}.items():
        make().save_config(tmp_path / name)
        with torch.device("meta"):
            codec = load_codec(tmp_path / name)
            latents = codec.encode(torch.zeros(1, 3, 5, 8, 8))
            assert codec.decode(latents).shape == (1, 3, 5, 8, 8)
        assert latents.device.type == codec.device.type == "meta"
        with pytest.raises(CheckpointError, match="is missing"):
            load_codec(tmp_path / name)


class Hub:
    """A hub of local folders that gives only what is asked for."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache, self.given = root, cache, []

    def __call__(self, name: str, allow_patterns: list[str]) -> str:
        for file in sorted(p for p in (self.root / name).rglob("*") if p.is_file()):
            path = file.relative_to(self.root / name).as_posix()
            if any(fnmatch(path, pattern) for pattern in allow_patterns):
                (self.cache / name / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.cache / name / path)
                self.given.append(path)
        return str(self.cache / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub", tmp_path / "cache")
    folder = tmp_path / "hub/some/pipeline"
    kl().save_pretrained(folder / "vae")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps([1]))
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    (folder / WEIGHTS).write_bytes(b"another network")
    ImageCodec(kl(), mean=0.0, std=7.0).save_pretrained(tmp_path / "hub/some/codec")
    monkeypatch.setattr(pretrained, "snapshot_download", hub)
    monkeypatch.chdir(tmp_path)
    return hub


def test_from_the_hub_comes_only_what_is_read(hub: Hub) -> None:
    codec = load_codec("some/pipeline")
    assert hub.given == ["vae/config.json", f"vae/{WEIGHTS}"]
    with torch.no_grad():
        assert torch.equal(codec.encode(clip()), ImageCodec(kl()).encode(clip()))
    hub.given.clear()
    assert load_codec("some/codec").std == (7.0,) * 3
    assert hub.given == ["codec.json", "config.json", WEIGHTS]
    hub.given.clear()
    with torch.device("meta"):
        load_codec("some/pipeline", subfolder="vae")
    assert hub.given == ["vae/config.json"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None)), "hf auth login"),
        (
            RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None)),
            "Check the spelling",
        ),
        (HFValidationError("bad name"), "HFValidationError: bad name"),
        (ConnectionError("no route"), "no route.*Check the spelling and the connection"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(pretrained, "snapshot_download", fails)
    with pytest.raises(CheckpointError, match=message):
        load_codec("some/name")


def test_the_real_hub_out_of_reach_is_said() -> None:
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE unset"):
        load_codec("no-one/nothing")
