"""The space-time factorised UNet of Video Diffusion Models (Ho et al. 2022), inflated from 2D.

Every spatial block keeps working on single frames; a temporal convolution and temporal attention
follow it (their section 3: attention over space, then over time). Where the paper trains all of it
from the start, this network begins as diffusers' ``UNet2DConditionModel``, with its own weights or
pretrained ones, and equals it frame by frame until the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange, repeat
from torch import Tensor

from vidgen.errors import InvalidArgumentError
from vidgen.networks import ClipDenoiser
from vidgen.nn import Inflation, TemporalLayers, build_unet, checkpoint
from vidgen.nn.unet import check_takes_time_and_tokens, times_per_frame, token_width
from vidgen.tensors import KnownMask, Latents, Tokens

__all__ = ["MASK_CHANNELS", "VideoUNet"]

MASK_CHANNELS = 1
"""Input channels, after those of the latents, that mark given frames."""


class VideoUNet(ClipDenoiser):
    """A 2D UNet and its temporal layers as one denoiser of clips, with given frames.

    A given frame enters clean, at timestep 0, marked in the UNet's last input channel. Wrap and
    compile this module and not its parts: the layers of ``temporal`` run inside the UNet.

    Args:
        unet: the 2D network, with one more input channel than latents have (``widen_unet``).
        temporal: the layers made for it; None makes fresh ones at every level.

    Raises:
        InvalidArgumentError: the layers belong to another network, or the UNet needs embeddings
            that a video denoiser is not given (class labels, added embeddings).
    """

    part_types: ClassVar[Mapping[str, type[Any]]] = {"unet": UNet2DConditionModel, "temporal": TemporalLayers}

    def __init__(self, unet: UNet2DConditionModel, temporal: TemporalLayers | None = None) -> None:
        super().__init__()
        check_takes_time_and_tokens(unet)
        self.unet = unet
        self.temporal = TemporalLayers.beside(unet) if temporal is None else temporal
        self.inflation = Inflation(self.unet, self.temporal)

    @classmethod
    def create(
        cls, channels: int, size: int, token_width: int, *, joint_middle: bool = False, **settings: Any
    ) -> VideoUNet:
        """Return a fresh network; ``settings`` are those of ``nn.build_unet``.

        Args:
            channels, size, token_width: see ``ClipDenoiser.create``.
            joint_middle: attend over all pixels of all frames together in the middle block.
        """
        unet = build_unet(channels + MASK_CHANNELS, channels, size, cross_attention_dim=token_width, **settings)
        head_dim = settings.get("head_dim", 32)
        return cls(unet, TemporalLayers.beside(unet, head_dim=head_dim, joint_middle=joint_middle))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that this network denoises."""
        return int(self.unet.config.in_channels) - MASK_CHANNELS

    def forward(
        self,
        x_t: Latents,
        t: Tensor | float | int,
        tokens: Tokens | None = None,
        known: KnownMask | None = None,
        clean: Latents | None = None,
    ) -> Latents:
        """The prediction for ``x_t``, in the meaning that the network was trained for.

        Args:
            x_t: noisy latents ``b c f h w``.
            t: the scheduler's timestep: a scalar, one per video ``b``, or one per frame ``b f``.
            tokens: prompt embeddings; None gives the cross-attention one zero token.
            known: frames that are given; None for none.
            clean: the given frames' latents, anything elsewhere.

        Raises:
            InvalidArgumentError: shapes that do not fit, or ``known`` without ``clean``.
        """
        self._check(x_t, known, clean)
        batch, _, frames, *_ = x_t.shape
        if known is None or clean is None:
            known = torch.zeros(batch, frames, dtype=torch.bool, device=x_t.device)
        else:
            x_t = torch.where(rearrange(known, "b f -> b 1 f 1 1"), clean.to(x_t.dtype), x_t)
        times = times_per_frame(t, batch, frames, x_t.device).masked_fill(known, 0)
        mask = known.to(x_t.dtype)[:, None, :, None, None].expand_as(x_t[:, :MASK_CHANNELS])
        sample = rearrange(torch.cat([x_t, mask], dim=1), "b c f h w -> (b f) c h w")
        prompts = repeat(self._tokens(tokens, x_t), "b n d -> (b f) n d", f=frames)
        with self.inflation.clips_of(frames):
            (output,) = self.unet(sample, times.flatten(), prompts, return_dict=False)
        prediction: Tensor = rearrange(output, "(b f) c h w -> b c f h w", f=frames)
        return prediction

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory while training, in the 2D network and in the temporal layers."""
        self.unet.enable_gradient_checkpointing(checkpoint)  # it keeps the attention backend
        self.temporal.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        """Keep all activations again."""
        self.unet.disable_gradient_checkpointing()
        self.temporal.disable_gradient_checkpointing()

    def detach(self) -> UNet2DConditionModel:
        """Give back the plain 2D network, without hooks; this module cannot be called after it."""
        self.inflation.detach()
        return self.unet

    def _tokens(self, tokens: Tensor | None, x_t: Tensor) -> Tensor:
        if tokens is None:
            return x_t.new_zeros(x_t.shape[0], 1, token_width(self.unet))
        return tokens.to(x_t.dtype)

    def _check(self, x_t: Tensor, known: Tensor | None, clean: Tensor | None) -> None:
        if not self.inflation.attached:
            raise InvalidArgumentError(
                "this VideoUNet was detached from its 2D network; make a new one: VideoUNet(unet, temporal)."
            )
        if x_t.shape[1] != self.latent_channels:
            raise InvalidArgumentError(
                f"latents with {x_t.shape[1]} channels were given to a network for "
                f"{self.latent_channels} (its UNet reads {self.unet.config.in_channels}, the last "
                "one marking given frames). Use the codec it was trained with; a UNet without the "
                "mark is widened by widen_unet(unet, 1)."
            )
        if (known is None) != (clean is None):
            raise InvalidArgumentError("give `known` and `clean` together, or neither.")
