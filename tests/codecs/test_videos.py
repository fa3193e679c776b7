from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vaes import clip, column, normal, peak_beside_result, qwen, wan, wan22

from vidgen.codecs import VideoCodec
from vidgen.errors import InvalidArgumentError

LAYOUTS = {
    "wan": wan,
    "wan22": wan22,
    "qwen": qwen,
    "factor 2": lambda: wan(temperal_downsample=[False, True]),
    "late": lambda: wan(temperal_downsample=[True, False]),
}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_diffusers_in_both_directions(layout: str) -> None:
    vae = LAYOUTS[layout]()
    codec, video = VideoCodec(vae), clip(2, 17, 16, 24)
    mean, std = column(vae.config.latents_mean, 5), column(vae.config.latents_std, 5)
    latents = codec.encode(video)
    assert torch.allclose(latents, (vae.encode(video).latent_dist.mode() - mean) / std, atol=1e-5)
    assert latents.shape[1:] == (3, codec.latent_frames(17), *codec.latent_shape(16, 24)[1:])
    z = normal(*latents.shape)
    expected = vae.decode(z * std + mean).sample
    assert 0.1 < expected.std() < 0.9
    assert torch.allclose(codec.decode(z), expected, atol=1e-5)
    assert torch.allclose(codec.decode(z[:, :, :1]), expected[:, :, :1], atol=1e-5)


def test_17_frames_are_5_latents_and_16_are_refused() -> None:
    codec = VideoCodec(wan())
    assert codec.time_factor == 4
    assert codec.encode(clip(1, 17, 8, 8)).shape[2] == codec.latent_frames(17) == 5
    with pytest.raises(InvalidArgumentError, match=r"16 video frames.*13 or 17"):
        codec.latent_frames(16)
    with pytest.raises(InvalidArgumentError, match="13 or 17"):
        codec.encode(clip(1, 16, 8, 8))
    with pytest.raises(InvalidArgumentError, match="1 or 5"):
        codec.latent_frames(2)
    with pytest.raises(InvalidArgumentError, match="1 or more"):
        codec.latent_frames(0)
    with pytest.raises(InvalidArgumentError, match="is 0; give 1 or more"):
        codec.video_frames(0)


@pytest.mark.parametrize("layout", ["wan", "factor 2"])
def test_frame_map_goes_round(layout: str) -> None:
    codec = VideoCodec(LAYOUTS[layout]())
    covered = [list(codec.frames_of_latent(i)) for i in range(6)]
    assert [len(frames) for frames in covered] == [1] + [codec.time_factor] * 5
    assert [frame for frames in covered for frame in frames] == list(range(codec.video_frames(6)))
    assert all(codec.latent_of_frame(frame) == i for i, frames in enumerate(covered) for frame in frames)
    assert [codec.latent_frames(codec.video_frames(n)) for n in (1, 2, 9)] == [1, 2, 9]
    for call in (codec.frames_of_latent, codec.latent_of_frame, codec.warm_up, codec.stream):
        with pytest.raises(InvalidArgumentError, match="-1"):
            call(-1)


def test_the_map_is_what_the_network_does() -> None:
    codec, video = VideoCodec(wan()), clip(1, 13, 8, 8)
    latents = codec.encode(video)
    changed = video.clone()
    changed[:, :, 5:9] *= -1  # the frames of latent 2
    moved = (codec.encode(changed) - latents).abs().amax((0, 1, 3, 4)) > 0
    assert moved.tolist() == [False, False, True, True]


SHALLOW = {"num_res_blocks": 0, "dim_mult": [1, 1], "temperal_downsample": [True]}
DEEPER = {"num_res_blocks": 0, "dim_mult": [1, 1, 1]}


