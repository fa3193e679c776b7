"""Relay: every later window of a long video is given its first frame, so that what it shows does not drift."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from diffusers import UNet3DConditionModel

from vidgen import ClipBatch, Conditioning, DataConfig, Recipe, TrainingConfig, TrainingStep
from vidgen.denoising import ClipConfig, DenoisingStage, DenoisingStrategy, Example, mark_given
from vidgen.noise import NoisePrior, Progressive
from vidgen.plans import Plan, autoregressive


@dataclass(frozen=True)
class RelayConfig(ClipConfig):
    """``window`` frames a call, ``width`` channels, and noise that goes on from frame to frame (PYoCo)."""

    window: int = 8
    width: int = 32
    prior: NoisePrior = field(default_factory=Progressive)


class RelayStage(DenoisingStage):
    """Learns such windows: a beginning with nothing given, or later frames behind two given ones."""

    def example(self, batch: ClipBatch, step: TrainingStep) -> Example:
        """Frame 0 and frames in a row, by their own numbers."""
        found = super().example(batch, step)
        length, later = self.strategy.window - 1, step.uniform("later") < 0.7
        starts = 1 + later * (step.uniform("start") * (found.clean.shape[2] - length)).long()
        frames = torch.stack([torch.tensor([0, *range(s, s + length)]) for s in starts])
        clean = torch.stack([clip[:, row] for clip, row in zip(found.clean, frames, strict=True)])
        return replace(found, clean=clean, frames=frames, given=later[:, None] & (torch.arange(length + 1) < 2))


class Relay(DenoisingStrategy):
    """A 3D UNet makes the beginning, then window after window behind the first frame and the last one made."""

    name, Config, stage_class, stride = "relay", RelayConfig, RelayStage, None  # frames at any spacing
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

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Ask the network, with given frames clean and marked in one more channel."""
        return self.modules["network"](mark_given(x_t, cond), t, cond.tokens).sample


def tiny() -> Recipe:
    """Minutes on two CPU cores."""
    config, data = RelayConfig(prediction_type="sample"), DataConfig("shapes", clip_length=16, size=32)
    return Recipe("relay", config, data, TrainingConfig(steps=800, learning_rate=2e-3, warmup_steps=50))
