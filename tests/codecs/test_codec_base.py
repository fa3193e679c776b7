from __future__ import annotations

import pytest
import torch

from vidgen.codecs import FrameCodec
from vidgen.errors import InvalidArgumentError


class HalvingCodec(FrameCodec):
    """Keeps every second pixel; counts the frames of each piece of work."""

    channels = 3
    space_factor = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(frames))
        return frames[..., ::2, ::2]

    def decode_frames(self, latents: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(latents))
        return 2 * latents.repeat_interleave(2, -1).repeat_interleave(2, -2)


def clip(b: int = 2, f: int = 5, size: int = 4) -> torch.Tensor:
    return torch.rand(b, 3, f, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_chunks_bound_the_work_and_change_nothing() -> None:
    codec = HalvingCodec()
    whole = codec.encode(clip())
    assert codec.seen == [10]
    chunked = codec.encode(clip(), frames_per_chunk=4)
    assert codec.seen == [10, 4, 4, 2]
    assert torch.equal(whole, chunked)
    assert torch.equal(whole, clip()[..., ::2, ::2])
    assert torch.equal(codec.decode(whole), codec.decode(whole, frames_per_chunk=3))


def test_decoded_pixels_are_clamped() -> None:
    decoded = HalvingCodec().decode(torch.full((1, 3, 1, 2, 2), 0.9))
    assert torch.equal(decoded, torch.ones(1, 3, 1, 4, 4))


def test_frame_map_of_a_frame_codec_is_one_to_one() -> None:
    codec = HalvingCodec()
    assert codec.time_factor == 1
    assert [codec.latent_frames(n) for n in (1, 7)] == [1, 7]
    covered = [f for i in range(codec.latent_frames(6)) for f in codec.frames_of_latent(i)]
    assert covered == list(range(codec.video_frames(6)))


@pytest.mark.parametrize("call", ["latent_frames", "video_frames"])
def test_counts_below_one_are_refused(call: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is 0; give 1 or more"):
        getattr(HalvingCodec(), call)(0)


def test_negative_latent_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="-1"):
        HalvingCodec().frames_of_latent(-1)


def test_latent_shape_names_the_multiple_needed() -> None:
    assert HalvingCodec().latent_shape(8, 6) == (3, 4, 3)
    with pytest.raises(InvalidArgumentError, match=r"multiples of 2.*8 x 8"):
        HalvingCodec().latent_shape(8, 7)
    with pytest.raises(InvalidArgumentError, match="multiples of 2"):
        HalvingCodec().latent_shape(0, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 4, 2, 4, 4), "4 channels"),
        (torch.zeros(1, 3, 2, 4, 5), "4 x 5"),
    ],
)
def test_clips_that_do_not_fit_are_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        HalvingCodec().encode(wrong)


def test_foreign_latents_and_empty_chunks_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"5 channels.*3"):
        HalvingCodec().decode(torch.zeros(1, 5, 2, 4, 4))
    with pytest.raises(InvalidArgumentError, match="frames_per_chunk is 0"):
        HalvingCodec().encode(clip(), frames_per_chunk=0)
