"""The text-to-image model as a strategy: every frame is an image of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import UNet2DConditionModel
from einops import rearrange, repeat
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.denoising import DenoisingStrategy
from vidgen.nn import use_attend
from vidgen.plans import Plan, chunks
from vidgen.strategies.ldm.config import LDMConfig
from vidgen.strategy import Schedulers
from vidgen.tensors import Latents

__all__ = ["LDM"]


class LDM(DenoisingStrategy):
    """A 2D UNet over the latents of single frames, told a prompt: text to images.

    The parts are laid out as Stable Diffusion's, and each loads with its diffusers class: ``codec`` (an
    ``AutoencoderKL``), ``unet`` and ``scheduler``; ``text_encoder`` is a diffusers ``ModelMixin`` of vidgen.
    Several frames are several images: nothing ties them together, which makes an ``ldm`` the floor that
    video strategies are measured against.

    Source: Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models.
    """

    name = "ldm"
    Config = LDMConfig
    component_types: ClassVar[dict[str, tuple[type, ...]]] = {
        **DenoisingStrategy.component_types,
        "unet": (UNet2DConditionModel,),
    }
    stride = None
    config: LDMConfig

    def __init__(self, config: LDMConfig, modules: Mapping[str, Any], scheduler: Schedulers) -> None:
        super().__init__(config, modules, scheduler)
        self.unet = modules["unet"]
        use_attend(self.unet)

    @classmethod
    def create(cls, config: LDMConfig) -> LDM:
        """See ``Strategy.create``."""
        codec = config.build_codec()
        text = config.build_text_encoder(config.token_width, config.text_layers)
        modules = {"codec": codec, "unet": config.build_unet(codec, text.width), "text_encoder": text}
        return cls(config, modules, config.build_scheduler())

    @property
    def window(self) -> int:
        """One latent frame."""
        return 1

    def plan(self, num_frames: int) -> Plan:
        """Each latent frame in a call of its own; lengths are in latents."""
        return chunks(num_frames, 1)

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the UNet, frame by frame and without guidance."""
        batch, _, frames, *_ = x_t.shape
        tokens = cond.tokens
        if tokens is None:  # a model without prompts: the cross-attention reads one zero token
            tokens = x_t.new_zeros(batch, 1, self.unet.config.cross_attention_dim)
        (output,) = self.unet(
            rearrange(x_t, "b c f h w -> (b f) c h w"),
            repeat(t.expand(batch), "b -> (b f)", f=frames),
            repeat(tokens.to(x_t.dtype), "b n d -> (b f) n d", f=frames),
            return_dict=False,
        )
        prediction: Tensor = rearrange(output, "(b f) c h w -> b c f h w", f=frames)
        return prediction
