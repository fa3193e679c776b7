from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vidgen.codecs import PixelCodec, measure
from vidgen.errors import InvalidArgumentError


def clip(f: int = 3, height: int = 8, width: int = 12, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, f, height, width, generator=rng) * 2 - 1


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_decode_inverts_encode(patch: int) -> None:
    codec = PixelCodec(patch=patch, mean=-0.3, std=0.7)
    latents = codec.encode(clip())
    assert latents.shape[1:] == (3 * patch**2, 3, 8 // patch, 12 // patch)
    assert codec.latent_shape(8, 12) == (latents.shape[1], *latents.shape[3:])
    assert torch.allclose(codec.decode(latents), clip(), atol=1e-5)


def test_default_inverts_bit_for_bit() -> None:
    codec = PixelCodec(patch=2)
    assert torch.equal(codec.decode(codec.encode(clip())), clip())


def test_a_patch_keeps_its_pixels_together() -> None:
    codec = PixelCodec(patch=2, mean=0.0, std=1.0)
    latents = codec.encode(clip())
    patch = clip()[1, :, 2, 4:6, 6:8]  # rows 4-5, columns 6-7: latent pixel (2, 3)
    assert torch.equal(latents[1, :, 2, 2, 3], patch.flatten())


def test_fitted_codec_gives_unit_variance() -> None:
    clips = [0.4 * clip(f, seed=f) + 0.2 for f in (1, 4)]
    latents = torch.cat([PixelCodec.fit(clips).encode(c).flatten() for c in clips])
    assert latents.mean().abs() < 1e-5
    assert abs(latents.std(correction=0) - 1) < 1e-5


def test_measure_merges_clips_of_any_size_exactly() -> None:
    clips = [clip(1, seed=1), 0.1 * clip(5, 4, 4, seed=2) - 0.8, clip(2, seed=3)]
    pixels = torch.cat([c.flatten() for c in clips]).double()
    mean, std = measure(iter(clips))
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "at least one clip"),
        ([torch.full((1, 3, 1, 2, 2), 0.25)], "deviation 0.0"),
        ([torch.full((1, 3, 1, 2, 2), float("nan"))], "finite"),
    ],
)
def test_clips_without_a_spread_are_refused(clips: list[torch.Tensor], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        measure(clips)


@pytest.mark.parametrize("wrong", [{"patch": 0}, {"std": 0.0}, {"std": float("nan")}, {"mean": float("inf")}])
def test_unusable_config_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=str(next(iter(wrong.values())))):
        PixelCodec(**wrong)


def test_saves_and_loads_as_a_component(tmp_path: Path) -> None:
    codec = PixelCodec(patch=2, mean=0.1, std=0.3)
    codec.save_pretrained(tmp_path / "codec")
    names = {file.name for file in (tmp_path / "codec").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert json.loads((tmp_path / "codec/config.json").read_text())["std"] == 0.3
    loaded = PixelCodec.from_pretrained(tmp_path, subfolder="codec", use_safetensors=True)
    assert torch.equal(loaded.encode(clip()), codec.encode(clip()))


def test_follows_device_and_dtype_like_any_model() -> None:
    codec = PixelCodec().to("meta", torch.float16)
    assert (codec.device.type, codec.dtype) == ("meta", torch.float16)
