"""Named recipes of GLOBER: the paper's, and a small one."""

from __future__ import annotations

from dataclasses import replace

from vidgen.recipe import Recipe, StageConfig, TrainingConfig
from vidgen.strategies.glober.config import GLOBERConfig
from vidgen.video.dataset import DataConfig

__all__ = [
    "sky_128_frames",
    "sky_256",
    "taichi_128",
    "tiny",
    "ucf101_128",
    "ucf101_256",
    "webvid_256",
]


def tiny() -> Recipe:
    """Minutes on two CPU cores: 32 x 32 clips of 16 frames, every part there."""
    return Recipe(
        strategy="glober",
        model=GLOBERConfig(
            generator_pooled_text=True,
            cra_order=False,  # shapes move alike forwards and backwards
            cra_balance=True,
            cra_weight=0.002,
            initial_std=0.14,
            patch=4,
            widths=(32, 64),
            head_dim=16,
            text_width=32,
            text_layers=1,
            encoder_widths=(32, 64),
            encoder_head_dim=16,
            index_channels=32,
            index_dim=64,
            generator_width=64,
            generator_depth=2,
            generator_heads=4,
            discriminator_width=32,
            discriminator_multipliers=(1, 1),
            cra_warmup_steps=100,
            encoder_warmup_steps=1000,
            # A patch has more numbers than the network is wide: clean pixels pass through it, noise does not.
            prediction_type="sample",
            guidance_scale=2.0,
            global_guidance_scale=2.0,
        ),
        data=DataConfig("shapes", clip_length=16, size=32),
        training=TrainingConfig(
            steps=800,
            batch_size=16,
            learning_rate=2e-3,
            lr_schedule="cosine",
            warmup_steps=50,
            ema_decay=0.99,
            checkpoint_every=200,
        ),
    )


def ucf101_256() -> Recipe:
    """UCF-101 at 256 x 256, 16 frames (GLOBER section 4.1, Table 11).

    Here on 8 GPUs, with 40 clips each in the first stage and 32 in the second. Its captions are the classes'
    names, or "A video of a person" for all. Name trained parts: ``--set codec=VAE`` and, for the UNet of
    Stable Diffusion 1, ``--set pretrained=FOLDER``.
    """
    return Recipe(
        strategy="glober",
        model=_paper(),
        data=DataConfig("ucf101", clip_length=16, size=256, flip=True),
        training=TrainingConfig(
            steps=80_000,
            batch_size=320,
            micro_batch_size=40,
            learning_rate=1e-5,
            mixed_precision="auto",
            gradient_checkpointing=True,
            num_workers=8,
            checkpoint_every=2000,
        ),
        stages={"generator": StageConfig(steps=200_000, batch_size=256, micro_batch_size=32)},
    )


def ucf101_128() -> Recipe:
    """UCF-101 at 128 x 128: a codec of factor 4 with 3 channels has latents of 32 x 32 too (section 4.1)."""
    return _variant("ucf101", size=128)


def sky_256() -> Recipe:
    """Sky Time-lapse at 256 x 256: the smaller generator (Table 11), frames guided by 3."""
    return _variant("sky_timelapse", size=256, small=True, rate=1e-4, steps=(40_000, 100_000), guidance=3.0)


def taichi_128() -> Recipe:
    """TaiChi-HD at 128 x 128 (Table 11)."""
    return _variant("taichi_hd", size=128, small=True, rate=5e-5, steps=(40_000, 100_000), guidance=3.0)


def webvid_256() -> Recipe:
    """WebVid-10M at 256 x 256, captioned; the paper publishes no other settings for it than UCF-101's."""
    return _variant("webvid", size=256)


def sky_128_frames() -> Recipe:
    """Videos of 128 frames (appendix C): the same networks, with the index scaled to 128 frames.

    The paper does not say how many keyframes long videos have; 16 are 8.5 frames apart.
    """
    recipe = sky_256()
    model = replace(recipe.model, sample_frames=128, window=32, keyframes=16)
    return replace(recipe, model=model, data=replace(recipe.data, clip_length=128))


def _paper() -> GLOBERConfig:
    """Table 11, with Stable Diffusion 1's UNet and text encoder and an untrained VAE of its layout."""
    return GLOBERConfig(
        sample_size=(256, 256),
        codec="layout:kl-f8",
        text="open_clip",
        text_model="ViT-L-14-quickgelu",
        text_pretrained="openai",
        text_layer="last",
        widths=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_levels=(0, 1, 2),
        heads=8,
        pooled_text=False,
        prediction_type="epsilon",
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        encoder_widths=(320, 640),
        encoder_blocks=2,
        encoder_head_dim=64,
        index_channels=320,
        index_dim=1280,
        generator_width=1152,
        generator_depth=28,
        generator_heads=16,
        discriminator_width=256,
        discriminator_multipliers=(1, 1, 2, 2, 2),
        discriminator_full_levels=(1, 2, 3, 4),
        guidance_scale=6.0,
        global_guidance_scale=9.0,
    )


def _variant(
    path: str,
    *,
    size: int,
    small: bool = False,
    rate: float = 1e-5,
    steps: tuple[int, int] | None = None,
    guidance: float = 6.0,
) -> Recipe:
    """Return ``ucf101_256`` with another dataset's settings; if it has steps of its own, 32 clips per GPU."""
    base = ucf101_256()
    model = replace(base.model, sample_size=(size, size), guidance_scale=guidance)
    if size == 128:
        model = replace(model, codec="layout:kl-f4")
    if small:
        model = replace(model, generator_width=1024, generator_depth=20)
    training, stages = replace(base.training, learning_rate=rate), base.stages
    if steps is not None:
        training = replace(training, steps=steps[0], batch_size=256, micro_batch_size=32)
        stages = {"generator": StageConfig(steps=steps[1])}
    data = replace(base.data, path=path, size=size)
    return replace(base, model=model, data=data, training=training, stages=stages)