@pytest.mark.parametrize(
    ("vae", "past"),
    [
        # 7 convolutions and the doubling at latent rate: 16; 3 at twice that rate: 6/2.
        (wan(**SHALLOW), 19),
        (wan22(**SHALLOW), 19),
        (qwen(**SHALLOW), 19),
        # As before, 2 and the doubling at twice that rate: 6/2; 3 at four times: 6/4; rounded up.
        (wan(**DEEPER), 21),
    ],
)
def test_past_is_the_receptive_field(vae: Any, past: int) -> None:
    codec = VideoCodec(vae)
    assert codec.past == past
    first = past + 2
    frames = codec.frames_of_latent(first)
    with torch.enable_grad():
        latents = normal(1, 3, first + 2, 2, 2).requires_grad_()
        span = codec.decode(latents)[:, :, frames.start : frames.stop]
        (gradient,) = torch.autograd.grad((span * normal(*span.shape, seed=2)).sum(), latents)
    felt = gradient.abs().amax((0, 1, 3, 4)) > 0
    assert felt.tolist() == [False] * 2 + [True] * (past + 1) + [False]
    assert codec.warm_up(first) == 2
    assert codec.warm_up(past) == codec.warm_up(1) == 0


@pytest.mark.parametrize("vae", [wan(**SHALLOW), wan22(**SHALLOW), qwen(**SHALLOW)])
def test_a_span_in_the_middle_agrees_with_the_whole(vae: Any) -> None:
    codec = VideoCodec(vae)
    first = codec.past + 2
    latents = normal(2, 3, first + 4, 2, 2)
    whole = codec.decode(latents)
    begin, stream = codec.warm_up(first), codec.stream(first)
    pieces = [stream.push(latents[:, :, i : i + 3]) for i in range(begin, first + 4, 3)]
    assert [p.shape[2] for p in pieces] == [0] * 6 + [4, 4]
    span = torch.cat(pieces, 2)
    start = codec.frames_of_latent(first).start
    assert span.shape == whole[:, :, start:].shape
    assert torch.allclose(span, whole[:, :, start:], atol=1e-5)


def test_perturbing_an_older_latent_changes_nothing_and_the_oldest_does() -> None:
    codec = VideoCodec(wan(**SHALLOW))
    first = codec.past + 1
    latents = normal(1, 3, first + 1, 2, 2)

    def span(changed: int) -> torch.Tensor:
        other = latents.clone()
        other[:, :, changed] *= -30
        return codec.decode(other)[:, :, codec.frames_of_latent(first).start :]

    kept = codec.decode(latents)[:, :, codec.frames_of_latent(first).start :]
    assert torch.equal(span(first - codec.past - 1), kept)
    assert not torch.equal(span(first - codec.past), kept)


def test_a_stream_from_the_beginning_is_the_whole() -> None:
    codec, latents = VideoCodec(wan()), normal(2, 3, 5, 2, 3)
    stream = codec.stream()
    pieces = [stream.push(latents[:, :, a:b]) for a, b in ((0, 1), (1, 2), (2, 5))]
    assert [p.shape[2] for p in pieces] == [1, 4, 12]
    assert torch.allclose(torch.cat(pieces, 2), codec.decode(latents), atol=1e-5)


def test_streams_do_not_disturb_each_other() -> None:
    codec, one, two = VideoCodec(wan()), normal(1, 3, 3, 2, 2), normal(1, 3, 3, 2, 2, seed=5)
    first, second = codec.stream(), codec.stream()
    pieces = [(first.push(one[:, :, i : i + 1]), second.push(two[:, :, i : i + 1])) for i in range(3)]
    assert torch.allclose(torch.cat([p for p, _ in pieces], 2), codec.decode(one), atol=1e-5)
    assert torch.allclose(torch.cat([p for _, p in pieces], 2), codec.decode(two), atol=1e-5)


def test_memory_is_flat_in_the_number_of_frames() -> None:
    codec = VideoCodec(wan())
    few, many = normal(1, 3, 4, 2, 2), normal(1, 3, 9, 2, 2)
    growth = peak_beside_result(lambda: codec.decode(many)) - peak_beside_result(lambda: codec.decode(few))
    assert growth <= many.nbytes - few.nbytes
    few, many = clip(1, 13, 8, 8), clip(1, 33, 8, 8)
    growth = peak_beside_result(lambda: codec.encode(many)) - peak_beside_result(lambda: codec.encode(few))
    assert growth <= many.nbytes - few.nbytes


