"""Recipes of the bundled models."""

from __future__ import annotations

from vidgen.frame_codec import FrameCodecConfig
from vidgen.recipe import Recipe, TrainingConfig
from vidgen.shapes.classifier.task import ClassifierConfig
from vidgen.strategies.glober.config import GLOBERConfig
from vidgen.strategies.ldm.config import LDMConfig
from vidgen.strategies.vdm.config import VDMConfig
from vidgen.video.dataset import DataConfig

__all__ = ["classifier", "codec", "glober", "ldm", "vdm"]


def codec() -> Recipe:
    """The frame codec ``shapes/codec``: 64 x 64 pixels to 16 x 8 x 8 latents."""
    return Recipe(
        strategy="frame_codec",
        model=FrameCodecConfig(latent_channels=16),
        data=DataConfig.of("shapes", clip_length=1, size=64, videos=16384, objects=(1, 3)),
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
        data=DataConfig.of("shapes", clip_length=24, size=64, videos=16384),
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


def ldm() -> Recipe:
    """The bundled ``shapes/ldm``: 64 x 64 images of one object, in the latents of ``shapes/codec``."""
    return Recipe(
        strategy="ldm",
        model=LDMConfig(
            codec="shapes/codec",
            widths=(64, 96),
            head_dim=16,
            text_width=64,
            drop_text=0.1,
            guidance_scale=5.0,
            num_inference_steps=25,
        ),
        # A tenth of colour x shape x motion is never shown, here and in what starts from here.
        # Four frames of many videos are soon encoded, and are as good as any four.
        data=DataConfig.of("shapes", clip_length=1, frames=4, size=64, videos=8192, hold_out=0.1),
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


def vdm() -> Recipe:
    """The bundled ``shapes/vdm``: 16 frames of 64 x 64, inflated from the image model ``shapes/ldm``."""
    return Recipe(
        strategy="vdm",
        model=VDMConfig(
            pretrained="shapes/ldm",
            head_dim=16,
            drop_text=0.1,
            mask_past=0.15,
            mask_random=0.0,
            # Uniform noise levels and few given frames taught the axis of a motion and not its direction, which
            # is decided at high noise, where little is to be gained: told where the object is, much is.
            first_frame_steps=1500,
            mask_single=0.3,
            noise_bias=1.0,
            guidance_scale=2.0,
            num_inference_steps=25,
        ),
        data=DataConfig.of("shapes", clip_length=16, frames=16, size=64, videos=8192, hold_out=0.1),
        training=TrainingConfig(
            steps=9000,
            batch_size=16,
            learning_rate=1e-3,
            lr_schedule="cosine",
            warmup_steps=200,
            ema_decay=0.999,
            mixed_precision="auto",
            cache_latents=True,
            checkpoint_every=500,
            log_every=50,
        ),
    )


def glober() -> Recipe:
    """The bundled ``shapes/glober``: 16 frames of 64 x 64, decoded by the image model ``shapes/ldm``."""
    return Recipe(
        strategy="glober",
        model=GLOBERConfig(
            generator_pooled_text=True,
            cra_order=False,  # shapes move alike forwards and backwards
            cra_balance=True,
            cra_weight=0.002,
            initial_std=0.14,
            pretrained="shapes/ldm",
            # Small objects are a pixel or two of the latents: at half their resolution v learnt more slowly.
            encoder_widths=(96,),
            encoder_blocks=2,
            encoder_head_dim=32,
            index_channels=64,
            index_dim=192,
            branch_layers=2,
            encoder_warmup_steps=4000,
            noise_bias=1.0,  # little noise says nothing of v: the frame is seen
            generator_width=128,
            generator_depth=6,
            generator_heads=4,
            discriminator_width=32,
            discriminator_multipliers=(1, 2),
            cra_warmup_steps=1000,
            drop_text=0.1,
            # The prompt says what v says: always right, the decoder took colours and shapes from it alone. A
            # prompt of which nothing agrees with v is another clip's; one that agrees may help with the rest.
            drop_text_frames=0.3,
            wrong_text_frames=0.5,
            train_text=False,
            guidance_scale=4.0,  # of frames
            global_guidance_scale=3.0,
            num_inference_steps=25,
        ),
        data=DataConfig.of("shapes", clip_length=16, frames=16, size=64, videos=8192, hold_out=0.1),
        training=TrainingConfig(
            steps=10_000,
            batch_size=16,
            learning_rate=1e-3,
            lr_schedule="cosine",
            warmup_steps=200,
            ema_decay=0.999,
            mixed_precision="auto",
            cache_latents=True,
            checkpoint_every=500,
            log_every=50,
        ),
    )
