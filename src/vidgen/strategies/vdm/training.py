"""How the baseline learns: denoising clips of which some frames are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from vidgen.conditioning import VocabularyEncoder
from vidgen.shapes import KnownMask
from vidgen.strategies.vdm.config import VDMConfig
from vidgen.strategies.vdm.network import VideoUNet
from vidgen.strategy import Loss, OptimizerGroup, Stage, Strategy, TrainingStep
from vidgen.video.dataset import ClipBatch

__all__ = ["VDMStage", "sample_known"]


def sample_known(uniform: Tensor, frames: int, past: float, random: float) -> KnownMask:
    """Draw which frames of each clip are given.

    Args:
        uniform: ``(b, frames + 2)`` numbers in [0, 1).
        frames: frames of a clip.
        past: share of clips whose first 1 to ``frames - 1`` frames are given.
        random: share of clips with a random set of given frames (never all).
    """
    kind, length, each = uniform[:, 0], uniform[:, 1], uniform[:, 2:]
    index = torch.arange(frames)
    count = 1 + (length * (frames - 1)).long()  # 1 .. frames - 1
    is_past = (kind < past)[:, None] & (index < count[:, None])
    ranks = each.argsort(dim=1).argsort(dim=1)
    is_random = ((kind >= past) & (kind < past + random))[:, None] & (ranks < count[:, None])
    return (is_past | is_random) & (frames > 1)


class VDMStage(Stage):
    """Trains the UNet, its temporal layers and the text encoder together.

    Args:
        strategy: whose codec, diffusion and prior are used.
        config: of the strategy.
        network: the video UNet.
        text_encoder: learnt with it.
    """

    name: ClassVar[str] = "denoiser"
    components: ClassVar[tuple[str, ...]] = ("unet", "temporal", "text_encoder")
    needs_pixels: ClassVar[bool] = False

    def __init__(
        self, strategy: Strategy, config: VDMConfig, network: VideoUNet, text_encoder: VocabularyEncoder
    ) -> None:
        self.strategy, self.config = strategy, config
        self.network, self.text_encoder = network, text_encoder

    def optimizers(self) -> tuple[OptimizerGroup, ...]:
        """One optimiser for all."""
        return (OptimizerGroup("denoiser", self.strategy.parameters_of(*self.components)),)

    def losses(self, batch: ClipBatch, step: TrainingStep) -> Iterator[Loss]:
        """Mean squared error of the prediction on the frames that are not given."""
        strategy, config = self.strategy, self.config
        clean = strategy.latents(batch)
        t = strategy.diffusion.sample_timesteps(step.uniform("timestep")).to(clean.device)
        noise = step.noise(strategy.prior, clean)
        uniform = torch.stack([step.uniforms(i, "known", clean.shape[2] + 2) for i in range(len(batch))])
        known = sample_known(uniform, clean.shape[2], config.mask_past, config.mask_random).to(clean.device)
        drops = (step.uniform("drop") < config.drop_text).tolist()
        texts = ["" if drop else text for text, drop in zip(batch.captions, drops, strict=True)]
        x_t = strategy.diffusion.noised(clean, noise, t)  # DDPM eq. 4
        prediction = self.network(x_t, t, self.text_encoder.encode(texts), known, clean)
        error = (prediction.float() - strategy.diffusion.target(clean, noise, t)) ** 2
        if config.snr_gamma is not None:
            error = error * strategy.diffusion.min_snr_weight(t, clean, config.snr_gamma)
        # Given frames are input, not output: they carry no loss.
        weight = (~known)[:, None, :, None, None].float().expand_as(error)
        dims = (1, 2, 3, 4)  # clip by clip, so that the batch may be cut anywhere
        yield Loss("denoiser", ((error * weight).sum(dims) / weight.sum(dims)).mean())
