"""Named recipes of the text-to-image model."""

from __future__ import annotations

from vidgen.recipe import Recipe, TrainingConfig
from vidgen.strategies.ldm.config import LDMConfig
from vidgen.video.dataset import DataConfig

__all__ = ["medium", "tiny"]


def tiny() -> Recipe:
    """Minutes on two CPU cores: 32 x 32 pictures, 1.0 million parameters."""
    return Recipe(
        strategy="ldm",
        model=LDMConfig(
            patch=4,
            widths=(32, 64),
            head_dim=16,
            text_width=32,
            text_layers=1,
            guidance_scale=2.0,
            # A patch has more numbers than the network is wide: clean pixels pass through it, noise does not.
            prediction_type="sample",
        ),
        data=DataConfig("shapes", clip_length=1, size=32),
        training=TrainingConfig(
            steps=800,
            batch_size=32,
            learning_rate=2e-3,
            lr_schedule="cosine",
            warmup_steps=50,
            ema_decay=0.99,
            checkpoint_every=200,
        ),
    )


def medium() -> Recipe:
    """Frames of one's own clips at 256 x 256, as 64 x 64 latents: the image model for ``vdm/medium``.

    2.0 GMACs per picture and network evaluation, 4.0 million parameters (`vidgen info ldm --recipe medium`).
    A training step costs three evaluations of each picture: 384,000 of them are 2.3e15 multiply-accumulates, as
    many as ``vdm/medium`` takes.
    """
    return Recipe(
        strategy="ldm",
        model=LDMConfig(
            patch=4,
            widths=(32, 64, 128),
            attention_levels=(2,),
            head_dim=16,
            text_width=64,
            guidance_scale=2.0,
            prediction_type="sample",  # as in tiny
        ),
        data=DataConfig("shapes", clip_length=1, size=256),
        training=TrainingConfig(
            steps=6000,
            batch_size=64,
            micro_batch_size=32,
            learning_rate=1e-3,
            lr_schedule="cosine",
            warmup_steps=100,
            ema_decay=0.998,
            checkpoint_every=500,
        ),
    )
