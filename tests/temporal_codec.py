"""A codec for the tests that joins four frames in a latent and decodes each with the two before it."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange

from vidgen.codecs.base import Codec, FrameStream
from vidgen.errors import InvalidArgumentError

PAST = 2


class TemporalCodec(Codec, ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.zeros(1))
        self.pushed: list[int] = []

    channels, space_factor, time_factor = 12, 2, 4

    def latent_frames(self, num_video_frames):
        if num_video_frames % 4 != 1:
            raise InvalidArgumentError(f"{num_video_frames} frames do not fit; give 4k + 1, such as 13 or 17.")
        return num_video_frames // 4 + 1

    def video_frames(self, num_latent_frames):
        return 4 * num_latent_frames - 3

    def frames_of_latent(self, index):
        return range(1) if index == 0 else range(4 * index - 3, 4 * index + 1)

    def latent_of_frame(self, frame):
        return (frame + 3) // 4

    def encode(self, clip, frames_per_chunk=None):
        self.latent_frames(clip.shape[2])
        small = torch.nn.functional.avg_pool3d(clip, (1, 2, 2))
        small = torch.cat([small[:, :, :1].expand(-1, -1, 3, -1, -1), small], dim=2)
        return rearrange(small, "b c (k t) h w -> b (c t) k h w", t=4)

    def decode(self, latents, frames_per_chunk=None):
        stream = self.stream()
        return torch.cat([stream.push(latents[:, :, i : i + 1]) for i in range(latents.shape[2])], dim=2)

    def warm_up(self, first):
        return max(0, first - PAST)

    def stream(self, first=0):
        return _Stream(self, first)


class _Stream(FrameStream):
    def __init__(self, codec, first):
        self.codec, self.first, self.next, self.past = codec, first, codec.warm_up(first), []

    def push(self, latents):
        clips = [self._one(latents[:, :, i]) for i in range(latents.shape[2])]
        return torch.cat(clips, dim=2)

    def _one(self, latent):
        index, self.next = self.next, self.next + 1
        self.codec.pushed.append(index)
        shade = sum(0.1 * (i + 1) * past.mean((1, 2, 3)) for i, past in enumerate(self.past))
        self.past = [*self.past, latent][-PAST:]
        frames = rearrange(latent, "b (c t) h w -> b c t h w", t=4)
        frames = frames.repeat_interleave(2, 3).repeat_interleave(2, 4)
        frames = frames + (shade[:, None, None, None, None] if torch.is_tensor(shade) else 0)
        frames = frames[:, :, -1:] if index == 0 else frames
        return frames.clamp(-1, 1) if index >= self.first else frames[:, :, :0]
