"""Named recipes of the frame codec."""

from __future__ import annotations

from vidgen.frame_codec.task import FrameCodecConfig
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.video.dataset import DataConfig

__all__ = ["medium"]


def medium() -> Recipe:
    """A frame codec of one's own clips: 256 x 256 pixels to 4 x 64 x 64 latents, for the recipes ``medium``.

    17.7 GMACs to encode and decode a frame, 1.0 million parameters. A training step costs three times that for
    each frame: 32,000 of them are 1.7e15 multiply-accumulates, fewer than those of ``vdm/medium``.
    """
    return Recipe(
        strategy="frame_codec",
        model=FrameCodecConfig(block_out_channels=(32, 64, 64), latent_channels=4),
        data=DataConfig("shapes", clip_length=1, size=256),
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
