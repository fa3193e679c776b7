"""A tiny baseline for the tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from vidgen import checkpoint
from vidgen.sampling import Sampler
from vidgen.strategies.vdm import VDM, VDMConfig

CONFIG = VDMConfig(
    sample_frames=6,
    sample_size=(16, 16),
    words=("circle", "red"),
    patch=2,
    widths=(16, 32),
    head_dim=16,
    text_width=16,
    text_layers=1,
    context=2,
    pixel_mean=-0.5,
    pixel_std=0.5,
)


def build(trained=True, **changes):
    strategy = checkpoint.build(VDM, replace(CONFIG, **changes), seed=1)
    if trained:  # as if trained: no layer is zero
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in strategy.parameters_of("unet", "temporal", "text_encoder"):
                p.add_(0.03 * torch.randn(p.shape, generator=noise))
    for module in strategy.modules.values():
        module.eval()
    return strategy


def sampler(strategy):
    made = Sampler(strategy)
    made.set_progress_bar_config(disable=True)
    return made
