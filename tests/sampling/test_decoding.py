"""Frames come out in order, once, as soon as their latents are there, and as in the whole video."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from temporal_codec import TemporalCodec
from toy import Toy, ToyConfig
from vidgen.codecs import PixelCodec
from vidgen.errors import InvalidArgumentError
from vidgen.request import Canvas
from vidgen.sampling import Sampler
from vidgen.sampling.decoding import Delivery, Span, latents_of, spans
from vidgen.video import Video


class TemporalToy(Toy):
    component_types = {**Toy.component_types, "codec": (TemporalCodec,)}  # noqa: RUF012


@pytest.fixture
def sampler():
    torch.manual_seed(0)
    plain = Toy.create(ToyConfig(window=5, context=2))
    strategy = TemporalToy(plain.config, {**plain.modules, "codec": TemporalCodec()}, plain.scheduler)
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    return sampler


def test_spans_begin_where_the_codec_needs_and_join_where_they_meet():
    frames = PixelCodec(patch=2)
    assert spans(frames, [0, 1, 2, 7, 8]) == (Span(0, 0, 2), Span(7, 7, 8))
    temporal = TemporalCodec()
    assert latents_of(temporal, [0, 1, 4, 5, 40]) == (0, 1, 2, 10)
    assert spans(temporal, [40]) == (Span(8, 10, 10),)
    # From latent 2 to latent 5, warming up from 3: going on is cheaper.
    assert spans(temporal, [5, 6, 17]) == (Span(0, 2, 5),)


@pytest.mark.parametrize("codec", [PixelCodec(patch=2), TemporalCodec()], ids=["frames", "temporal"])
@pytest.mark.parametrize("wanted", [range(41), [0], [40], range(18, 23), [0, 9, 30, 31]])
def test_delivery_gives_the_wanted_frames_of_the_whole_video(codec, wanted):
    count = codec.latent_frames(41)
    latents = 0.3 * torch.randn(1, 12, count, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(latents)[0]
    canvas = Canvas()
    delivery = Delivery(codec, list(wanted), canvas, "video", torch.device("cpu"))
    pieces = []
    for index in range(count):  # latents appear one by one
        canvas["video", index] = latents[0, :, index]
        pieces += list(delivery.ready())
        needed = max(codec.latent_of_frame(frame) for frame in wanted)
        assert (delivery.released is None) == (index >= needed)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole[:, list(wanted)])
    assert list(delivery.ready()) == []


def test_late_latents_hold_frames_back():
    codec = PixelCodec(patch=2)
    canvas = Canvas()
    delivery = Delivery(codec, range(3), canvas, "video", torch.device("cpu"))
    canvas["video", 1] = torch.zeros(12, 4, 4)
    assert list(delivery.ready()) == []
    assert delivery.released == 0
    canvas["video", 0] = torch.zeros(12, 4, 4)
    assert [piece.shape[1] for piece in delivery.ready()] == [2]
    assert delivery.released == 2


def test_codecs_with_a_past_decode_the_same_whole_streamed_or_in_part(sampler, tmp_path):
    whole = sampler("a", seed=3, num_frames=33)
    assert whole.frames.shape[1] == 33
    latents = sampler("a", seed=3, num_frames=33, output_type="latent").frames
    assert latents.shape[2] == 9
    decoded = sampler.strategy.codec.decode(latents)[0].permute(1, 2, 3, 0)
    np.testing.assert_allclose(whole.frames[0], (decoded.numpy() + 1) / 2, atol=1e-5)
    streamed = sampler("a", seed=3, num_frames=33, out=tmp_path / "frames")
    np.testing.assert_array_equal(Video.load(streamed.paths[0]).frames, whole.videos[0].frames)
    codec = sampler.strategy.codec
    for span in (range(3), range(20, 24), [32], [0, 31]):
        codec.pushed.clear()
        part = sampler("a", seed=3, num_frames=33, frames=span)
        np.testing.assert_allclose(part.frames[0], whole.frames[0, list(span)], atol=1e-5)
        assert part.frame_indices == tuple(span)
        wanted = {i for s in spans(codec, list(span)) for i in range(s.begin, s.last + 1)}
        assert codec.pushed == sorted(wanted)  # each once, and nothing else


def test_frame_counts_that_do_not_fit_are_refused(sampler):
    with pytest.raises(InvalidArgumentError, match="such as 13 or 17"):
        sampler("a", num_frames=16)


def test_prompts_hold_from_their_video_frame_whatever_the_codec(sampler):
    whole = sampler({0: "a", 17: "b"}, seed=0, num_frames=33, output_type="latent").frames
    other = sampler({0: "a", 17: "c"}, seed=0, num_frames=33, output_type="latent").frames
    # Windows of five latents that share two begin anew at latents 0, 5 and 8: frames 0, 17 and 29.
    assert torch.equal(whole[:, :, :5], other[:, :, :5])
    assert not torch.equal(whole[:, :, 5:], other[:, :, 5:])


def test_first_frames_can_be_given_to_codecs_with_a_past(sampler):
    clip = np.random.default_rng(0).integers(0, 256, (33, 8, 8, 3)).astype(np.uint8)
    codec = sampler.strategy.codec
    pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    latents = sampler("a", seed=0, num_frames=33, image=clip[0], output_type="latent").frames
    torch.testing.assert_close(latents[:, :, :1], codec.encode(pixels[:, :, :1]), atol=1e-5, rtol=0)
    given = sampler("a", seed=0, num_frames=33, pins=dict(enumerate(clip[:5])), output_type="latent").frames
    torch.testing.assert_close(given[:, :, :2], codec.encode(pixels[:, :, :5]), atol=1e-5, rtol=0)
    # A video of which frames 9..20 are made anew: their latents are 3, 4 and 5.
    mask = [9 <= i <= 20 for i in range(33)]
    kept = sampler("a", seed=0, video=clip, mask=mask, output_type="latent").frames
    whole = codec.encode(pixels)
    differ = (kept - whole).abs().amax(dim=(0, 1, 3, 4)) > 1e-6
    assert differ.tolist() == [i in (3, 4, 5) for i in range(9)]
    for pins in ({4: clip[0]}, {0: clip[0], 32: clip[1]}):
        with pytest.raises(InvalidArgumentError, match="only the first frames of a video can be given"):
            sampler("a", num_frames=33, pins=pins)
    with pytest.raises(InvalidArgumentError, match="only the first frames"):
        sampler("a", num_frames=33, last_image=clip[0])
    with pytest.raises(InvalidArgumentError, match="3 frames do not fit"):
        sampler("a", num_frames=33, pins=dict(enumerate(clip[:3])))
