"""Causal video VAEs of diffusers as codecs: groups of frames share a latent, each sees its past."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from einops import rearrange
from torch import Tensor, nn

from vidgen.codecs.base import Encoded, FrameStream
from vidgen.codecs.tiles import tiled
from vidgen.codecs.vae import Scale, VaeCodec
from vidgen.errors import InvalidArgumentError
from vidgen.tensors import Clip

__all__ = ["VideoCodec"]

Caches = dict[int, list[Any]]
"""What the convolutions of each tile remember of the past."""


class VideoCodec(VaeCodec):
    """diffusers' ``AutoencoderKLWan`` (Wan 2.1 and 2.2) or ``AutoencoderKLQwenImage``.

    The first frame has a latent alone, every later group of ``time_factor`` frames has one:
    ``1 + time_factor * k`` frames are ``1 + k`` latents. All convolutions over time are causal and
    keep their last inputs (Wan 2025, arXiv 2503.20314, section 4.1), so that both directions run
    group by group: with the values of the whole video, in memory that its length does not change.
    A decoder sees ``past`` latents back and no further, which lets a span be decoded alone.

    Other video VAEs normalise over chunks of frames or see the future; they have no exact stream.

    See ``VaeCodec`` for the arguments. ``frames_per_chunk`` counts frames of all videos of a batch;
    a group of one video is the least.
    """

    vae_classes: ClassVar[tuple[Any, ...]] = (AutoencoderKLWan, AutoencoderKLQwenImage)

    @property
    def channels(self) -> int:
        """Channels of the VAE's latents."""
        return int(self.vae.config.z_dim)

    @property
    def space_factor(self) -> int:
        """Pixels of one side that become one latent pixel."""
        return int(2 ** (len(self.vae.config.dim_mult) - 1)) * self._patch

    @property
    def time_factor(self) -> int:
        """Frames of every latent but the first."""
        return self._time_factor

    @property
    def past(self) -> int:
        """How many latents back a frame of the decoded video depends on."""
        return self._past

    @property
    def _patch(self) -> int:
        return int(self.vae.config.get("patch_size") or 1)

    def latent_frames(self, num_video_frames: int) -> int:
        """``1 + (num_video_frames - 1) / time_factor``; see ``Codec.latent_frames``."""
        groups, rest = divmod(num_video_frames - 1, self.time_factor)
        if num_video_frames < 1 or rest:
            below = 1 + max(0, groups) * self.time_factor
            fitting = f"{below} or {below + self.time_factor}" if num_video_frames > 0 else f"{below} or more"
            raise InvalidArgumentError(
                f"{num_video_frames} video frames do not fit this codec, which holds one frame and then "
                f"groups of {self.time_factor}. Give {fitting} frames."
            )
        return 1 + groups

    def video_frames(self, num_latent_frames: int) -> int:
        """``1 + time_factor * (num_latent_frames - 1)``; below 1 is an ``InvalidArgumentError``."""
        if num_latent_frames < 1:
            raise InvalidArgumentError(f"number of latent frames is {num_latent_frames}; give 1 or more.")
        return 1 + self.time_factor * (num_latent_frames - 1)

    def frames_of_latent(self, index: int) -> range:
        """Frame 0, or the ``index``-th group after it; below 0 is an ``InvalidArgumentError``."""
        if index < 0:
            raise InvalidArgumentError(f"latent frame {index}: frames are counted from 0 upwards.")
        last = index * self.time_factor
        return range(max(0, last - self.time_factor + 1), last + 1)

    def latent_of_frame(self, frame: int) -> int:
        """0 for the first frame, then one for each group; below 0 is an ``InvalidArgumentError``."""
        if frame < 0:
            raise InvalidArgumentError(f"video frame {frame}: frames are counted from 0 upwards.")
        return math.ceil(frame / self.time_factor)

    def warm_up(self, first: int) -> int:
        """``past`` latents before ``first``, or 0; see ``Codec.warm_up``."""
        self.frames_of_latent(first)
        return max(0, first - self.past)

    def stream(self, first: int = 0) -> FrameStream:
        """See ``Codec.stream``; it remembers some frames of activations of the videos it decodes."""
        return _VideoStream(self, first)

    def encode(self, clip: Clip, frames_per_chunk: int | None = None) -> Encoded:
        """See ``Codec.encode``; equals encoding by diffusers, one group of frames at a time."""
        self.check_clip(clip)
        count, step = self.latent_frames(clip.shape[2]), self._videos_at_once(clip, frames_per_chunk)
        shape = self.latent_shape(clip.shape[3], clip.shape[4])
        out = clip.new_empty(clip.shape[0], shape[0], count, *shape[1:], dtype=torch.float32)
        for i in range(0, clip.shape[0], step):
            caches: Caches = {}
            for index in range(count):
                frames = self.frames_of_latent(index)
                group = clip[i : i + step, :, frames.start : frames.stop]
                out[i : i + step, :, index : index + 1] = self._encoded(group, caches)
        return out

    def decode(self, latents: Encoded, frames_per_chunk: int | None = None) -> Clip:
        """See ``Codec.decode``; equals decoding by diffusers, one latent at a time."""
        self.check_latents(latents)
        b, _, count, height, width = latents.shape
        size = self.space_factor * height, self.space_factor * width
        out = latents.new_empty(b, 3, self.video_frames(count), *size, dtype=torch.float32)
        step = self._videos_at_once(out, frames_per_chunk)
        for i in range(0, b, step):
            stream = self.stream()
            for index in range(count):
                frames = self.frames_of_latent(index)
                latent = latents[i : i + step, :, index : index + 1]
                out[i : i + step, :, frames.start : frames.stop] = stream.push(latent)
        return out

    def _encoded(self, group: Clip, caches: Caches) -> Encoded:
        """The latent of the next group of frames."""
        vae, patch = self.vae, self._patch

        def work(tile: Tensor, index: int) -> Tensor:
            cache = caches.setdefault(index, _empty_cache(vae.encoder))
            moments = vae.quant_conv(vae.encoder(tile, feat_cache=cache, feat_idx=[0]))
            mode: Tensor = moments.chunk(2, dim=1)[0]  # of a normal posterior, the mean
            return mode

        # Sub-pixels become channels, columns slower than rows: the order Wan 2.2 was trained with.
        pixels = rearrange(group.to(self.dtype), "b c f (h q) (w r) -> b (c r q) f h w", q=patch, r=patch)
        z = tiled(work, pixels, self._latent_tile, self.space_factor // patch, 1)
        return self._normalised(self._checked_output(z))

    def _decoded(self, latent: Encoded, caches: Caches, begins: bool) -> Clip:
        """The frames of the next latent: one where the stream ``begins``, else ``time_factor``."""
        vae, patch = self.vae, self._patch
        options = {"first_chunk": begins} if isinstance(vae, AutoencoderKLWan) else {}

        def work(tile: Tensor, index: int) -> Tensor:
            cache = caches.setdefault(index, _empty_cache(vae.decoder))
            z = vae.post_quant_conv(tile)
            frames: Tensor = vae.decoder(z, feat_cache=cache, feat_idx=[0], **options)
            return frames

        z = self._restored(latent)
        pixels = tiled(work, z, self._latent_tile, 1, self.space_factor // patch)
        frames = rearrange(pixels, "b (c r q) f h w -> b c f (h q) (w r)", q=patch, r=patch)
        return self._checked_output(frames).clamp(-1, 1)

    def _videos_at_once(self, clip: Clip, frames_per_chunk: int | None) -> int:
        if frames_per_chunk is None:
            frames_per_chunk = max(self.frames_at_once(clip.shape[3], clip.shape[4]), self.time_factor)
        if frames_per_chunk < self.time_factor:
            raise InvalidArgumentError(
                f"frames_per_chunk is {frames_per_chunk}; this codec works on groups of {self.time_factor} "
                f"frames. Give {self.time_factor} or more; tile= bounds the memory of large frames."
            )
        return 1 if self._slicing else frames_per_chunk // self.time_factor

    @property
    def _latent_tile(self) -> int | None:
        return None if self._tile is None else self._tile // self.space_factor

    def _own_scale(self) -> tuple[Scale, Scale]:
        return list(self.vae.config.latents_mean), list(self.vae.config.latents_std)

    def _check_layout(self) -> None:
        config = self.vae.config
        wanted = 3 * self._patch**2
        into = config.get("in_channels", config.get("input_channels"))
        if (into, config.get("out_channels", into)) != (wanted, wanted):
            raise InvalidArgumentError(
                f"the VAE turns {into} channels into {config.get('out_channels', into)}; with patches of "
                f"{self._patch} x {self._patch} pixels RGB frames have {wanted}."
            )
        if _time_factor(self.vae.encoder) != _time_factor(self.vae.decoder):
            raise InvalidArgumentError(
                f"the VAE joins {_time_factor(self.vae.encoder)} frames in a latent and makes "
                f"{_time_factor(self.vae.decoder)} from one; temperal_downsample must name one level less than "
                "dim_mult."
            )
        # Asked for once for every frame of a video, so found once.
        self._time_factor, self._past = _time_factor(self.vae.decoder), _past(self.vae.decoder)

    def _check_tile(self, tile: int) -> None:
        step = 4 * self.space_factor
        if tile < step or tile % step:
            raise InvalidArgumentError(
                f"tile is {tile} pixels; this VAE's tiles have a positive multiple of {step}, so that they "
                f"overlap in whole latent pixels, for example {max(1, round(tile / step)) * step}."
            )

    def _set_options(self) -> None:
        """Nothing to set: the codec runs the VAE's encoder and decoder and tiles and slices itself."""


class _VideoStream(FrameStream):
    """Decodes latent by latent with what the decoder's convolutions remember."""

    def __init__(self, codec: VideoCodec, first: int) -> None:
        self._codec, self._first = codec, first
        self._next = codec.warm_up(first)
        self._shape: tuple[int, ...] | None = None
        self._caches: Caches = {}

    def push(self, latents: Encoded) -> Clip:
        """See ``FrameStream.push``."""
        self._check(latents)
        done = []
        for latent in latents.split(1, dim=2):
            # A stream that begins late takes its first latent for a first one and makes one frame of
            # it; that one and all that feel the missing past are never given out.
            frames = self._codec._decoded(latent, self._caches, begins=not self._caches)
            if self._next >= self._first:
                done.append(frames)
            self._next += 1
        return torch.cat(done, 2) if done else frames[:, :, :0]

    def _check(self, latents: Tensor) -> None:
        self._codec.check_latents(latents)
        shape = (latents.shape[0], *latents.shape[3:])
        if self._shape not in (None, shape):
            raise InvalidArgumentError(
                f"latents of {shape[0]} videos, {shape[1]} x {shape[2]}, follow latents of {self._shape[0]}, "
                f"{self._shape[1]} x {self._shape[2]}. A stream decodes one batch; begin another for these."
            )
        self._shape = shape


def _doubles_time(name: str) -> bool:
    """Whether a convolution over time stands where the number of frames doubles or halves."""
    return name.endswith("time_conv")


def _time_factor(network: nn.Module) -> int:
    return int(2 ** sum(_doubles_time(name) for name, _ in network.named_modules()))


def _past(decoder: nn.Module) -> int:
    """The decoder's receptive field in time: how many latents back a frame reaches."""
    reach, rate = 0, 1  # in frames of the present rate, and that rate in frames per latent
    # As far as time is concerned, the order of the modules is the order they are run in.
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Conv3d):
            reach += module.kernel_size[0] - 1
            if _doubles_time(name):
                reach, rate = 2 * reach, 2 * rate
    return math.ceil(reach / rate)


def _empty_cache(network: nn.Module) -> list[Any]:
    """A place for each convolution; ``None`` tells it that nothing came before."""
    return [None for module in network.modules() if isinstance(module, nn.Conv3d)]
