"""Relay: every later window of a long video is given its first frame, so that what it shows does not drift."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from diffusers import UNet3DConditionModel
from torch import Tensor

from vidgen import DataConfig, Recipe, TrainingConfig
from vidgen.conditioning import Conditioning
from vidgen.denoising import ClipConfig, DenoisingStrategy, mark_given
from vidgen.noise import NoisePrior, Progressive
from vidgen.plans import Plan, autoregressive
from vidgen.trainable import TrainingStep


@dataclass(frozen=True)
class RelayConfig(ClipConfig):
    """``window`` frames a call, ``width`` channels, and noise that goes on from frame to frame (PYoCo)."""

    window: int = 8
    width: int = 32
    prior: NoisePrior = field(default_factory=Progressive)


class Relay(DenoisingStrategy):
    """A 3D UNet makes the beginning, then window after window behind the first frame and the last one made."""

    name, Config, stride = "relay", RelayConfig, None  # a call's frames need not be evenly spaced
    component_types = DenoisingStrategy.component_types | {"network": (UNet3DConditionModel,)}

    @classmethod
    def create(cls, config: RelayConfig) -> Relay:
        """The codec and text encoder that the settings ask for, and diffusers' 3D UNet."""
        codec, text = config.build_codec(), config.build_text_encoder(config.width)
        blocks = ("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
        sizes = {"block_out_channels": (config.width, 2 * config.width), "cross_attention_dim": text.width}
        sizes |= {"layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 8}
        network = UNet3DConditionModel(None, codec.channels + 1, codec.channels, *blocks, **sizes)
        return cls(config, {"codec": codec, "text_encoder": text, "network": network}, config.build_scheduler())

    def plan(self, num_frames: int) -> Plan:
        """Windows that share two frames; the earlier one of the two makes place for frame 0."""
        plan, first = autoregressive(num_frames, self.window, context=2), ("video", 0)
        later = [replace(c, frames=(0, *c.frames[1:]), given=(first, c.given[1])) for c in plan.calls[1:]]
        return replace(plan, calls=(plan.calls[0], *later))

    def view(self, clips: Tensor, step: TrainingStep) -> tuple[Tensor, Tensor]:
        """Learn such windows: a beginning with nothing given, or later frames behind two given ones."""
        length, later = self.window - 1, step.uniform("later") < 0.7
        starts = 1 + later * (step.uniform("start") * (clips.shape[2] - length)).long()
        rows = [clip[:, [0, *range(s, s + length)]] for clip, s in zip(clips, starts, strict=True)]
        return torch.stack(rows), later[:, None] & (torch.arange(self.window) < 2)

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Ask the network, with given frames clean and marked in one more channel."""
        prediction: Tensor = self.modules["network"](mark_given(x_t, cond), t, cond.tokens).sample
        return prediction


def tiny() -> Recipe:
    """Minutes on two CPU cores."""
    config, data = RelayConfig(prediction_type="sample"), DataConfig("shapes", clip_length=16, size=32)
    return Recipe("relay", config, data, TrainingConfig(steps=800, learning_rate=2e-3, warmup_steps=50))
