"""Image VAEs of diffusers as codecs: every frame alone."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import AutoencoderKL, AutoencoderTiny

from vidgen.codecs.base import EncodedFrames, FrameCodec
from vidgen.codecs.vae import Scale, VaeCodec
from vidgen.errors import InvalidArgumentError
from vidgen.tensors import FrameBatch

__all__ = ["ImageCodec"]


class ImageCodec(VaeCodec, FrameCodec):
    """diffusers' ``AutoencoderKL`` or ``AutoencoderTiny``, frame by frame.

    Unless ``mean`` and ``std`` are given, latents are scaled as diffusers' pipelines scale them:
    ``(z - shift_factor) * scaling_factor`` (Rombach et al. 2022, appendix D.1), or by
    ``latents_mean`` and ``latents_std`` where the configuration has them. A VAE whose configuration
    says ``force_upcast`` may overflow in float16, which decoding refuses; bfloat16 is safe.

    See ``VaeCodec`` for the arguments; ``VaeCodec.fit`` measures ``mean`` and ``std``.
    """

    vae_classes: ClassVar[tuple[Any, ...]] = (AutoencoderKL, AutoencoderTiny)

    @property
    def channels(self) -> int:
        """Channels of the VAE's latents."""
        return int(self.vae.config.latent_channels)

    @property
    def space_factor(self) -> int:
        """Pixels of one side that become one latent pixel."""
        config = self.vae.config
        if isinstance(self.vae, AutoencoderTiny):
            return int(2 ** (len(config.encoder_block_out_channels) - 1))
        return int(2 ** (len(config.block_out_channels) - 1))

    def encode_frames(self, frames: FrameBatch) -> EncodedFrames:
        """Latents of single RGB frames in [-1, 1]."""
        encoded = self.vae.encode(frames.to(self.dtype))
        z = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        return self._normalised(self._checked_output(z))

    def decode_frames(self, latents: EncodedFrames) -> FrameBatch:
        """RGB frames of single latents; values may leave [-1, 1]."""
        return self._checked_output(self.vae.decode(self._restored(latents)).sample)

    def _own_scale(self) -> tuple[Scale, Scale]:
        config = self.vae.config
        scaling = float(config.scaling_factor)
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return float(config.get("shift_factor") or 0.0), 1 / scaling
        return list(config.latents_mean), [value / scaling for value in config.latents_std]

    def _check_layout(self) -> None:
        config = self.vae.config
        if (config.in_channels, config.out_channels) != (3, 3):
            raise InvalidArgumentError(
                f"the VAE turns {config.in_channels} channels into {config.out_channels}; expected one of RGB "
                "frames (in_channels = out_channels = 3)."
            )
        if isinstance(self.vae, AutoencoderTiny):
            steps = len(config.decoder_block_out_channels) - 1
            if config.upsampling_scaling_factor**steps != self.space_factor:
                raise InvalidArgumentError(
                    f"the AutoencoderTiny shrinks frames {self.space_factor} times and enlarges latents "
                    f"{config.upsampling_scaling_factor**steps} times; give one that restores the size."
                )

    def _check_tile(self, tile: int) -> None:
        tiny, step = isinstance(self.vae, AutoencoderTiny), 4 * self.space_factor
        if tiny:
            step = 16 * self.space_factor  # its overlap is an eighth of a tile, and needs two latent pixels
            if (self.channels, self.space_factor) != (4, 8):
                raise InvalidArgumentError(
                    "diffusers tiles only AutoencoderTiny VAEs with 4 latent channels and space factor 8; this "
                    f"one has {self.channels} and {self.space_factor}. Leave tile=None."
                )
        if tile < step or tile % step:
            raise InvalidArgumentError(
                f"tile is {tile} pixels; this VAE's tiles have a positive multiple of {step}, so that they "
                f"overlap in whole latent pixels, for example {max(1, round(tile / step)) * step}."
            )

    def _set_options(self) -> None:
        self.vae.use_tiling, self.vae.use_slicing = self._tile is not None, self._slicing
        if self._tile is not None:
            self.vae.tile_sample_min_size = self._tile
            self.vae.tile_latent_min_size = self._tile // self.space_factor
