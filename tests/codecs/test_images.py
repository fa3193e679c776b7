from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from tiny_vaes import clip, column, kl, normal, peak_beside_result, tiny

from vidgen.codecs import ImageCodec, base
from vidgen.errors import InvalidArgumentError
from vidgen.nn import attention_backend
from vidgen.weights import weight_hash


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def one_by_one(call: Any, video: torch.Tensor) -> torch.Tensor:
    """Apply an image function of diffusers to every frame."""
    return torch.stack([call(frame) for frame in video.unbind(2)], 2)


def batches(module: torch.nn.Module) -> list[int]:
    """The batch sizes that enter ``module`` from now on."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("shift", [0.2, None])
def test_kl_equals_diffusers_with_its_factors(shift: float | None) -> None:
    vae = kl(shift_factor=shift)
    codec, video = ImageCodec(vae), clip()
    latents = codec.encode(video)
    expected = one_by_one(lambda x: (vae.encode(x).latent_dist.mode() - (shift or 0)) * 0.4, video)
    assert torch.allclose(latents, expected, atol=1e-5)
    frames = one_by_one(lambda z: vae.decode(z / 0.4 + (shift or 0)).sample, latents)
    assert torch.allclose(codec.decode(latents), frames.clamp(-1, 1), atol=1e-5)
    assert codec.latent_shape(16, 24) == (latents.shape[1], *latents.shape[3:]) == (3, 8, 12)


def test_kl_equals_diffusers_with_statistics_of_its_latents() -> None:
    mean, std = [0.1, -0.2, 0.3], [0.5, 1.0, 2.0]
    vae = kl(latents_mean=mean, latents_std=std, shift_factor=None)
    codec, video = ImageCodec(vae), clip()
    m, s = column(mean, 4), column(std, 4)
    expected = one_by_one(lambda x: (vae.encode(x).latent_dist.mode() - m) * 0.4 / s, video)
    assert torch.allclose(codec.encode(video), expected, atol=1e-5)
    frames = one_by_one(lambda z: vae.decode(z * s / 0.4 + m).sample, expected)
    assert torch.allclose(codec.decode(expected), frames.clamp(-1, 1), atol=1e-5)


def test_tiny_equals_diffusers() -> None:
    vae = tiny()
    codec, video = ImageCodec(vae), clip()
    latents = codec.encode(video)
    expected = one_by_one(lambda x: (vae.encode(x).latents - 0.1) * 0.7, video)
    assert torch.allclose(latents, expected, atol=1e-5)
    frames = one_by_one(lambda z: vae.decode(z / 0.7 + 0.1).sample, latents)
    assert torch.allclose(codec.decode(latents), frames.clamp(-1, 1), atol=1e-5)
    assert codec.latent_shape(16, 24) == (4, 2, 3)


def test_values_outside_the_range_of_pixels_are_clamped() -> None:
    vae = kl()
    vae.decoder.conv_out.weight.mul_(20)
    decoded = ImageCodec(vae).decode(normal(1, 3, 2, 4, 4))
    assert decoded.abs().max() == 1
    assert 0.1 < (decoded.abs() < 1).float().mean() < 0.9


@pytest.mark.parametrize("per_channel", [True, False])
def test_fitted_latents_have_unit_variance(per_channel: bool) -> None:
    vae, clips = kl(), [0.3 * clip(seed=1), clip(1, 5, 8, 8, seed=2) + 0.2]
    codec = ImageCodec.fit(vae, iter(clips), per_channel=per_channel)
    values = torch.cat([codec.encode(c).transpose(0, 1).flatten(1) for c in clips], 1)
    assert values.mean().abs() < 1e-4
    assert values.std(correction=0) == pytest.approx(1, abs=1e-4)
    each = values.std(dim=1, correction=0)
    assert torch.allclose(each, torch.ones(3), atol=1e-4) == per_channel
    assert len(set(codec.std)) == (3 if per_channel else 1)
    restored, plain = codec.decode(codec.encode(clips[0])), ImageCodec(vae)
    assert torch.allclose(restored, plain.decode(plain.encode(clips[0])), atol=1e-5)


def test_attention_goes_through_the_one_entry_point() -> None:
    vae = kl()
    plain = vae.encode(clip()[:, :, 0]).latent_dist.mode()
    codec = ImageCodec(vae)
    assert any(isinstance(module, Attention) for module in vae.modules())
    for backend, shift in (("sdpa", 0.0), ("math", 1e-6)):
        with attention_backend(backend):
            assert torch.allclose(vae.encode(clip()[:, :, 0]).latent_dist.mode(), plain, atol=shift)
    with attention_backend("cudnn"), pytest.raises(InvalidArgumentError, match="cudnn"):
        codec.encode(clip())


def test_a_long_clip_never_enters_the_vae_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ImageCodec(kl()).frames_at_once(n, n) for n in (64, 512, 4096)] == [256, 4, 1]
    monkeypatch.setattr(base, "PIXELS_AT_ONCE", 3 * 16 * 24)
    vae = kl()
    encoded, decoded = batches(vae.encoder), batches(vae.decoder)
    codec = ImageCodec(vae)
    latents = codec.encode(clip(2, 4))
    assert encoded == [3, 3, 2]
    codec.decode(latents)
    assert decoded == [3, 3, 2]
    codec.decode(latents, frames_per_chunk=5)
    assert decoded[3:] == [5, 3]


def test_memory_is_flat_in_the_number_of_frames() -> None:
    codec = ImageCodec(kl())
    few, many = normal(1, 3, 4, 4, 4), normal(1, 3, 30, 4, 4)
    growth = peak_beside_result(lambda: codec.decode(many, 2)) - peak_beside_result(
        lambda: codec.decode(few, 2)
    )
    assert growth <= many.nbytes - few.nbytes
    few, many = clip(1, 4, 8, 8), clip(1, 30, 8, 8)
    growth = peak_beside_result(lambda: codec.encode(many, 2)) - peak_beside_result(
        lambda: codec.encode(few, 2)
    )
    assert growth <= many.nbytes - few.nbytes


def test_frames_stream_one_to_one() -> None:
    codec, latents = ImageCodec(kl()), normal(2, 3, 6, 4, 4)
    stream = codec.stream(first=codec.warm_up(2))
    pieces = [stream.push(latents[:, :, 2:3]), stream.push(latents[:, :, 3:])]
    assert torch.allclose(torch.cat(pieces, 2), codec.decode(latents)[:, :, 2:], atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="-1"):
        codec.stream(first=-1)
    with pytest.raises(InvalidArgumentError, match="is 0; give 1 or more"):
        stream.push(latents[:, :, :0])


def test_tiles_are_those_of_diffusers() -> None:
    vae, video = kl(), clip(1, 2, 40, 56)
    whole = ImageCodec(vae).encode(video)
    codec = ImageCodec(vae, tile=16)
    latents, seen = codec.encode(video), batches(vae.decoder)
    decoded = codec.decode(latents)
    assert len(seen) == 4 * 5
    assert not torch.allclose(latents, whole, atol=1e-3)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 8
    expected = one_by_one(lambda x: (vae.encode(x).latent_dist.mode() - 0.2) * 0.4, video)
    assert torch.allclose(latents, expected, atol=1e-5)
    frames = one_by_one(lambda z: vae.decode(z / 0.4 + 0.2).sample, latents)
    assert torch.allclose(decoded, frames.clamp(-1, 1), atol=1e-5)
    assert latents.shape == whole.shape
    assert torch.allclose(ImageCodec(vae).encode(video), whole), "tile=None turns tiling off again"


def test_tiles_of_a_tiny_vae_are_those_of_diffusers() -> None:
    vae, video = tiny(), clip(1, 1, 136, 240)
    whole = ImageCodec(vae).encode(video)
    codec = ImageCodec(vae, tile=128)
    latents = codec.encode(video)
    decoded = codec.decode(latents)
    assert latents.shape == whole.shape
    assert not torch.allclose(latents, whole, atol=1e-3)
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 128, 16
    assert torch.allclose(latents[:, :, 0], (vae.encode(video[:, :, 0]).latents - 0.1) * 0.7, atol=1e-5)
    frame = vae.decode(latents[:, :, 0] / 0.7 + 0.1).sample.clamp(-1, 1)
    assert torch.allclose(decoded[:, :, 0], frame, atol=1e-5)


def test_slicing_takes_frames_one_by_one() -> None:
    vae = kl()
    whole = ImageCodec(vae).decode(normal(1, 3, 4, 4, 4))
    seen = batches(vae.decoder)
    sliced = ImageCodec(vae, slicing=True).decode(normal(1, 3, 4, 4, 4))
    assert seen == [1, 1, 1, 1]
    assert torch.allclose(sliced, whole, atol=1e-5)


def test_half_precision_rounds_the_network_only() -> None:
    vae, video = kl(), clip()
    exact = ImageCodec(vae, mean=3.141592, std=0.0271828).encode(video)
    codec = ImageCodec(vae, mean=3.141592, std=0.0271828).to(torch.bfloat16)
    latents = codec.encode(video)
    assert (codec.dtype, codec.device.type) == (torch.bfloat16, "cpu")
    assert latents.dtype == codec.decode(latents).dtype == torch.float32
    z = vae.encode(video[:, :, 0].bfloat16()).latent_dist.mode().float()
    assert torch.allclose(latents[:, :, 0], (z - 3.141592) / 0.0271828, atol=1e-4)
    assert 1e-3 < (latents - exact).abs().max() < 2


def test_an_overflow_in_float16_is_refused() -> None:
    vae = kl()
    vae.decoder.conv_out.weight.mul_(1e5)
    with pytest.raises(InvalidArgumentError, match=r"overflows in float16.*bfloat16"):
        ImageCodec(vae).half().decode(normal(1, 3, 1, 4, 4))


def test_scaling_is_part_of_the_state_and_of_the_hash() -> None:
    vae = kl()
    codec, other = ImageCodec(vae, mean=0.1, std=0.3), ImageCodec(vae, mean=0.1, std=0.4)
    assert weight_hash(codec) != weight_hash(other)
    assert weight_hash(codec) == weight_hash(ImageCodec(vae, mean=0.1, std=0.3))
    other.load_state_dict(codec.state_dict())
    assert other.std == (0.3, 0.3, 0.3)


@pytest.mark.parametrize(
    ("vae", "options", "message"),
    [
        (torch.nn.Conv2d(3, 3, 1), {}, "given Conv2d; expected AutoencoderKL or AutoencoderTiny"),
        (kl(in_channels=1), {}, "1 channels into 3"),
        (tiny(decoder_block_out_channels=(4,) * 3, num_decoder_blocks=(1,) * 3), {}, "shrinks frames 8 times"),
        (kl(), {"mean": 0.0}, "give both"),
        (kl(), {"mean": 0.0, "std": [1.0, 2.0]}, "one for each of the 3"),
        (kl(), {"mean": float("nan"), "std": 1.0}, "mean is nan"),
        (kl(), {"mean": 0.0, "std": [1.0, 0.0, 1.0]}, "not above 0"),
        (kl(), {"tile": 12}, r"tile is 12.*multiple of 8.*example 16"),
        (tiny(), {"tile": 64}, "multiple of 128"),
        (tiny(latent_channels=5), {"tile": 128}, "only AutoencoderTiny VAEs with 4 latent channels"),
    ],
)
def test_what_does_not_fit_is_refused(vae: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ImageCodec(vae, **options)


def test_clips_and_latents_that_do_not_fit_are_refused() -> None:
    codec = ImageCodec(kl())
    with pytest.raises(InvalidArgumentError, match="multiples of 2"):
        codec.encode(clip(width=23))
    with pytest.raises(InvalidArgumentError, match=r"4 channels.*have 3"):
        codec.decode(normal(1, 4, 2, 4, 4))
