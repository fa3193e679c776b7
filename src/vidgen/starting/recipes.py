"""Recipes of the bundled starting points."""

from __future__ import annotations

from vidgen.recipe import Recipe, TrainingConfig
from vidgen.starting.classifier import ClassifierConfig
from vidgen.starting.frame_codec import FrameCodecConfig
from vidgen.video.dataset import DataConfig

__all__ = ["classifier", "codec", "medium"]


def medium() -> Recipe:
    """A frame codec of one's own clips: 256 x 256 pixels to 4 x 64 x 64 latents, for the recipes ``medium``.

    17.7 GMACs to encode and decode a frame, 1.0 million parameters. A training step costs three times that for
    each frame: 32,000 of them are 1.7e15 multiply-accumulates, fewer than those of ``vdm/medium``.
    """
    return Recipe(
        strategy="frame_codec",
        model=FrameCodecConfig(block_out_channels=(32, 64, 64), latent_channels=4),
        data=DataConfig(clip_length=1, size=256),
        training=TrainingConfig(
            steps=4000,
            batch_size=8,
            learning_rate=1e-3,
            lr_schedule="cosine",
            warmup_steps=100,
            ema_decay=0.995,
            checkpoint_every=500,
        ),
    )


def codec() -> Recipe:
    """The frame codec ``shapes/codec``: 64 x 64 pixels to 16 x 8 x 8 latents."""
    return Recipe(
        strategy="frame_codec",
        model=FrameCodecConfig(latent_channels=16),
        data=DataConfig(clip_length=1, size=64, videos=16384, objects=(1, 3)),
        training=TrainingConfig(
            steps=5000,
            batch_size=24,
            learning_rate=2e-3,
            lr_schedule="cosine",
            warmup_steps=100,
            ema_decay=0.995,
            mixed_precision="auto",
            checkpoint_every=250,
            log_every=50,
        ),
    )


def classifier() -> Recipe:
    """The judge ``shapes/classifier``: all combinations, since it must know what generators never saw."""
    return Recipe(
        strategy="classifier",
        model=ClassifierConfig(),
        data=DataConfig(clip_length=24, size=64, videos=16384),
        training=TrainingConfig(
            steps=2000,
            batch_size=16,
            learning_rate=2e-3,
            lr_schedule="cosine",
            warmup_steps=100,
            weight_decay=0.01,
            betas=(0.9, 0.98),
            ema_decay=0.995,
            mixed_precision="auto",
            checkpoint_every=250,
            log_every=50,
        ),
    )
