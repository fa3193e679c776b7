"""FreeNoise (Qiu et al. 2023) over a trained ``vdm``: one long video, its windows fused at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from vidgen import Conditioning, Plan, Stage, Strategy
from vidgen.noise import WindowedShuffle
from vidgen.plans import all_at_once
from vidgen.strategies.vdm import VDM, VDMConfig


@dataclass(frozen=True)
class FreeNoiseConfig(VDMConfig):
    """``vdm``'s settings, and the frames from one window to the next."""

    fuse_stride: int = 4


class FusedLevel(VDM.level_class):
    """Predicts a video of any length as the mean of overlapping windows, weighted towards their middle."""

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """The guided prediction of every window, joined (FreeNoise section 3.3)."""
        frames, window = x_t.shape[2], self.strategy.window
        if frames <= window:
            return super().denoise(x_t, t, cond)
        starts = [*range(0, frames - window, self.strategy.config.fuse_stride), frames - window]
        weight = 1.0 + torch.minimum(torch.arange(window), torch.arange(window).flip(0)).to(x_t)[:, None, None]
        total, weights = torch.zeros_like(x_t), x_t.new_zeros(frames, 1, 1)
        for start in starts:
            part = slice(start, start + window)
            total[:, :, part] += weight * super().denoise(x_t[:, :, part], t, _part(cond, part))
            weights[part] += weight
        return total / weights


def _part(cond: Conditioning, part: slice) -> Conditioning:
    if cond.known is None or cond.clean is None:
        return cond
    return replace(cond, known=cond.known[:, part], clean=cond.clean[:, :, part])


class FreeNoise(VDM):
    """A ``vdm`` that makes all frames at once: ``vidgen.load("shapes/vdm", strategy="freenoise")``."""

    name, Config, level_class = "freenoise", FreeNoiseConfig, FusedLevel

    @property
    def level_settings(self) -> dict[str, Any]:
        """The noise of the first window, shuffled, again and again (FreeNoise section 3.2)."""
        stride = self.config.fuse_stride
        return {**super().level_settings, "prior": WindowedShuffle(self.window // stride * stride, stride)}

    def plan(self, num_frames: int) -> Plan:
        """One call, whatever the length."""
        return all_at_once(num_frames)

    def check_plan(self, plan: Plan) -> None:
        """Any window of frames: the level has windows of its own."""
        Strategy.check_plan(self, plan)

    def stages(self) -> tuple[Stage, ...]:
        """It is another way to sample, and learns nothing."""
        return ()
