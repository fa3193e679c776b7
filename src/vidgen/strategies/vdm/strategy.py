"""The baseline as a strategy: all frames at once, longer videos window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.denoising import DenoisingLevel, DenoisingStage, DenoisingStrategy, Example, GivenFrames
from vidgen.errors import InvalidArgumentError
from vidgen.nn import TemporalLayers
from vidgen.plans import Call, Plan, all_at_once, autoregressive, chunks
from vidgen.request import Canvas, Request
from vidgen.strategies.vdm.config import VDMConfig, VDMOptions
from vidgen.strategies.vdm.network import MASK_CHANNELS, VideoUNet
from vidgen.strategy import Schedulers
from vidgen.tensors import Latents
from vidgen.trainable import TrainingStep
from vidgen.video.dataset import ClipBatch

__all__ = ["VDM"]


class VDMLevel(DenoisingLevel):
    """Frames of the video; given ones are conditions, or replaced by the solver."""

    strategy: VDM

    def give(self, cond: Conditioning, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """The frames given to the call, and whether the solver itself holds them."""
        cond = super().give(cond, call, canvas, request)
        return cond if cond.known is None else replace(cond, replace=self._replaces(request.options))

    def _replaces(self, options: VDMOptions) -> bool:
        trained = self.strategy.config.takes_frames
        if options.given == "clean" and not trained:
            raise InvalidArgumentError(
                "given='clean' was asked of a vdm trained without given frames (mask_past, mask_random "
                "and mask_single are 0). Use given='replacement', or train with mask_past=0.4."
            )
        return options.given == "replacement" or not trained


class VDMStage(DenoisingStage):
    """Learns whole clips: at first the first frame is given, later in some the past or a few frames."""

    strategy: VDM

    def example(self, batch: ClipBatch, step: TrainingStep) -> Example:
        """See ``DenoisingStage.example``."""
        found, c = super().example(batch, step), self.strategy.config
        clips, frames = found.clean.shape[0], found.clean.shape[2]
        if step.index < c.first_frame_steps:
            return replace(found, given=torch.arange(frames).expand(clips, -1) == 0)
        shares = GivenFrames(c.mask_past, c.mask_random, c.mask_single)
        return replace(found, given=shares.draw(step, clips, frames))


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
    level_class = VDMLevel
    stage_class = VDMStage
    config: VDMConfig

    def __init__(self, config: VDMConfig, modules: Mapping[str, Any], scheduler: Schedulers) -> None:
        super().__init__(config, modules, scheduler)
        self.network = VideoUNet(modules["unet"], modules["temporal"])

    @classmethod
    def create(cls, config: VDMConfig) -> VDM:
        """See ``Strategy.create``."""
        codec = config.build_codec()
        text = config.build_text_encoder(config.token_width, config.text_layers)
        unet = config.build_unet(codec, text.width, MASK_CHANNELS)
        modules = {
            "codec": codec,
            "unet": unet,
            "temporal": TemporalLayers.beside(unet, head_dim=config.head_dim, joint_middle=config.joint_middle),
            "text_encoder": text,
        }
        return cls(config, modules, config.build_scheduler())

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

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the video UNet, without guidance."""
        # Replacement is the solver's affair: the network then sees nothing but noisy frames.
        known, clean = (None, None) if cond.replace else (cond.known, cond.clean)
        prediction: Tensor = self.network(x_t, t, cond.tokens, known, clean)
        return prediction
