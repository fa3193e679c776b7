"""The baseline as a strategy: all frames at once, longer videos window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.codecs import Codec
from vidgen.conditioning import Conditioning
from vidgen.denoising import DenoisingStrategy, GivenFrames
from vidgen.errors import InvalidArgumentError
from vidgen.nn import TemporalLayers
from vidgen.plans import Call, Plan, all_at_once, autoregressive, chunks
from vidgen.shapes import KnownMask, Latents
from vidgen.strategies.vdm.config import VDMConfig, VDMOptions
from vidgen.strategies.vdm.network import MASK_CHANNELS, VideoUNet, build_unet, load_unet
from vidgen.strategy import Canvas, Request, TrainingStep

__all__ = ["VDM"]


class VDM(DenoisingStrategy):
    """A space-time factorised UNet over all frames of a clip; longer videos in overlapping windows.

    Components: ``codec``, ``unet`` (a plain 2D UNet), ``temporal`` (what makes it a video network) and
    ``text_encoder``. Source: Ho et al. 2022, Video Diffusion Models.
    """

    name = "vdm"
    Config = VDMConfig
    Options = VDMOptions
    component_types: ClassVar[dict[str, tuple[type, ...]]] = {
        **DenoisingStrategy.component_types,
        "unet": (UNet2DConditionModel,),
        "temporal": (TemporalLayers,),
    }
    config: VDMConfig

    def __init__(self, config: VDMConfig, modules: Mapping[str, Any], scheduler: SchedulerMixin) -> None:
        super().__init__(config, modules, scheduler)
        self.network = VideoUNet(modules["unet"], modules["temporal"])

    @classmethod
    def create(cls, config: VDMConfig) -> VDM:
        """See ``Strategy.create``."""
        codec = config.build_codec()
        unet = None if config.pretrained is None else load_unet(config.pretrained)
        width = config.text_width if unet is None else int(unet.config.cross_attention_dim)
        text = config.build_text_encoder(width, config.text_layers)
        unet = _fresh_unet(config, codec, text.width) if unet is None else unet
        _check_fit(config, unet, codec, text.width)
        modules = {
            "codec": codec,
            "unet": unet,
            "temporal": TemporalLayers.beside(unet, head_dim=config.head_dim),
            "text_encoder": text,
        }
        return cls(config, modules, _scheduler(config))

    def plan(self, num_frames: int) -> Plan:
        """All at once up to the clip length, then an autoregressive window; lengths are in latents.

        A call of fewer frames than the clip length sees less, so a shorter video is not the start of a
        longer one; windows of a longer video are always whole.
        """
        if num_frames <= self.window:
            return all_at_once(num_frames)
        if self.window == 1:  # an image model: nothing to go on from
            return chunks(num_frames, 1)
        return autoregressive(num_frames, self.window, min(self.config.context, self.window - 1))

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """Text of the call's first new frame, and the frames given to it."""
        cond = super().condition(call, canvas, request)
        return replace(cond, replace=self._replaces(request.options)) if call.given else cond

    def _replaces(self, options: VDMOptions) -> bool:
        if options.given == "clean" and not self.config.takes_frames:
            raise InvalidArgumentError(
                "given='clean' was asked of a vdm trained without given frames (mask_past and mask_random "
                "are 0). Use given='replacement', or train with mask_past=0.4."
            )
        return options.given == "replacement" or not self.config.takes_frames

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the video UNet, without guidance."""
        # Replacement is the solver's affair: the network then sees nothing but noisy frames.
        known, clean = (None, None) if cond.replace else (cond.known, cond.clean)
        prediction: Tensor = self.network(x_t, t, cond.tokens, known, clean)
        return prediction

    def view(self, clips: Latents, step: TrainingStep) -> tuple[Latents, KnownMask]:
        """Whole clips; in some the past, or a random set of frames, is given."""
        return GivenFrames(self.config.mask_past, self.config.mask_random)(clips, step)


def _fresh_unet(config: VDMConfig, codec: Codec, text_width: int) -> UNet2DConditionModel:
    height, width = codec.latent_shape(*config.sample_size)[1:]
    return build_unet(
        codec.channels + MASK_CHANNELS,
        codec.channels,
        max(height, width),
        widths=config.widths,
        layers_per_block=config.layers_per_block,
        attention_levels=config.attention_levels,
        cross_attention_dim=text_width,
        head_dim=config.head_dim,
        pooled_text=config.pooled_text,
    )


def _check_fit(config: VDMConfig, unet: UNet2DConditionModel, codec: Codec, text_width: int) -> None:
    """Refuse a pretrained UNet that was trained with another codec or text encoder."""
    reads, width = unet.config.in_channels - MASK_CHANNELS, unet.config.cross_attention_dim
    if reads != codec.channels:
        raise InvalidArgumentError(
            f"the UNet in {config.pretrained} reads {reads} channels; the codec's latents have "
            f"{codec.channels}. Choose a codec that fits it."
        )
    if width != text_width:
        raise InvalidArgumentError(
            f"the UNet in {config.pretrained} reads tokens of width {width}; those of {config.text_model} have "
            f"{text_width}. Choose the text encoder that it was trained with."
        )


def _scheduler(config: VDMConfig) -> DDIMScheduler:
    """The process of the configuration, or that of the image model that the UNet starts from."""
    scheduler = config.build_scheduler()
    if config.pretrained is None or not (Path(config.pretrained) / "scheduler").is_dir():
        return scheduler
    found = DDIMScheduler.load_config(config.pretrained, subfolder="scheduler")
    process = ("num_train_timesteps", "beta_schedule", "prediction_type")
    names = (*process, "beta_start", "beta_end", "rescale_betas_zero_snr")
    return DDIMScheduler.from_config(scheduler.config, **{name: found[name] for name in names if name in found})
