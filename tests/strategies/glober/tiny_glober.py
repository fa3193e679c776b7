"""A tiny GLOBER for the tests, and clips of noise for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from vidgen import checkpoint
from vidgen.sampling import Sampler
from vidgen.strategies.glober import GLOBER, GLOBERConfig
from vidgen.trainable import TrainingStep
from vidgen.video.dataset import ClipBatch

CONFIG = GLOBERConfig(
    sample_frames=4,
    sample_size=(8, 8),
    words=("circle", "red"),
    max_words=3,
    pixel_mean=-0.5,
    pixel_std=0.5,
    patch=2,
    widths=(8, 16),
    head_dim=8,
    text_width=16,
    text_layers=1,
    keyframes=2,
    global_channels=5,
    encoder_widths=(8, 16),
    encoder_head_dim=8,
    index_channels=8,
    index_dim=16,
    generator_width=16,
    generator_depth=1,
    generator_heads=2,
    generator_pooled_text=True,
    discriminator_width=8,
    discriminator_multipliers=(1, 1),
    prediction_type="sample",
    beta_schedule="scaled_linear",
    num_inference_steps=2,
)
V_SHAPE = (5, 2, 2)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(trained=True, **changes):
    strategy = checkpoint.build(GLOBER, replace(CONFIG, **changes), seed=1)
    if trained:  # as if trained: no layer is zero, and v has a scale of its own
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name in ("unet", "branch", "index", "text_encoder", "video_encoder", "generator"):
                for p in strategy.parameters_of(name):
                    p.add_(0.1 * torch.randn(p.shape, generator=draw))
            scale = strategy.modules["video_encoder"].unit
            scale.running_mean.copy_(torch.linspace(-1, 1, len(scale.running_mean)))
            scale.running_var.copy_(torch.linspace(0.3, 2, len(scale.running_var)))
    for module in strategy.modules.values():
        module.eval()
    return strategy


def sampler(strategy):
    made = Sampler(strategy)
    made.set_progress_bar_config(disable=True)
    return made


def batch_of(latents=None, clip=None, captions=None):
    """A batch of latents alone, or of pixels alone."""
    given = latents if clip is None else clip
    b, f = given.shape[0], given.shape[2]
    texts = ["red circle", "red", "circle", "circle red"]
    return ClipBatch(
        clip=torch.zeros(b, 3, 0, 8, 8) if clip is None else clip,
        captions=captions or [texts[i % 4] for i in range(b)],
        labels=torch.full((b,), -1),
        fps=torch.full((b,), 8.0),
        index=torch.arange(b),
        draw=torch.zeros(b, dtype=torch.int64),
        frames=torch.arange(f).expand(b, f).clone(),
        latents=latents,
    )


def step_of(stage, index=2, count=3):
    return TrainingStep(5, stage.name, index, tuple(range(count)))
