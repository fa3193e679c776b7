"""Named recipes of the baseline."""

from __future__ import annotations

from vidgen.recipe import Recipe, TrainingConfig
from vidgen.strategies.vdm.config import VDMConfig
from vidgen.video.dataset import DataConfig

__all__ = ["medium", "small", "tiny"]


def tiny() -> Recipe:
    """Minutes on two CPU cores: 32 x 32 clips of 16 frames, 1.2 million parameters."""
    return Recipe(
        strategy="vdm",
        model=VDMConfig(
            patch=4,
            widths=(32, 64),
            head_dim=16,
            text_width=32,
            text_layers=1,
            guidance_scale=2.0,
            # A patch has more numbers than the network is wide: clean pixels pass through it, noise does not.
            prediction_type="sample",
        ),
        data=DataConfig("shapes", clip_length=16, size=32),
        training=TrainingConfig(
            steps=800,
            batch_size=8,
            learning_rate=2e-3,
            lr_schedule="cosine",
            warmup_steps=50,
            ema_decay=0.99,
            checkpoint_every=200,
        ),
    )


def small() -> Recipe:
    """Hours on a CPU, minutes on a GPU: 64 x 64 clips of 16 frames."""
    return Recipe(
        strategy="vdm",
        model=VDMConfig(patch=4, widths=(96, 192), layers_per_block=2, head_dim=32, text_width=128),
        data=DataConfig("shapes", clip_length=16, size=64),
        training=TrainingConfig(steps=20000, batch_size=16, learning_rate=3e-4, warmup_steps=500),
    )


def medium() -> Recipe:
    """One's own clips at 256 x 256, as 64 x 64 latents of 16 frames: an hour on one GPU, a night on a CPU.

    38.8 GMACs per clip and network evaluation, 4.9 million parameters (`vidgen info vdm --recipe medium`).
    A training step costs three evaluations of each clip: 24,000 clips are 2.8e15 multiply-accumulates, or an
    hour at 1.6 TFLOP/s sustained, a night of ten at 0.16. Latents are squares of pixels here; those of a codec
    of one's own (``codec=``, or ``pretrained=`` with an image model that has one) cost the same.
    """
    return Recipe(
        strategy="vdm",
        model=VDMConfig(
            patch=4,
            widths=(32, 64, 128),
            attention_levels=(2,),
            head_dim=16,
            text_width=64,
            guidance_scale=2.0,
            prediction_type="sample",  # as in tiny
        ),
        data=DataConfig("shapes", clip_length=16, size=256),
        training=TrainingConfig(
            steps=3000,
            batch_size=8,
            micro_batch_size=2,  # 8 GB of memory do
            learning_rate=1e-3,
            lr_schedule="cosine",
            warmup_steps=100,
            ema_decay=0.995,
            checkpoint_every=250,
        ),
    )
