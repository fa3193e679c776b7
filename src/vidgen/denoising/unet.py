"""Settings of strategies whose network is, or grows out of, a 2D UNet."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import UNet2DConditionModel

from vidgen.codecs import Codec
from vidgen.denoising.config import ClipConfig
from vidgen.denoising.image_model import ImageModel
from vidgen.errors import InvalidArgumentError
from vidgen.nn import build_unet, widen_unet

__all__ = ["UNetConfig"]


@dataclass(frozen=True)
class UNetConfig(ClipConfig):
    """What a 2D UNet is made of; the fields that come first are ``ClipConfig``'s.

    With ``pretrained`` the UNet is that of the image model, and the fields of this class are not used.

    Args:
        widths: channels per level of the UNet.
        layers_per_block: residual blocks per level.
        attention_levels: levels with spatial attention and cross-attention.
        head_dim: width of an attention head.
        heads: attention heads of every level instead, as Stable Diffusion 1 has 8.
        text_width, text_layers: of a text encoder learnt with the model.
        pooled_text: also add the pooled prompt to the time embedding (Ho et al. 2022, section 3).
    """

    widths: tuple[int, ...] = (64, 128)
    layers_per_block: int = 1
    attention_levels: tuple[int, ...] = (1,)
    head_dim: int = 32
    heads: int | None = None
    text_width: int = 64
    text_layers: int = 2
    pooled_text: bool = True

    def build_unet(self, codec: Codec, text_width: int, extra_channels: int = 0) -> UNet2DConditionModel:
        """Return the UNet of these settings, fresh or that of ``pretrained``.

        Args:
            codec: in whose latents it works.
            text_width: features of a token.
            extra_channels: input channels after those of the latents; zero weights read them where the UNet
                is pretrained, so that it is the image model still.

        Raises:
            InvalidArgumentError: the pretrained UNet was trained with another codec or text encoder.
            CheckpointError: its files are missing, unsafe or damaged.
        """
        if self.pretrained is None:
            return self._fresh(codec, text_width, extra_channels)
        unet = ImageModel(self.pretrained).unet()
        _check_fit(self, unet, codec, text_width)
        return widen_unet(unet, extra_channels) if extra_channels else unet

    @property
    def token_width(self) -> int:
        """Features of a token that a text encoder learnt with the model should have."""
        if self.pretrained is None:
            return self.text_width
        return ImageModel(self.pretrained).token_width

    def _fresh(self, codec: Codec, text_width: int, extra_channels: int) -> UNet2DConditionModel:
        height, width = codec.latent_shape(*self.sample_size)[1:]
        return build_unet(
            codec.channels + extra_channels,
            codec.channels,
            max(height, width),
            widths=self.widths,
            layers_per_block=self.layers_per_block,
            attention_levels=self.attention_levels,
            cross_attention_dim=text_width,
            head_dim=self.head_dim,
            heads=self.heads,
            pooled_text=self.pooled_text,
        )


def _check_fit(config: UNetConfig, unet: UNet2DConditionModel, codec: Codec, text_width: int) -> None:
    """Refuse a pretrained UNet that was trained with another codec or text encoder."""
    reads, width = unet.config.in_channels, unet.config.cross_attention_dim
    if reads != codec.channels:
        raise InvalidArgumentError(
            f"the UNet in {config.pretrained} reads {reads} channels; the codec's latents have "
            f"{codec.channels}. Choose a codec that fits it."
        )
    if width != text_width:
        raise InvalidArgumentError(
            f"the UNet in {config.pretrained} reads tokens of width {width}; those of "
            f"{config.text_model or 'the prompts'} have {text_width}. Choose the text encoder "
            "that it was trained with."
        )
