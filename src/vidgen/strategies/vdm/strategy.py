"""The baseline as a strategy: all frames at once, longer videos window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vidgen.conditioning import Conditioning
from vidgen.denoising import DenoisingStrategy, GivenFrames
from vidgen.errors import InvalidArgumentError
from vidgen.nn import TemporalLayers
from vidgen.plans import Call, Plan, all_at_once, autoregressive, chunks
from vidgen.strategies.vdm.config import VDMConfig, VDMOptions
from vidgen.strategies.vdm.network import MASK_CHANNELS, VideoUNet
from vidgen.strategy import Canvas, Request
from vidgen.tensors import KnownMask, Latents
from vidgen.trainable import TrainingStep

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

    def condition(self, call: Call, canvas: Canvas, request: Request) -> Conditioning:
        """Text of the call's first new frame, and the frames given to it."""
        cond = super().condition(call, canvas, request)
        return replace(cond, replace=self._replaces(request.options)) if call.given else cond

    def _replaces(self, options: VDMOptions) -> bool:
        if options.given == "clean" and not self.config.takes_frames:
            raise InvalidArgumentError(
                "given='clean' was asked of a vdm trained without given frames (mask_past, mask_random "
                "and mask_single are 0). Use given='replacement', or train with mask_past=0.4."
            )
        return options.given == "replacement" or not self.config.takes_frames

    def predict(self, x_t: Latents, t: Tensor, cond: Conditioning) -> Latents:
        """Ask the video UNet, without guidance."""
        # Replacement is the solver's affair: the network then sees nothing but noisy frames.
        known, clean = (None, None) if cond.replace else (cond.known, cond.clean)
        prediction: Tensor = self.network(x_t, t, cond.tokens, known, clean)
        return prediction

    def view(self, clips: Latents, step: TrainingStep) -> tuple[Latents, KnownMask]:
        """Whole clips; at first all begin with a picture, then in some the past or a few frames are given."""
        c = self.config
        if step.index < c.first_frame_steps:
            known = torch.zeros(clips.shape[0], clips.shape[2], dtype=torch.bool)
            known[:, 0] = True
            return clips, known
        return GivenFrames(c.mask_past, c.mask_random, c.mask_single)(clips, step)
