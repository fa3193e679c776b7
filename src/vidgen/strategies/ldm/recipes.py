"""Named recipes of the text-to-image model."""

from __future__ import annotations

from vidgen.recipe import Recipe, TrainingConfig
from vidgen.strategies.ldm.config import LDMConfig
from vidgen.video.dataset import DataConfig

__all__ = ["shapes"]


def shapes() -> Recipe:
    """The bundled ``shapes/ldm``: 64 x 64 images of one object, in the latents of ``shapes/codec``."""
    return Recipe(
        strategy="ldm",
        model=LDMConfig(
            codec="shapes/codec",
            widths=(48, 80),
            head_dim=16,
            text_width=64,
            drop_text=0.1,
            guidance_scale=5.0,
            num_inference_steps=25,
        ),
        # A tenth of colour x shape x motion is never shown, here and in what starts from here.
        # Four frames of many videos are soon encoded, and are as good as any four.
        data=DataConfig(clip_length=1, frames=4, size=64, videos=8192, hold_out=0.1),
        training=TrainingConfig(
            steps=20000,
            batch_size=64,
            learning_rate=1e-3,
            lr_schedule="cosine",
            warmup_steps=200,
            ema_decay=0.998,
            mixed_precision="auto",
            cache_latents=True,
            checkpoint_every=500,
            log_every=50,
        ),
    )
