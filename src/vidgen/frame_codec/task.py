"""The frame codec: a VAE of Stable Diffusion's layout, trained on frames of clips."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor

from vidgen.codecs import ImageCodec
from vidgen.errors import InvalidArgumentError
from vidgen.noise import Independent
from vidgen.trainable import Loss, OptimizerGroup, Stage, Trainable, TrainingStep
from vidgen.video.dataset import ClipBatch, ClipDataset

__all__ = ["FrameCodecConfig", "FrameCodecTask", "normalise_latents"]

_CLIPS_MEASURED = 256


@dataclass(frozen=True)
class FrameCodecConfig:
    """What the VAE is made of, and its loss.

    Args:
        block_out_channels: widths from the pixels inwards; each step after the first halves the sides.
        layers_per_block: residual blocks of each encoder level; the decoder's have one more.
        latent_channels: of the latents.
        norm_num_groups: groups of the normalisations; they divide all widths.
        sample_size: longer side of the frames, in pixels; a training run takes it from its data.
        kl_weight: of the divergence from a standard normal, in nats per latent number, beside an absolute
            error of 1 in pixels from -1 to 1.
        square_weight: of the squared error beside the absolute one: it draws attention to small objects, which
            the absolute error alone gives up for the background at first.

    Raises:
        InvalidArgumentError: values that no VAE can have.
    """

    block_out_channels: tuple[int, ...] = (16, 32, 48, 48)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 8
    sample_size: int = 64
    kl_weight: float = 1e-3
    square_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check what annotations cannot say."""
        weights = (self.kl_weight, self.square_weight)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise InvalidArgumentError(
                f"kl_weight is {self.kl_weight} and square_weight {self.square_weight}; expected finite "
                "numbers, 0 or more."
            )
        widths, groups = self.block_out_channels, self.norm_num_groups
        if not widths or groups < 1 or any(width < 1 or width % groups for width in widths):
            raise InvalidArgumentError(
                f"block_out_channels is {widths} and norm_num_groups {groups}; expected one width or more, "
                "each a multiple of the groups."
            )
        if min(self.layers_per_block, self.latent_channels) < 1:
            raise InvalidArgumentError(
                f"layers_per_block is {self.layers_per_block} and latent_channels {self.latent_channels}; "
                "expected 1 or more."
            )


class FrameCodecTask(Trainable):
    """Trains ``codec``, an ``AutoencoderKL``, to restore single frames through its latents.

    Once trained its latents are shifted and scaled to zero mean and unit variance over the data, within its
    own layers: ``scaling_factor`` stays 1, and any diffusers pipeline can use it as it is.

    Source: Rombach et al. 2022, appendix G (KL-regularised first stage); no adversarial or perceptual loss,
    whose networks would themselves have to be pretrained.
    """

    name = "frame_codec"
    Config = FrameCodecConfig
    component_types: ClassVar[dict[str, tuple[type, ...]]] = {"codec": (ImageCodec,)}
    config: FrameCodecConfig

    @classmethod
    def prepare(cls, config: Any, dataset: ClipDataset) -> Any:
        """Take the frames' size from the data.

        Raises:
            InvalidArgumentError: sides that do not halve as often as the VAE does.
        """
        height, width = dataset[0].clip.shape[-2:]
        factor = 2 ** (len(config.block_out_channels) - 1)
        if height % factor or width % factor:
            raise InvalidArgumentError(
                f"the frames are {height} x {width}; a VAE of {len(config.block_out_channels)} levels needs "
                f"sides that are multiples of {factor}. Change data.size, or the number of block_out_channels."
            )
        return replace(config, sample_size=max(height, width))

    @classmethod
    def create(cls, config: Any) -> FrameCodecTask:
        """See ``Trainable.create``."""
        levels = len(config.block_out_channels)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            sample_size=config.sample_size,
            scaling_factor=1.0,
            force_upcast=False,
        )
        return cls(config, {"codec": ImageCodec(vae)})

    @property
    def codec(self) -> ImageCodec:
        """The codec that is trained."""
        codec = self.modules["codec"]
        assert isinstance(codec, ImageCodec)  # component_types
        return codec

    def stages(self) -> tuple[Stage, ...]:
        """One stage, one optimiser."""
        return (_Restoring(self),)

    @torch.no_grad()
    def finish(self, dataset: ClipDataset) -> None:
        """Give the latents zero mean and unit variance over the first clips of ``dataset``."""
        clips = (sample.clip[None].to(self.device) for sample in islice(dataset, _CLIPS_MEASURED))
        measured = ImageCodec.fit(self.codec.vae, clips)
        normalise_latents(self.codec.vae, measured.mean, measured.std)


class _Restoring(Stage):
    """Absolute and squared error of restored frames, and the latents' divergence from noise."""

    name = "frame_codec"
    components = ("codec",)

    def __init__(self, task: FrameCodecTask) -> None:
        self.task = task

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One optimiser for all."""
        return (OptimizerGroup(self.name, self.task.parameters_of("codec")),)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """One loss; the latents are drawn from the posterior with the step's noise."""
        config, vae = self.task.config, self.task.codec.vae
        frames = rearrange(batch.clip, "b c f h w -> (b f) c h w")
        posterior = vae.encode(frames).latent_dist
        mean, variance = posterior.mean.float(), posterior.var.float()
        noise = step.noise(Independent(), rearrange(mean, "(b f) c h w -> b c f h w", b=len(batch)))
        z = mean + variance.sqrt() * rearrange(noise, "b c f h w -> (b f) c h w")
        error = vae.decode(z).sample.float() - frames
        kl = 0.5 * (mean**2 + variance - 1 - posterior.logvar.float()).mean()
        absolute, square = error.abs().mean(), (error**2).mean()
        total = absolute + config.square_weight * square + config.kl_weight * kl
        yield Loss(self.name, total, {"mse": float(square.detach()), "kl": float(kl.detach())})


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Rewrite the 1 x 1 convolutions around the latents of ``vae`` so that these become ``(z - mean) / std``.

    What goes in and out of the whole VAE stays the same (up to rounding).

    Args:
        vae: changed in place; it must have both convolutions.
        mean, std: per channel of the latents ``z`` as they are.

    Raises:
        InvalidArgumentError: the VAE has no such convolutions.
    """
    before, after = vae.quant_conv, vae.post_quant_conv
    if before is None or after is None:
        raise InvalidArgumentError(
            "this VAE has no quant_conv and post_quant_conv, which take up the scale of its latents; give one "
            "with use_quant_conv and use_post_quant_conv."
        )
    shift, scale = (torch.tensor(v, dtype=torch.float64, device=before.weight.device) for v in (mean, std))
    c = len(mean)
    _rewrite(before.weight[:c], before.weight[:c].double() / scale[:, None, None, None])
    _rewrite(before.bias[:c], (before.bias[:c].double() - shift) / scale)
    _rewrite(before.bias[c:], before.bias[c:].double() - 2 * scale.log())  # of the variance, as a logarithm
    weight = after.weight.double()
    _rewrite(after.bias, after.bias.double() + weight[:, :, 0, 0] @ shift)
    _rewrite(after.weight, weight * scale[None, :, None, None])


def _rewrite(old: Tensor, new: Tensor) -> None:
    old.copy_(new.to(old.dtype))
