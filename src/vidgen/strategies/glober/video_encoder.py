"""GLOBER's video encoder (section 3.1, Table 11): keyframes in, one global feature ``v`` out.

A learned embedding ``e_v`` travels through the network as if it were one more frame, ahead of the keyframes.
Blocks look inside each frame, then along time at each pixel; what ``e_v`` has gathered by the end is ``v``.
The cost follows the keyframes, and no frame but them is ever looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from einops import pack, rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vidgen.errors import InvalidArgumentError
from vidgen.nn import SelfAttention, over_space, over_time
from vidgen.nn.recompute import Recomputed, RecomputingModel
from vidgen.nn.zero import zeroed
from vidgen.strategies.glober.index import index_period, index_scale
from vidgen.tensors import FrameBatch, Latents, Tokens

__all__ = ["Posterior", "VideoEncoder", "keyframes"]

LOG_VARIANCES = (-30.0, 20.0)
"""Range that log-variances are clamped to, as in Stable Diffusion's KL-VAE."""


def keyframes(num_frames: int, count: int, trained: int | None = None) -> tuple[int, ...]:
    """Frames that the encoder reads: the first, the last, and others at equal intervals.

    Of 16 frames the paper reads 0, 5, 10, 15 (section 4.1). A single keyframe is the middle one. The encoder
    is told their normalised indices, ``i / num_frames``.

    Args:
        num_frames: of the clip.
        count: K.
        trained: frames of a training clip, of which other clips are finer or coarser pictures: then those
            nearest in time to its keyframes, so that the encoder meets no other indices than it was trained on.

    Raises:
        InvalidArgumentError: fewer than one keyframe, or more than there are frames.
    """
    most = min(num_frames, trained or num_frames)
    if not 1 <= count <= most:
        raise InvalidArgumentError(
            f"{count} keyframes of {num_frames} frames are not possible; ask for 1 to {max(most, 1)}."
        )
    if trained not in (None, num_frames):
        wanted = keyframes(trained, count)
        near = [(2 * k * num_frames + trained) // (2 * trained) for k in wanted]  # halves round up
        # Frames fewer than those of a training clip leave room for each other.
        for place in range(count):
            least = near[place - 1] + 1 if place else 0
            near[place] = max(least, min(near[place], num_frames - count + place))
        return tuple(near)
    if count == 1:
        return (num_frames // 2,)
    gaps, last = count - 1, num_frames - 1
    return tuple((2 * k * last + gaps) // (2 * gaps) for k in range(count))  # halves round up


@dataclass(frozen=True)
class Posterior:
    """The normal distribution of ``v`` for each video.

    Attributes:
        mean: of every element; what evaluation and the generator take for ``v``.
        logvar: logarithm of the variance, within ``LOG_VARIANCES``.
    """

    mean: Float[Tensor, "b c h w"]
    logvar: Float[Tensor, "b c h w"]

    @property
    def std(self) -> Float[Tensor, "b c h w"]:
        """Standard deviation of every element."""
        return (0.5 * self.logvar).exp()

    def sample(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return ``v`` for standard normal ``noise``: what the decoder is trained on."""
        return self.mean + self.std * noise  # GLOBER eq. 1

    def kl(self) -> Float[Tensor, ""]:
        """Divergence from a standard normal in nats: summed over elements, averaged over videos; float32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        each = 0.5 * (mean**2 + logvar.exp() - logvar - 1)  # GLOBER eq. 2
        return each.sum(dim=(1, 2, 3)).mean()


class _PixelAttention(nn.Module):
    """Self-attention in each frame, added to its input; starts as the identity."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads, bias=True, zero_init=True)

    def forward(self, frames: FrameBatch) -> FrameBatch:
        """Let pixels of a frame look at each other."""
        return frames + over_space(lambda tokens: self.attention(self.norm(tokens)), frames)


class _SlotAttention(nn.Module):
    """Self-attention along time at each pixel, added to its input.

    Attention alone is blind to order. What it reads, values included, is rotated pair by pair by angles that
    grow with the slots' places, and shifted by sinusoids of them: with the shift alone, slots may be told apart
    and what they show is still summed up without their order. It does not start as the identity: a random
    mixture of ordered keyframes is something that the decoder can learn to read, nothing is not.

    Args:
        channels, heads: of the attention.
        period: how much slower the slowest sinusoid is than the fastest; the slowest rotation is half of that.
    """

    def __init__(self, channels: int, heads: int, period: float) -> None:
        super().__init__()
        self.period = period
        self.norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads, bias=True)

    def forward(self, frames: FrameBatch, places: Float[Tensor, "b s"]) -> FrameBatch:
        """Let each pixel look along time; ``frames`` is ``(b s) c h w``, ``places`` are times."""
        slots, channels = places.shape[1], frames.shape[1]
        waves = get_timestep_embedding(places.flatten(), channels, max_period=self.period)
        waves = rearrange(waves, "(b s) c -> b s c", s=slots)
        # From 1 down in equal ratios.
        speeds = max(1.0, self.period / 2) ** -torch.linspace(0, 1, channels // 2, device=places.device)
        angles = places[..., None] * speeds

        def attend(sequences: Tokens) -> Tokens:
            # Sequences of one video lie together, and all of its pixels are turned alike.
            tokens = self.norm(sequences).float().unflatten(0, (len(waves), -1))
            tokens = _rotated(tokens, angles[:, None]) + waves[:, None]
            return self.attention(tokens.flatten(0, 1).to(frames.dtype))  # type: ignore[no-any-return]

        return frames + over_time(attend, frames, slots)


def _rotated(x: Float[Tensor, "b n s c"], angles: Float[Tensor, "b 1 s p"]) -> Float[Tensor, "b n s c"]:
    """Turn the plane of feature ``j`` and feature ``j + c / 2`` by the ``j``-th angle."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class _Block(Recomputed):
    """A residual block in each frame, then attention in each frame, then along time."""

    def __init__(self, given: int, made: int, head_dim: int, norm_groups: int, period: float) -> None:
        super().__init__()
        self.residual = ResnetBlock2D(
            in_channels=given, out_channels=made, temb_channels=None, groups=norm_groups
        )
        zeroed(self.residual.conv2)
        self.space = _PixelAttention(made, made // head_dim)
        self.time = _SlotAttention(made, made // head_dim, period)

    def run(self, frames: FrameBatch, places: Float[Tensor, "b s"]) -> Float[Tensor, "bf d h w"]:
        """``(b s) c h w`` of ``given`` channels to as many frames of ``made`` channels."""
        return self.time(self.space(self.residual(frames, None)), places)  # type: ignore[no-any-return]


class VideoEncoder(RecomputingModel, ConfigMixin):  # type: ignore[misc]  # diffusers: untyped
    """Keyframe latents to the distribution of the global feature ``v``.

    The defaults are the paper's size: latents of 4 x 32 x 32, ``v`` of 16 x 16 x 16, 28.5 million parameters
    (the paper's has 28.4); 50.3, 123.8 and 418.7 GFLOP for 1, 4 and 16 keyframes. The widths of the output
    convolutions are not published; 640 -> 416 -> 32 meets the count. They read ``e_v`` alone, as the paper
    has it. Run on every slot they would cost 51.6, 129.0 and 439.3 GFLOP and give the same ``v``.

    Where the paper leaves it open or the released code departs: attention normalises each token by itself;
    order in time comes from the keyframes' normalised indices, not from the zeros that pad temporal
    convolutions, so unevenly spaced keyframes are told apart; any number of keyframes will do.

    The mean passes a batch normalisation without parameters. So ``v`` has zero mean and unit variance per
    channel: loud enough from the first step for the decoder to hear it beside its own noise, and on the scale
    that the generator's noise schedule is made for. In training that is over the batch, else over the running
    averages, which every training batch moves by a fiftieth.

    Args:
        latent_channels: of a keyframe.
        sample_size: height and width of a keyframe's latents, one number where they are equal.
        widths: channels per level; height and width are halved from one level to the next.
        blocks_per_level: blocks of each level.
        head_dim: features of an attention head; it divides every width.
        global_channels: of ``v``.
        head_width: channels between the two output convolutions; by default 13/20 of the last width, in
            whole groups.
        norm_groups: groups of the normalisations; they divide every width.
        scale: factor on normalised indices, ``index_scale(frames)`` for training videos of so many frames.
        initial_std: standard deviation of ``v`` around its mean before training; the released code has 1.

    Raises:
        InvalidArgumentError: sizes that do not fit each other, or no positive deviation.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 4,
        sample_size: int | Sequence[int] = 32,
        widths: Sequence[int] = (320, 640),
        blocks_per_level: int = 2,
        head_dim: int = 64,
        global_channels: int = 16,
        head_width: int | None = None,
        norm_groups: int = 32,
        scale: float = index_scale(16),
        initial_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.frame_size = _size(sample_size)
        if head_width is None:
            head_width = max(1, 13 * widths[-1] // (20 * norm_groups)) * norm_groups if widths else 0
        _check_sizes(self.frame_size, widths, blocks_per_level, head_dim, head_width, norm_groups)
        if not 0 < initial_std < math.inf:
            raise InvalidArgumentError(f"initial_std is {initial_std}; expected a number above 0.")
        self.slot = nn.Parameter(torch.randn(latent_channels, *self.frame_size))  # e_v
        self.stem = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList()
        period = index_period(scale)
        for level, width in enumerate(widths):
            if level:  # space only: every slot stays a slot
                self.stages.append(nn.Conv2d(widths[level - 1], widths[level - 1], 3, stride=2, padding=1))
            for block in range(blocks_per_level):
                given = widths[max(level - 1, 0)] if block == 0 else width
                self.stages.append(_Block(given, width, head_dim, norm_groups, period))
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1], head_width, 3, padding=1), nn.GroupNorm(norm_groups, head_width), nn.SiLU()
        )
        self.to_mean = nn.Conv2d(head_width, global_channels, 3, padding=1)
        self.to_logvar = zeroed(nn.Conv2d(head_width, global_channels, 3, padding=1))
        assert self.to_logvar.bias is not None
        nn.init.constant_(self.to_logvar.bias, 2 * math.log(initial_std))
        self.unit = nn.BatchNorm2d(global_channels, affine=False, momentum=0.02)

    @property
    def global_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of ``v``."""
        height, width = self.frame_size
        factor = 2 ** (len(self.config.widths) - 1)
        return int(self.config.global_channels), height // factor, width // factor

    def forward(self, latents: Latents, indices: Tensor) -> Posterior:
        """Return the distribution of ``v``.

        Args:
            latents: of the keyframes, ``b c k h w``.
            indices: their normalised indices ``i / F`` in [0, 1), ``k``, or ``b k`` for each video its own.

        Raises:
            InvalidArgumentError: latents or indices of other shapes than the network was made for.
        """
        self._check(latents, indices)
        batch = len(latents)
        slot = repeat(self.slot.to(latents.dtype), "c h w -> b c 1 h w", b=batch)
        frames, _ = pack([slot, latents], "b c * h w")
        times = indices.float().expand(batch, latents.shape[2])
        places = torch.cat([torch.zeros_like(times[:, :1]), 1 + self.config.scale * times], dim=1)
        hidden = self.stem(rearrange(frames, "b c s h w -> (b s) c h w"))
        for stage in self.stages:
            hidden = stage(hidden, places) if isinstance(stage, _Block) else stage(hidden)
        hidden = self.head(hidden[:: places.shape[1]])  # the temporal split: slot 0 stays
        logvar = self.to_logvar(hidden).clamp(*LOG_VARIANCES)
        return Posterior(self._unit(self.to_mean(hidden)).to(logvar.dtype), logvar)

    def _unit(self, mean: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Zero mean and unit variance per channel, in the precision of the running averages."""
        stored = self.unit.running_mean, self.unit.running_var
        mean = mean.to(stored[0])  # also under autocast
        if self.training and mean[:, 0].numel() == 1:  # one number has no variance
            return functional.batch_norm(mean, *stored, eps=self.unit.eps)
        return self.unit(mean)  # type: ignore[no-any-return]

    def _check(self, latents: Tensor, indices: Tensor) -> None:
        _, channels, count, *size = latents.shape
        expected = (self.config.latent_channels, *self.frame_size)
        if (channels, *size) != expected or count < 1:
            raise InvalidArgumentError(
                f"keyframe latents of shape {tuple(latents.shape)} do not fit a video encoder for 'b c k h w' "
                f"with (c, h, w) = {expected} and k of 1 or more. Use the codec and the frame size that it "
                "was made for."
            )
        if tuple(indices.shape) not in ((count,), (len(latents), count)) or not indices.is_floating_point():
            raise InvalidArgumentError(
                f"indices of shape {tuple(indices.shape)} and {indices.dtype} do not fit {len(latents)} videos "
                f"of {count} keyframes; give i / F of each keyframe as floating point numbers, 'k' or 'b k'."
            )


def _size(sample_size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width


def _check_sizes(
    size: tuple[int, int], widths: Sequence[int], blocks: int, head_dim: int, head_width: int, groups: int
) -> None:
    factor = 2 ** (len(widths) - 1) if widths else 1
    unfit = [width for width in widths if width % head_dim or width % groups or width % 2]
    if not widths or blocks < 1 or unfit or head_width % groups or any(side % factor for side in size):
        given: dict[str, Any] = {"sample_size": size, "widths": tuple(widths), "blocks_per_level": blocks}
        given |= {"head_dim": head_dim, "head_width": head_width, "norm_groups": groups}
        raise InvalidArgumentError(
            f"a video encoder of {given} is not possible: give at least one width and one block, widths that "
            f"are even, a head_dim and norm_groups that divide them (and norm_groups the head_width), and a "
            f"sample_size that halves {len(widths) - 1} times."
        )