def test_videos_of_a_batch_are_worked_on_in_groups() -> None:
    vae = wan()
    codec, seen = VideoCodec(vae), []
    vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    latents = normal(3, 3, 2, 2, 2)
    whole = codec.decode(latents)
    assert seen == [(3, 3, 1, 2, 2)] * 2
    seen.clear()
    assert torch.allclose(codec.decode(latents, frames_per_chunk=9), whole, atol=1e-5)
    assert seen == [(2, 3, 1, 2, 2)] * 2 + [(1, 3, 1, 2, 2)] * 2
    seen.clear()
    assert torch.allclose(VideoCodec(vae, slicing=True).decode(latents), whole, atol=1e-5)
    assert seen == [(1, 3, 1, 2, 2)] * 6
    with pytest.raises(InvalidArgumentError, match=r"frames_per_chunk is 3.*groups of 4"):
        codec.decode(latents, frames_per_chunk=3)


def test_tiles_are_those_of_diffusers() -> None:
    vae, video = wan(), clip(1, 5, 40, 24)
    whole, codec = VideoCodec(vae).encode(video), VideoCodec(vae, tile=16)
    latents = codec.encode(video)
    decoded = codec.decode(latents)
    assert not torch.allclose(latents, whole, atol=1e-3)
    vae.enable_tiling(16, 16, 12, 12)
    mean, std = column(codec.mean, 5), column(codec.std, 5)
    assert torch.allclose(latents, (vae.encode(video).latent_dist.mode() - mean) / std, atol=1e-5)
    assert torch.allclose(decoded, vae.decode(latents * std + mean).sample, atol=1e-5)


def test_tiles_of_patched_pixels_are_those_of_diffusers() -> None:
    vae, z = wan22(), normal(1, 3, 3, 9, 5)
    codec = VideoCodec(vae, tile=32)
    decoded = codec.decode(z)
    vae.enable_tiling(32, 32, 24, 24)
    assert torch.allclose(
        decoded, vae.decode(z * column(codec.std, 5) + column(codec.mean, 5)).sample, atol=1e-5
    )


def test_fitted_latents_have_unit_variance() -> None:
    clips = [0.3 * clip(1, 5, 8, 8), clip(2, 9, 8, 16, seed=3)]
    codec = VideoCodec.fit(wan(), clips)
    values = torch.cat([codec.encode(c).transpose(0, 1).flatten(1) for c in clips], 1)
    assert torch.allclose(values.std(dim=1, correction=0), torch.ones(3), atol=1e-4)
    assert values.mean(dim=1).abs().max() < 1e-4


def test_half_precision_rounds_the_network_only() -> None:
    codec = VideoCodec(wan())
    exact, video = codec.decode(normal(1, 3, 2, 2, 2)), clip(1, 5, 8, 8)
    codec.to(torch.bfloat16)
    decoded = codec.decode(normal(1, 3, 2, 2, 2))
    assert decoded.dtype == codec.encode(video).dtype == torch.float32
    assert 0 < (decoded - exact).abs().max() < 0.2


@pytest.mark.parametrize(
    ("vae", "message"),
    [
        (wan(in_channels=1), "1 channels into 3"),
        (wan(latents_mean=[0.0] * 16, latents_std=[1.0] * 16), "one for each of the 3"),
        (wan(temperal_downsample=[True, False, False]), "joins 2 frames in a latent and makes 1"),
        (torch.nn.Conv3d(3, 3, 1), "expected AutoencoderKLWan or AutoencoderKLQwenImage"),
    ],
)
def test_vaes_that_do_not_fit_are_refused(vae: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        VideoCodec(vae)


def test_pieces_that_do_not_fit_are_refused() -> None:
    codec = VideoCodec(wan())
    stream = codec.stream()
    with pytest.raises(InvalidArgumentError, match=r"4 channels.*have 3"):
        stream.push(normal(1, 4, 1, 2, 2))
    stream.push(normal(2, 3, 1, 2, 2))
    with pytest.raises(InvalidArgumentError, match=r"1 videos, 2 x 3, follow latents of 2, 2 x 2"):
        stream.push(normal(1, 3, 1, 2, 3))
    with pytest.raises(InvalidArgumentError, match="is 0; give 1 or more"):
        stream.push(normal(2, 3, 0, 2, 2))
    with pytest.raises(InvalidArgumentError, match=r"tile is 20.*multiple of 16"):
        VideoCodec(wan(), tile=20)
    with pytest.raises(InvalidArgumentError, match="multiples of 4"):
        codec.encode(clip(1, 5, 8, 10))
