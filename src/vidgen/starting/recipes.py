"""Recipes of the bundled starting points."""

from __future__ import annotations

from vidgen.recipe import Recipe, TrainingConfig
from vidgen.starting.frame_codec import FrameCodecConfig
from vidgen.video.dataset import DataConfig

__all__ = ["HOLD_OUT", "codec"]

HOLD_OUT = 0.1
"""Share of the colour x shape x motion combinations that no bundled generator is trained on."""


def codec() -> Recipe:
    """The frame codec ``shapes/codec``: 64 x 64 pixels to 4 x 8 x 8 latents."""
    return Recipe(
        strategy="frame_codec",
        model=FrameCodecConfig(),
        data=DataConfig(clip_length=1, size=64, videos=16384, objects=(1, 3)),
        training=TrainingConfig(
            steps=3000,
            batch_size=24,
            learning_rate=2e-3,
            lr_schedule="cosine",
            warmup_steps=100,
            ema_decay=0.995,
            mixed_precision="bf16",
            checkpoint_every=250,
            log_every=50,
        ),
    )
