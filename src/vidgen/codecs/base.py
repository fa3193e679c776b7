"""What every codec promises: video to latents and back, and which frame becomes which latent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vidgen.errors import InvalidArgumentError
from vidgen.tensors import Clip, FrameBatch

__all__ = ["PIXELS_AT_ONCE", "Codec", "Encoded", "EncodedFrames", "FrameCodec", "FrameStream"]

PIXELS_AT_ONCE = 2**20
"""Pixels a codec works on at once unless it is told otherwise: one megapixel, such as four frames
of 512 x 512, which the usual image VAEs take with some gigabytes of activations in float32."""

Encoded = Float[Tensor, "b zc zf zh zw"]
"""Latents beside the clip they belong to: ``b c f h w`` of their own sizes."""

EncodedFrames = Float[Tensor, "bf zc zh zw"]
"""A frame batch of latents beside its pixels."""


class FrameStream(ABC):
    """Decodes latents that arrive piece by piece, in memory that does not grow with the video.

    ``Codec.stream`` makes one. A stream belongs to one batch of videos: every piece has the same
    batch, channels, height and width.
    """

    @abstractmethod
    def push(self, latents: Encoded) -> Clip:
        """Take the next latents and return the frames that are now finished.

        Args:
            latents: ``b c k h w``, 1 or more that follow those pushed before; the very first is
                latent ``codec.warm_up(first)``.

        Returns:
            ``b 3 f h w`` in [-1, 1], consecutive from ``codec.frames_of_latent(first).start`` over
            all pushes. ``f`` is 0 while the stream warms up.

        Raises:
            InvalidArgumentError: latents that do not fit the codec or the pieces before.
        """


class Codec(nn.Module, ABC):
    """Turns clips into latents of unit variance and back; it alone owns scaling and chunking.

    A concrete codec also derives from diffusers' ``ModelMixin`` and ``ConfigMixin``, in the order
    ``class MyCodec(Codec, ModelMixin, ConfigMixin)`` (``ConfigMixin`` before ``nn.Module`` would
    hide parameters), so that it is saved and loaded as a component of a checkpoint; or it wraps
    another library's VAE and has ``save_pretrained`` and ``from_pretrained`` of its own.
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
            frames_per_chunk: at most so many frames are worked on at once; None takes as many as
                have ``PIXELS_AT_ONCE`` pixels together.

        Raises:
            InvalidArgumentError: a size, a frame count or a chunk that does not fit.
        """

    @abstractmethod
    def decode(self, latents: Encoded, frames_per_chunk: int | None = None) -> Clip:
        """The clip ``b 3 f h w`` of ``latents``, clamped to [-1, 1]; chunking changes no pixel.

        Memory besides ``latents`` and the clip itself does not grow with the number of frames.

        Raises:
            InvalidArgumentError: latents of another codec, or a chunk that does not fit.
        """

    def warm_up(self, first: int) -> int:
        """The latent to begin pushing at, so that latent ``first`` decodes as in the whole video.

        By default ``first`` itself; a codec that decodes a frame with its past needs some before.

        Raises:
            InvalidArgumentError: ``first`` is below 0.
        """
        self.frames_of_latent(first)
        return first

    @abstractmethod
    def stream(self, first: int = 0) -> FrameStream:
        """A stream of the frames of latent ``first`` (from 0) and on, fed from ``warm_up(first)``.

        Raises:
            InvalidArgumentError: ``first`` is below 0.
        """

    def frames_at_once(self, height: int, width: int) -> int:
        """Frames of ``height`` x ``width`` pixels that have ``PIXELS_AT_ONCE`` together; 1 or more."""
        return max(1, PIXELS_AT_ONCE // (height * width))

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

    def check_clip(self, clip: Clip) -> None:
        """Refuse a clip that is not RGB, or whose sides or frame count do not fit this codec.

        Raises:
            InvalidArgumentError: it does not fit.
        """
        if clip.shape[1] != 3:
            raise InvalidArgumentError(
                f"a clip with {clip.shape[1]} channels was given; this codec encodes RGB clips "
                "'b c f h w' with c = 3. Check the order of the axes."
            )
        self.latent_frames(clip.shape[2])
        self.latent_shape(clip.shape[3], clip.shape[4])

    def check_latents(self, latents: Encoded) -> None:
        """Refuse latents without a frame, or whose channels are not this codec's.

        Raises:
            InvalidArgumentError: they do not fit.
        """
        if latents.shape[1] != self.channels:
            raise InvalidArgumentError(
                f"latents with {latents.shape[1]} channels were given; this codec's have "
                f"{self.channels} ('b c f h w'). Decode with the codec that encoded them."
            )
        self.video_frames(latents.shape[2])


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
        self.check_clip(clip)
        count = self._chunk(frames_per_chunk, clip.shape[3], clip.shape[4])
        return _by_chunks(self.encode_frames, clip, count)

    def decode(self, latents: Encoded, frames_per_chunk: int | None = None) -> Clip:
        """See ``Codec.decode``; a wrong channel count is an ``InvalidArgumentError``."""
        self.check_latents(latents)
        height, width = (self.space_factor * side for side in latents.shape[3:])
        count = self._chunk(frames_per_chunk, height, width)
        return _by_chunks(lambda frames: self.decode_frames(frames).clamp(-1, 1), latents, count)

    def stream(self, first: int = 0) -> FrameStream:
        """See ``Codec.stream``; every push returns the frames of just its latents."""
        self.warm_up(first)
        return _FrameByFrame(self)

    def _chunk(self, frames_per_chunk: int | None, height: int, width: int) -> int:
        if frames_per_chunk is None:
            return self.frames_at_once(height, width)
        return _positive(frames_per_chunk, "frames_per_chunk")


class _FrameByFrame(FrameStream):
    """The stream of a codec that needs no past."""

    def __init__(self, codec: FrameCodec) -> None:
        self._codec = codec

    def push(self, latents: Encoded) -> Clip:
        """See ``FrameStream.push``; as many frames as latents."""
        return self._codec.decode(latents)


def _by_chunks(per_frame: Callable[[Tensor], Tensor], video: Tensor, count: int) -> Tensor:
    """Apply ``per_frame`` to all frames of a batch of videos, ``count`` at a time."""
    frames = [frame for clip in video.transpose(1, 2) for frame in clip]  # views: nothing is copied
    out: Tensor | None = None
    for i in range(0, len(frames), count):
        part = per_frame(torch.stack(frames[i : i + count]))
        if out is None:
            # Filled piece by piece: joining the pieces at the end would hold all of them twice.
            out = part.new_empty(len(frames), *part.shape[1:])
        out[i : i + count] = part
    assert out is not None  # a clip has frames
    return rearrange(out, "(b f) c h w -> b c f h w", b=video.shape[0])


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise InvalidArgumentError(f"{name} is {value}; give 1 or more.")
    return value


def _nearest_multiple(value: int, factor: int) -> int:
    return max(1, round(value / factor)) * factor
