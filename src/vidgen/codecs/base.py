"""What every codec promises: video to latents and back, and which frame becomes which latent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.shapes import Clip, FrameBatch

__all__ = ["Codec", "Encoded", "EncodedFrames", "FrameCodec"]

Encoded = Float[Tensor, "b zc zf zh zw"]
"""Latents beside the clip they belong to: ``b c f h w`` of their own sizes."""

EncodedFrames = Float[Tensor, "bf zc zh zw"]
"""A frame batch of latents beside its pixels."""


class Codec(nn.Module, ABC):
    """Turns clips into latents of unit variance and back; it alone owns scaling and chunking.

    A concrete codec also derives from diffusers' ``ModelMixin`` and ``ConfigMixin``, in the order
    ``class MyCodec(Codec, ModelMixin, ConfigMixin)`` (``ConfigMixin`` before ``nn.Module`` would
    hide parameters), so that it is saved and loaded as a component of a checkpoint.
    """

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of a latent."""

    @property
    @abstractmethod
    def space_factor(self) -> int:
        """Pixels of one side that become one latent pixel."""

    @property
    @abstractmethod
    def time_factor(self) -> int:
        """Video frames that become one latent frame, apart from a first frame that stands alone."""

    @abstractmethod
    def latent_frames(self, num_video_frames: int) -> int:
        """Latent frames of a video with ``num_video_frames`` frames.

        Raises:
            InvalidArgumentError: the codec cannot hold that many frames.
        """

    @abstractmethod
    def video_frames(self, num_latent_frames: int) -> int:
        """Video frames that ``num_latent_frames`` latent frames decode to."""

    @abstractmethod
    def frames_of_latent(self, index: int) -> range:
        """Absolute video frames that latent frame ``index`` (from 0) stands for."""

    @abstractmethod
    def latent_of_frame(self, frame: int) -> int:
        """The latent frame that absolute video frame ``frame`` (from 0) decodes from."""

    @abstractmethod
    def encode(self, clip: Clip, frames_per_chunk: int | None = None) -> Encoded:
        """Latents of a clip of RGB pixels in [-1, 1], with unit variance over the data.

        Args:
            clip: ``b 3 f h w``; ``h`` and ``w`` are multiples of ``space_factor``.
            frames_per_chunk: at most so many frames are worked on at once; None takes all.

        Raises:
            InvalidArgumentError: a size, a frame count or a chunk that does not fit.
        """

    @abstractmethod
    def decode(self, latents: Encoded, frames_per_chunk: int | None = None) -> Clip:
        """The clip ``b 3 f h w`` of ``latents``, clamped to [-1, 1]; chunking changes no pixel."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of frames with ``height`` x ``width`` pixels.

        Raises:
            InvalidArgumentError: a side is not a positive multiple of ``space_factor``.
        """
        factor = self.space_factor
        if min(height, width) < 1 or height % factor or width % factor:
            raise InvalidArgumentError(
                f"frames of {height} x {width} pixels do not fit this codec: height and width must "
                f"be positive multiples of {factor}. Resize or crop them, for example to "
                f"{_nearest_multiple(height, factor)} x {_nearest_multiple(width, factor)}."
            )
        return self.channels, height // factor, width // factor


class FrameCodec(Codec):
    """A codec that treats every frame alone: time factor 1, latent ``i`` is video frame ``i``."""

    @abstractmethod
    def encode_frames(self, frames: FrameBatch) -> EncodedFrames:
        """Latents of single RGB frames in [-1, 1]."""

    @abstractmethod
    def decode_frames(self, latents: EncodedFrames) -> FrameBatch:
        """RGB frames of single latents; values may leave [-1, 1]."""

    @property
    def time_factor(self) -> int:
        """1: every video frame has its own latent."""
        return 1

    def latent_frames(self, num_video_frames: int) -> int:
        """As many as video frames; a count below 1 is an ``InvalidArgumentError``."""
        return _positive(num_video_frames, "number of video frames")

    def video_frames(self, num_latent_frames: int) -> int:
        """As many as latent frames; a count below 1 is an ``InvalidArgumentError``."""
        return _positive(num_latent_frames, "number of latent frames")

    def frames_of_latent(self, index: int) -> range:
        """The one video frame with the same index."""
        if index < 0:
            raise InvalidArgumentError(f"latent frame {index}: frames are counted from 0 upwards.")
        return range(index, index + 1)

    def latent_of_frame(self, frame: int) -> int:
        """The latent with the same index."""
        return self.frames_of_latent(frame).start

    def encode(self, clip: Clip, frames_per_chunk: int | None = None) -> Encoded:
        """See ``Codec.encode``; chunks change nothing, since frames do not see each other."""
        if clip.shape[1] != 3:
            raise InvalidArgumentError(
                f"a clip with {clip.shape[1]} channels was given; this codec encodes RGB clips "
                "'b c f h w' with c = 3. Check the order of the axes."
            )
        self.latent_shape(clip.shape[3], clip.shape[4])
        return _by_chunks(self.encode_frames, clip, frames_per_chunk)

    def decode(self, latents: Encoded, frames_per_chunk: int | None = None) -> Clip:
        """See ``Codec.decode``; a wrong channel count is an ``InvalidArgumentError``."""
        if latents.shape[1] != self.channels:
            raise InvalidArgumentError(
                f"latents with {latents.shape[1]} channels were given; this codec's have "
                f"{self.channels} ('b c f h w'). Decode with the codec that encoded them."
            )
        return _by_chunks(lambda frames: self.decode_frames(frames).clamp(-1, 1), latents, frames_per_chunk)


def _by_chunks(per_frame: Callable[[Tensor], Tensor], video: Tensor, frames_per_chunk: int | None) -> Tensor:
    """Apply ``per_frame`` to all frames of a batch of videos, ``frames_per_chunk`` at a time."""
    if frames_per_chunk is None:
        frames_per_chunk = max(1, video.shape[0] * video.shape[2])
    _positive(frames_per_chunk, "frames_per_chunk")
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    parts = [per_frame(part) for part in torch.split(frames, frames_per_chunk)]
    return rearrange(torch.cat(parts), "(b f) c h w -> b c f h w", b=video.shape[0])


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise InvalidArgumentError(f"{name} is {value}; give 1 or more.")
    return value


def _nearest_multiple(value: int, factor: int) -> int:
    return max(1, round(value / factor)) * factor
